import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.optim.averages import make_posthoc_ema
from jax_ddpm.optim.posthoc_ema import (
    gamma_from_sigma_rel,
    power_function_rate,
    profile_error,
    profile_product,
    reconstruct,
    sigma_rel_from_gamma,
    solve_weights,
)

PAIR = (0.05, 0.1)
LENGTH = 4000


def compute_profile_weights(sigma_rel, end, length=LENGTH):
    """Compute each step's weight in the average after `end` steps: integrals of tau^gamma."""
    edges = np.minimum(np.arange(length + 1) / end, 1)
    return np.diff(edges ** (gamma_from_sigma_rel(sigma_rel) + 1))


def space_snapshots(num_snapshots):
    """Space snapshots of the pair evenly: their steps, exponents, and weights of each step."""
    ends = np.repeat(np.arange(1, num_snapshots + 1) * (LENGTH // num_snapshots), 2)
    gammas = np.tile([gamma_from_sigma_rel(width) for width in PAIR], num_snapshots)
    rows = [compute_profile_weights(PAIR[i % 2], end) for i, end in enumerate(ends)]
    return ends, gammas, np.stack(rows)


def track(sigma_rel, params):
    """Track an average; return it after each update."""
    ema = make_posthoc_ema(sigma_rel)

    def update(average, now):
        average = ema(average, *now)
        return average, average

    values = jnp.asarray(params)
    start = jnp.full_like(values[0], 1e3)
    return jax.lax.scan(update, start, (values, jnp.arange(len(values))))[1]


@pytest.fixture(scope="module")
def walk():
    """Parameters that wander around 5."""
    return 5 + np.random.default_rng(0).normal(0, 0.05, (LENGTH, 8)).cumsum(0)


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"), [(0.1, 6.94), (0.05, 16.97)]
)  # section 3.1 of the paper
def test_the_papers_widths_have_the_papers_exponents(sigma_rel, gamma):
    assert gamma_from_sigma_rel(sigma_rel) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [1e-4, 0.01, 0.05, 0.1, 0.25, 0.288])
def test_width_and_exponent_are_inverse_and_describe_the_profile(sigma_rel):
    gamma = gamma_from_sigma_rel(sigma_rel)
    # Measured: at most 2e-16 relative.
    assert sigma_rel_from_gamma(gamma) == pytest.approx(sigma_rel, rel=1e-12)
    if sigma_rel >= 0.01:
        middles = (np.arange(LENGTH) + 0.5) / LENGTH
        weights = compute_profile_weights(sigma_rel, LENGTH)
        width = np.sqrt(weights @ middles**2 - (weights @ middles) ** 2)
        assert width == pytest.approx(sigma_rel, rel=1e-3)  # measured: at most 3e-5


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.3, float("nan")])
def test_an_impossible_width_is_refused(sigma_rel):
    with pytest.raises(ValueError, match=f"between 0 and 0.2887, got {sigma_rel}"):
        gamma_from_sigma_rel(sigma_rel)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.1, 0.28])
def test_the_tracked_average_is_the_integral_of_the_profile(walk, sigma_rel):
    """From any start, because the first update is a copy."""
    found = track(sigma_rel, walk)
    expected = compute_profile_weights(sigma_rel, LENGTH) @ walk
    np.testing.assert_allclose(found[-1], expected, rtol=1e-11)  # measured: 4e-14
    np.testing.assert_array_equal(found[0], walk[0])
    half = compute_profile_weights(sigma_rel, LENGTH // 2) @ walk
    np.testing.assert_allclose(found[LENGTH // 2 - 1], half, rtol=1e-11)


def test_rates_keep_their_digits_in_float32():
    t = jnp.array([1, 2, 1000, 10_000_000])
    gamma = gamma_from_sigma_rel(0.05)
    exact = -np.expm1((gamma + 1) * np.log1p(-1 / np.array([2, 1000, 1e7])))
    with jax.enable_x64(False):
        found = np.asarray(power_function_rate(t.astype(jnp.int32), gamma))
    assert found.dtype == np.float32
    assert found[0] == 1
    np.testing.assert_allclose(found[1:], exact, rtol=1e-6)  # measured: 6e-8


@pytest.mark.parametrize("ends", [(4000, 4000), (4000, 1000), (1000, 4000)])
def test_products_of_profiles_are_integrals(ends):
    gammas = [gamma_from_sigma_rel(width) for width in PAIR]
    tau = (np.arange(400_000) + 0.5) / 100
    densities = [
        np.where(tau < end, (gamma + 1) / end * (tau / end) ** gamma, 0)
        for end, gamma in zip(ends, gammas, strict=True)
    ]
    numbers = np.array([ends[0], gammas[0], ends[1], gammas[1]], float)
    integral = densities[0] @ densities[1] / 100
    np.testing.assert_allclose(profile_product(*numbers), integral, rtol=1e-7)  # measured: 2e-9


@pytest.mark.parametrize("index", [0, 7, 39])
def test_a_stored_average_is_reconstructed_from_itself_alone(index):
    ends, gammas, _ = space_snapshots(20)
    step, gamma = int(ends[index]), float(gammas[index])
    weights = solve_weights(ends, gammas, step, gamma)
    np.testing.assert_allclose(weights, np.arange(40) == index, atol=1e-9)  # measured: 5e-14
    assert profile_error(weights, ends, gammas, step, gamma) < 1e-6


# The error of the parameters, over their spread, with 5 and with 40 snapshots of each width.
# Measured: 0.026 and 2.3e-4 (width 0.03), 2.7e-3 and 1.0e-5 (0.07), 7.8e-3 and 1.0e-5 (0.15),
# 0.026 and 2.9e-4 (0.2). The profile's error is of second order in the distance between snapshots.
@pytest.mark.parametrize(
    ("sigma_rel", "with_40"), [(0.03, 5e-4), (0.07, 3e-5), (0.15, 3e-5), (0.2, 6e-4)]
)
def test_more_snapshots_reconstruct_other_averages_better(walk, sigma_rel, with_40):
    direct = np.asarray(track(sigma_rel, walk))[-1]
    gamma = gamma_from_sigma_rel(sigma_rel)
    errors, profile_errors = [], []
    for num_snapshots in (5, 10, 20, 40):
        ends, gammas, rows = space_snapshots(num_snapshots)
        weights = solve_weights(ends, gammas, LENGTH, gamma)
        found = reconstruct(weights, [{"a": row @ walk} for row in rows])["a"]
        errors.append(np.sqrt(np.mean((found - direct) ** 2)) / walk.std())
        profile_errors.append(profile_error(weights, ends, gammas, LENGTH, gamma))
    assert np.all(np.diff(errors) < 0)
    assert errors[-1] < with_40 < errors[0] / 40
    orders = -np.diff(np.log2(profile_errors))
    assert 1.7 < orders[-1] < 2.1  # measured: 1.86 (width 0.03) to 1.98 (0.15)


@pytest.mark.parametrize("step", [LENGTH, 3300, 100])
def test_the_reported_error_is_the_distance_between_the_weights_of_all_steps(step):
    """Also between snapshots, and before the first."""
    ends, gammas, rows = space_snapshots(20)
    weights = solve_weights(ends, gammas, step, gamma_from_sigma_rel(0.15))
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    expected = compute_profile_weights(0.15, step)
    found = np.linalg.norm(weights @ rows - expected) / np.linalg.norm(expected)
    reported = profile_error(weights, ends, gammas, step, gamma_from_sigma_rel(0.15))
    assert reported == pytest.approx(found, rel=5e-3)  # measured: 4e-5, 6e-5 and 3e-4


def test_constant_parameters_are_reproduced_from_few_snapshots():
    ends, gammas, _ = space_snapshots(2)
    weights = solve_weights(ends, gammas, LENGTH, gamma_from_sigma_rel(0.2))
    found = reconstruct(weights, [{"a": np.full(3, 7, np.float32)}] * 4)["a"]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, 7, rtol=1e-13)  # without the division by the sum: 5.3
