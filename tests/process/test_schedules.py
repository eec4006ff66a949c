import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.process.grids import SPACINGS, timestep_grid
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.schedules import (
    BETAS,
    ENDS_IN_NOISE,
    cosine_betas,
    linear_betas,
    list_schedules_with,
    make_schedule,
    named_betas,
    named_schedule,
    rescale_zero_terminal_snr,
)

every_schedule = pytest.mark.parametrize("name", sorted(BETAS.keys() - ENDS_IN_NOISE))

# One or two float64 operations: measured, at most 2e-16 relative.
ROUNDING = 1e-14


def make_exact_tables(name="linear", T=1000, **settings):
    schedule = named_schedule(name, T, dtype=jnp.float64, **settings)
    return {field: np.asarray(table) for field, table in vars(schedule).items()}


def list_lengths(name):
    """List short and long chains; the rescaled schedule needs more than 20 timesteps."""
    return (50, 1000) if name == "linear_rescaled" else (1, 2, 50, 1000)


@every_schedule
def test_every_schedule_adds_noise_at_every_step(name):
    for T in list_lengths(name):
        tables = make_exact_tables(name, T)
        assert tables["betas"].shape == (T,)
        assert np.all((tables["betas"] > 0) & (tables["betas"] < 1))
        assert np.all(np.diff(tables["alphas_cumprod"], prepend=1.0) < 0)
        assert tables["alphas_cumprod"][-1] > 0
        assert all(np.all(np.isfinite(table)) for table in tables.values())


@pytest.mark.parametrize(
    "name", ["linear", "linear_rescaled", "sigmoid_cumprod", "cosine", "cosine_clipped"]
)
def test_a_thousand_steps_end_in_noise(name):
    assert make_exact_tables(name)["alphas_cumprod"][-1] < 1e-4


# The slip's first beta is 1e-16: 1 - beta keeps none of its digits.
@pytest.mark.parametrize("name", sorted(BETAS.keys() - {"quadratic_slip", *ENDS_IN_NOISE}))
def test_derived_tables_follow_from_betas(name):
    for T in list_lengths(name):
        check_derived_tables(make_exact_tables(name, T))


def check_derived_tables(tables):
    betas = tables["betas"]
    alphas_cumprod = np.exp(np.cumsum(np.log1p(-betas)))
    prev = np.append(1.0, alphas_cumprod[:-1])
    variance = betas * (1 - prev) / (1 - alphas_cumprod)
    expected = {
        "alphas_cumprod": alphas_cumprod,
        "alphas_cumprod_prev": prev,
        "sqrt_alphas_cumprod": alphas_cumprod**0.5,
        "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod) ** 0.5,
        "log_one_minus_alphas_cumprod": np.log1p(-alphas_cumprod),
        "sqrt_recip_alphas_cumprod": alphas_cumprod**-0.5,
        "sqrt_recipm1_alphas_cumprod": ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5,
        "posterior_variance": variance,
        "posterior_mean_coef1": np.sqrt(prev) * betas / (1 - alphas_cumprod),
        "posterior_mean_coef2": np.sqrt(1 - betas) * (1 - prev) / (1 - alphas_cumprod),
    }
    for field, table in expected.items():
        # Measured: 7e-12, from 1 - alphas_cumprod at t = 0, which is 4e-5 for cosine.
        np.testing.assert_allclose(tables[field], table, rtol=1e-10, atol=1e-15, err_msg=field)


@every_schedule
def test_squares_of_the_square_root_tables_are_consistent(name):
    for T in list_lengths(name):
        tables = make_exact_tables(name, T)
        one = tables["sqrt_alphas_cumprod"] ** 2 + tables["sqrt_one_minus_alphas_cumprod"] ** 2
        np.testing.assert_allclose(one, 1, rtol=ROUNDING)
        product = tables["sqrt_recip_alphas_cumprod"] * tables["sqrt_alphas_cumprod"]
        np.testing.assert_allclose(product, 1, rtol=ROUNDING)


def test_linear_schedule_has_the_published_constants():
    tables = make_exact_tables("linear")
    assert tables["betas"][0] == 1e-4
    assert tables["betas"][-1] == 0.02
    # The constants have 5 digits: measured 7e-6, 2e-6 and 3e-6 relative.
    np.testing.assert_allclose(tables["alphas_cumprod"][-1], 4.0358e-5, rtol=1e-5)
    np.testing.assert_allclose(tables["posterior_variance"][1], 5.4532e-5, rtol=1e-5)
    np.testing.assert_allclose(tables["posterior_log_variance_clipped"][0], -9.8167, rtol=1e-5)


def test_cosine_schedule_is_clipped_where_the_paper_clips():
    betas = cosine_betas(1000)
    assert betas[-1] == 0.999
    np.testing.assert_allclose(betas[0], 4.1284e-5, rtol=1e-5)  # 5 digits, measured 5e-6
    clipped = cosine_betas(1000, clip=(1e-4, 0.9999))
    assert clipped[0] == 1e-4
    assert clipped[-1] == 0.9999


def test_the_logistic_schedule_rises_from_its_start_to_its_end():
    betas = make_exact_tables("sigmoid")["betas"]
    np.testing.assert_allclose(betas[[0, -1]], [1e-4, 0.02], rtol=0.5)  # the curve's ends are flat
    assert np.all(np.diff(betas) > 0)
    np.testing.assert_allclose((betas + betas[::-1]) / 2, (1e-4 + 0.02) / 2, rtol=ROUNDING)


def test_the_tutorials_schedules_have_the_published_values():
    practical, page = (
        make_exact_tables("cosine_epita", 600)["betas"],
        make_exact_tables("cosine_clipped", 600)["betas"],
    )
    np.testing.assert_array_equal(practical, np.minimum(page, 0.02))
    assert np.sum(practical == 0.02) == 97  # counted in the practical's own table
    slip = make_exact_tables("quadratic_slip", 200)
    np.testing.assert_allclose(slip["betas"][[0, -1]], [1e-16, 1.6e-7])
    assert slip["alphas_cumprod"][-1] > 0.9999  # no noise to speak of


def test_the_logarithm_of_the_first_posterior_variance_is_clipped_in_two_ways():
    second, floor = make_exact_tables(), make_exact_tables(clipped_log_variance="floor")
    assert second["posterior_variance"][0] == 0
    assert second["posterior_log_variance_clipped"][0] == np.log(second["posterior_variance"][1])
    assert floor["posterior_log_variance_clipped"][0] == np.log(1e-20)
    np.testing.assert_array_equal(
        second["posterior_log_variance_clipped"][1:], floor["posterior_log_variance_clipped"][1:]
    )


@every_schedule
def test_float32_tables_are_the_float64_tables_cast_once(name):
    narrow = vars(named_schedule(name, 1000))
    for field, table in make_exact_tables(name).items():
        assert narrow[field].dtype == jnp.float32
        np.testing.assert_array_equal(narrow[field], table.astype(np.float32), err_msg=field)


def test_rescaled_linear_schedule_refuses_short_chains():
    for T in (1, 20):
        with pytest.raises(ValueError, match="needs more than 20 timesteps"):
            named_schedule("linear_rescaled", T)


def test_the_rescaled_linear_schedule_ends_the_same_at_every_length():
    # Both sums approximate the same integral: measured 6.7 % apart.
    short, long = (
        make_exact_tables("linear_rescaled", 100),
        make_exact_tables("linear_rescaled", 1000),
    )
    np.testing.assert_allclose(
        np.log(short["alphas_cumprod"][-1]), np.log(long["alphas_cumprod"][-1]), rtol=0.1
    )
    assert linear_betas(100, rescale=True)[0] == 1e-3


@pytest.mark.parametrize(
    "betas", [[0.1, 0.0], [1.0, 0.1], [0.1, 1.1], [-0.1, 0.5], [0.1, np.nan], [], [[0.1, 0.2]]]
)
@pytest.mark.usefixtures("unchecked_types")
def test_bad_betas_are_refused(betas):
    with pytest.raises(ValueError, match="beta"):
        make_schedule(np.asarray(betas))


def test_a_chain_has_at_least_one_step():
    with pytest.raises(ValueError, match="at least 1"):
        named_schedule("linear", 0)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_grid_descends_to_the_clean_image(spacing):
    for T, S in [(1000, 1), (1000, 7), (1000, 20), (50, 3), (8, 2), (1, 1)]:
        grid = timestep_grid(T, S, spacing)
        assert grid.shape == (S + 1,)
        assert grid.dtype == np.int32
        assert grid[0] < T
        assert grid[-1] == -1
        assert np.all(np.diff(grid) < 0)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "lucidrains"])
def test_as_many_steps_as_timesteps_visit_all(spacing):
    for T in (1, 2, 7, 1000):
        np.testing.assert_array_equal(timestep_grid(T, T, spacing), np.arange(T - 1, -2, -1))


@pytest.mark.parametrize(
    ("S", "spacing", "expected"),
    [
        (50, "leading", list(range(980, -1, -20))),
        (10, "trailing", [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        (4, "linspace", [999, 666, 333, 0]),
        (10, "quad", [800, 632, 483, 355, 246, 158, 88, 39, 9, 0]),
        (250, "lucidrains", list(range(999, 0, -4))),
    ],
)
def test_grids_of_a_thousand_are_the_published_ones(S, spacing, expected):
    assert timestep_grid(1000, S, spacing).tolist() == [*expected, -1]


@pytest.mark.parametrize("S", [0, 101])
def test_a_grid_has_between_one_and_all_timesteps(S):
    with pytest.raises(ValueError, match=f"between 1 and T = 100, got {S}"):
        timestep_grid(100, S)


def test_a_quadratic_grid_that_visits_a_timestep_twice_is_refused():
    with pytest.raises(ValueError, match=r"'quad' spacing visit a timestep of T = 1000 twice"):
        timestep_grid(1000, 500, "quad")


def test_the_level_of_minus_one_is_the_clean_image():
    level = level_at(named_schedule("linear", 1000), jnp.array([-1, 0, 999]))
    assert level.t.tolist() == [-1, 0, 999]
    assert (level.signal[0], level.sigma[0]) == (1, 0)
    np.testing.assert_array_equal(level.sigma[1], np.float32(0.01))
    np.testing.assert_array_equal(level.signal[1], np.float32((1 - 1e-4) ** 0.5))


def test_levels_have_the_shape_of_their_timesteps():
    schedule = named_schedule("cosine", 10)
    for t in (3, jnp.array([1, 2]), jnp.array([[1, 2, 3], [4, 5, -1]])):
        level = level_at(schedule, t)
        assert level.signal.shape == level.sigma.shape == jnp.shape(t)


@pytest.mark.parametrize("name", sorted(BETAS.keys() - {"quadratic_slip", *ENDS_IN_NOISE}))
def test_zero_terminal_snr_keeps_the_start_and_ends_in_pure_noise(name):
    T = 50
    tables, before = make_exact_tables(name, T, zero_terminal_snr=True), make_exact_tables(name, T)
    # Measured: 3e-16, the last digit of 1 - beta.
    np.testing.assert_allclose(tables["betas"][0], before["betas"][0], rtol=0, atol=1e-15)
    assert tables["betas"][-1] == 1
    assert (tables["sqrt_alphas_cumprod"][-1], tables["sqrt_one_minus_alphas_cumprod"][-1]) == (
        0,
        1,
    )
    assert np.all(np.diff(tables["alphas_cumprod"], prepend=1.0) < 0)
    infinite = {name for name, table in tables.items() if not np.all(np.isfinite(table))}
    assert infinite == {"sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"}
    # A straight line from the first value, through the old ones, to 0.
    old, new = before["sqrt_alphas_cumprod"], tables["sqrt_alphas_cumprod"]
    expected = np.interp(old, [old[-1], old[0]], [0, old[0]])
    np.testing.assert_allclose(new, expected, rtol=0, atol=1e-13)  # measured: 1e-16


def test_jsd_falls_linearly_to_pure_noise():
    tables = make_exact_tables("jsd", 50)
    np.testing.assert_allclose(tables["alphas_cumprod"], np.arange(49, -1, -1) / 50, atol=1e-15)
    infinite = {name for name, table in tables.items() if not np.all(np.isfinite(table))}
    assert infinite == {"sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"}


@pytest.mark.parametrize(("name", "warmup"), [("const", 0), ("warmup10", 6), ("warmup50", 32)])
def test_betas_are_constant_after_the_warmup(name, warmup):
    betas = make_exact_tables(name, 64)["betas"]
    np.testing.assert_array_equal(betas[warmup:], 0.02)
    np.testing.assert_allclose(betas[:warmup], linear_betas(warmup))


def test_a_chain_of_one_timestep_cannot_be_rescaled():
    with pytest.raises(ValueError, match="one timestep cannot be rescaled"):
        rescale_zero_terminal_snr(linear_betas(1))
    with pytest.raises(ValueError, match="must lie in"):
        make_schedule(np.array([0.1, 1.0, 0.1]))


@pytest.mark.parametrize("name", list_schedules_with("beta_start"))
def test_a_schedule_runs_between_the_betas_that_it_is_given(name):
    betas = named_betas(name, 1000, beta_start=0.001, beta_end=0.05)
    slip, sigmoid = name == "quadratic_slip", name == "sigmoid"  # the logistic curve runs to +-6
    expected = np.array([0.001, 0.05]) ** (4 if slip else 1)
    # Measured: 0.12 for sigmoid, otherwise 2.2e-16.
    np.testing.assert_allclose(betas[[0, -1]], expected, rtol=0.15 if sigmoid else 1e-12)


def test_a_constant_schedule_has_one_beta_and_a_cosine_its_offset():
    assert set(named_betas("const", 7, beta_end=0.3)) == {0.3}
    np.testing.assert_array_equal(
        named_betas("cosine_clipped", 9, cosine_s=0.1),
        cosine_betas(9, s=0.1, clip=(1e-4, 0.9999)),
    )


def test_a_number_that_a_schedule_does_not_have_is_refused():
    with pytest.raises(
        UserError, match=r"cosine_s 0\.1 has no effect on linear: it is for cosine, "
    ):
        named_schedule("linear", 10, cosine_s=0.1)
    with pytest.raises(UserError, match=r"beta_end 0\.1 has no effect on jsd"):
        named_betas("jsd", 10, beta_end=0.1)
