from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jax_ddpm.process.diffusion import add_noise, p_mean_variance
from jax_ddpm.process.drawing import add_offset, draw
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.likelihood import vb_term
from jax_ddpm.process.losses import change_dropout_keys, diffusion_loss, make_loss_fn
from jax_ddpm.process.pixel_losses import LossType, pixel_loss
from jax_ddpm.process.predictions import PredictionType, prediction_target, to_prediction
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.process.weighting import Weighting, loss_weight

TYPES = get_args(PredictionType)
LOSSES = get_args(LossType)
SHAPE = (3, 4, 4, 1)
SCHEDULE = named_schedule("cosine", 100, dtype=jnp.float64)


def draw_images(seed):
    return jax.random.normal(jax.random.key(seed), SHAPE, jnp.float64)


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("l1", [3, 1, 0.5, 0, 0.5, 1, 3]),
        ("l2", [9, 1, 0.25, 0, 0.25, 1, 9]),
        ("huber", [2.5, 0.5, 0.125, 0, 0.125, 0.5, 2.5]),
    ],
)
def test_pixel_losses_have_the_values_worked_out_by_hand(loss_type, expected):
    target = jnp.full(7, 10.0)
    output = target + jnp.array([-3, -1, -0.5, 0, 0.5, 1, 3])
    np.testing.assert_array_equal(pixel_loss(loss_type, output, target), expected)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_loss_is_zero_for_a_perfect_network_and_known_for_a_constant_error(
    prediction_type, loss_type
):
    x_0, noise, t = draw_images(0), draw_images(1), jnp.array([0, 50, 99])
    target = prediction_target(level_at(SCHEDULE, t), x_0, noise, prediction_type)

    def loss(off):
        return diffusion_loss(
            lambda params, x_t, t: target + off,
            None,
            SCHEDULE,
            x_0,
            t,
            noise,
            prediction_type=prediction_type,
            loss_type=loss_type,
        )

    np.testing.assert_array_equal(loss(0.0), [0, 0, 0])
    expected = {"l1": 0.5, "l2": 0.25, "huber": 0.125}[loss_type]
    np.testing.assert_allclose(loss(0.5), [expected] * 3, rtol=1e-13)  # measured: 0


def test_the_network_sees_the_noised_image_its_timestep_and_the_extra_arguments():
    x_0, noise, t = draw_images(0), draw_images(1), jnp.array([3, 1, 99])
    seen = {}

    def apply_fn(params, x_t, t, **network_args):
        seen.update(params=params, x_t=x_t, t=t, **network_args)
        return x_t

    diffusion_loss(apply_fn, "params", SCHEDULE, x_0, t, noise, train=True, label="label")
    assert (seen["params"], seen["train"], seen["label"]) == ("params", True, "label")
    np.testing.assert_array_equal(seen["t"], t)
    np.testing.assert_array_equal(seen["x_t"], add_noise(level_at(SCHEDULE, t), x_0, noise))


def test_the_loss_of_an_example_does_not_depend_on_the_others():
    x_0, noise, t = draw_images(0), draw_images(1), jnp.array([3, 1, 99])

    def loss(rows):
        return diffusion_loss(
            lambda params, x_t, t: 0.5 * x_t, None, SCHEDULE, x_0[rows], t[rows], noise[rows]
        )

    together = loss(jnp.arange(3))
    assert together.shape == (3,)
    for i in range(3):
        np.testing.assert_array_equal(loss(jnp.array([i])), together[i : i + 1])


def test_an_examples_timestep_and_noise_depend_on_its_key_alone():
    keys = jax.random.split(jax.random.key(0), 6)
    t, noise = draw(keys, (4, 4, 2), 1000)
    rows = jnp.array([4, 1])
    t_rows, noise_rows = draw(keys[rows], (4, 4, 2), 1000)
    np.testing.assert_array_equal(t_rows, t[rows])
    np.testing.assert_array_equal(noise_rows, noise[rows])
    assert len(np.unique(noise)) == noise.size
    assert noise.dtype == jnp.float32


def test_timesteps_are_uniform_over_the_whole_chain():
    T, n = 10, 20_000
    t, _ = draw(jax.random.split(jax.random.key(0), n), (), T)
    counts = np.bincount(t, minlength=T)
    assert counts.size == T  # nothing above T - 1
    # A wrong range or distribution gives a p-value of 0; measured with this key: 0.30.
    assert stats.chisquare(counts).pvalue > 1e-3


def test_noise_is_standard_normal_and_independent_of_the_timestep():
    t, noise = draw(jax.random.split(jax.random.key(0), 20_000), (), 1000)
    # Measured with this key: 0.26 for the distribution; correlation -0.0085, standard error 0.007.
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(t, noise)[0, 1]) < 5 / 20_000**0.5


def compute_losses_of_one_prediction(**settings):
    """Compute the loss of the same x_0 and eps, predicted in each of the three ways."""
    x_0, noise, t = jnp.clip(draw_images(0), -1, 1), draw_images(1), jnp.array([0, 50, 95])
    level = level_at(SCHEDULE, t)
    x_t = add_noise(level, x_0, noise)
    predicted = to_prediction(draw_images(2), x_t, level, "v")
    found = {}
    for prediction_type in TYPES:
        output = prediction_target(level, predicted.x_0, predicted.eps, prediction_type)
        if settings.get("variance") == "learned_range":
            output = jnp.concatenate([output, jnp.tanh(x_t)], axis=-1)
        loss_fn = make_loss_fn(
            lambda params, x_t, t, output=output: output,
            SCHEDULE,
            prediction_type=prediction_type,
            **settings,
        )
        found[prediction_type] = loss_fn(None, x_0, t, noise)
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"weighting": "snr"},
        {"weighting": "truncated_snr"},
        {"weighting": "min_snr", "min_snr_gamma": 2.0},
        {"weighting": "soft_min_snr", "min_snr_gamma": 2.0},
        {"weighting": "p2", "p2_gamma": 0.5, "p2_k": 2.0},
        {"objective": "vlb", "variance": "fixed_large"},
        {"objective": "vlb", "variance": "learned_range"},
        {"objective": "hybrid", "variance": "learned_range", "weighting": "snr"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_weighted_losses_do_not_depend_on_the_prediction_type(settings):
    found = compute_losses_of_one_prediction(**settings)
    np.testing.assert_allclose(found["x_0"], found["eps"], rtol=1e-12)  # measured: 2e-15
    np.testing.assert_allclose(found["v"], found["eps"], rtol=1e-12)  # measured: 2e-15
    plain = compute_losses_of_one_prediction()
    assert np.abs(plain["x_0"] / plain["eps"] - 1).max() > 0.1


SNR = np.asarray(SCHEDULE.alphas_cumprod / (1 - SCHEDULE.alphas_cumprod))


def test_the_ceiling_lowers_the_weight_of_clean_timesteps_only():
    capped = loss_weight(SCHEDULE, "min_snr", "eps", gamma=2.0)
    np.testing.assert_allclose(capped, np.minimum(1, 2 / SNR), rtol=1e-12)  # measured: 5e-16
    assert 10 < (SNR > 2).sum() < 90
    np.testing.assert_array_equal(loss_weight(SCHEDULE, "constant", "x_0"), np.ones(100))


def test_weights_follow_the_published_formulas():
    """Truncated: Salimans & Ho 2022. P2: Choi et al. 2022, Eq. 8."""
    truncated = loss_weight(SCHEDULE, "truncated_snr", "eps")
    np.testing.assert_allclose(truncated, np.maximum(1, 1 / SNR), rtol=1e-12)  # measured: 4e-16
    p2 = loss_weight(SCHEDULE, "p2", "eps", p2_gamma=0.5, p2_k=2.0)
    np.testing.assert_allclose(p2, (2 + SNR) ** -0.5, rtol=1e-12)  # measured: 3e-16
    np.testing.assert_array_equal(
        loss_weight(SCHEDULE, "p2", "x_0"), loss_weight(SCHEDULE, "p2", "x_0", p2_gamma=1, p2_k=1)
    )


def test_the_smooth_ceiling_is_the_weight_of_preconditioned_networks():
    """Crowson et al. 2024 weight the error of c_out = sigma s / sqrt(sigma^2 + s^2), s^2 = 1/gamma,

    times the network's output by (c_out / s)^2 ((s / sigma)^2 / (1 + s^2 / sigma^2)) / s^2.
    """
    gamma, sigma = 4.0, SNR**-0.5
    s = gamma**-0.5
    of_output = (sigma * s) ** 2 / (sigma**2 + s**2) ** 2
    c_out = sigma * s / np.sqrt(sigma**2 + s**2)
    found = loss_weight(SCHEDULE, "soft_min_snr", "x_0", gamma=gamma)
    np.testing.assert_allclose(found, of_output / c_out**2, rtol=1e-12)  # measured: 6e-16


ZERO = named_schedule("cosine", 100, dtype=jnp.float64, zero_terminal_snr=True)


@pytest.mark.parametrize("prediction_type", ["x_0", "v"])
def test_weights_and_losses_are_finite_where_no_signal_is_left(prediction_type):
    ending = {"constant": 1, "truncated_snr": 1}  # the others leave the last timestep out
    for weighting in get_args(Weighting):
        weights = loss_weight(ZERO, weighting, prediction_type)
        assert np.all(np.isfinite(weights))
        assert weights[-1] == ending.get(weighting, 0)
    x_0, noise, t = jnp.clip(draw_images(0), -1, 1), draw_images(1), jnp.array([0, 98, 99])
    for objective, variance in (("vlb", "fixed_large"), ("hybrid", "learned_range")):
        network = two_headed if objective == "hybrid" else lambda p, x_t, t: p["mean"] * x_t
        loss_fn = make_loss_fn(
            network, ZERO, prediction_type=prediction_type, objective=objective, variance=variance
        )
        found = jax.jit(jax.value_and_grad(lambda p: loss_fn(p, x_0, t, noise).sum()))(PARAMS)  # noqa: B023
        assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(found))


def two_headed(params, x_t, t):
    """A network with one weight for the prediction and one for the variance."""
    return jnp.concatenate([params["mean"] * x_t, params["variance"] * jnp.tanh(x_t)], axis=-1)


PARAMS = {"mean": jnp.float64(0.7), "variance": jnp.float64(0.3)}


def compute_gradient(**settings):
    loss_fn = make_loss_fn(two_headed, SCHEDULE, variance="learned_range", **settings)
    x_0, noise, t = jnp.clip(draw_images(0), -1, 1), draw_images(1), jnp.array([0, 50, 99])
    return jax.jit(jax.value_and_grad(lambda p: loss_fn(p, x_0, t, noise).mean()))(PARAMS)


def test_in_the_hybrid_loss_the_bound_trains_the_variance_alone():
    hybrid, of_hybrid = compute_gradient(objective="hybrid", vb_weight=0.5)
    bound, of_bound = compute_gradient(objective="vlb", vb_weight=0.5)
    simple_fn = make_loss_fn(lambda p, x_t, t: p["mean"] * x_t, SCHEDULE)
    x_0, noise, t = jnp.clip(draw_images(0), -1, 1), draw_images(1), jnp.array([0, 50, 99])
    simple, of_simple = jax.value_and_grad(lambda p: simple_fn(p, x_0, t, noise).mean())(PARAMS)
    np.testing.assert_allclose(hybrid, simple + bound, rtol=1e-13)
    np.testing.assert_allclose(of_hybrid["mean"], of_simple["mean"], rtol=1e-13)
    np.testing.assert_allclose(of_hybrid["variance"], of_bound["variance"], rtol=1e-13)
    assert abs(of_bound["mean"]) > 1e-3


def test_error_and_bound_are_available_separately():
    x_0, noise, t = jnp.clip(draw_images(0), -1, 1), draw_images(1), jnp.array([0, 50, 99])
    settings = {"variance": "learned_range", "vb_weight": 0.5}
    hybrid = make_loss_fn(two_headed, SCHEDULE, objective="hybrid", **settings)
    bound = make_loss_fn(two_headed, SCHEDULE, objective="vlb", **settings)
    parts = hybrid.parts(PARAMS, x_0, t, noise)
    simple = diffusion_loss(lambda p, x_t, t: p["mean"] * x_t, PARAMS, SCHEDULE, x_0, t, noise)
    np.testing.assert_array_equal(parts.error, simple)
    np.testing.assert_array_equal(parts.bound, bound(PARAMS, x_0, t, noise))
    np.testing.assert_array_equal(hybrid(PARAMS, x_0, t, noise), parts.error + parts.bound)
    np.testing.assert_array_equal(bound.parts(PARAMS, x_0, t, noise).error, [0, 0, 0])


def test_the_bound_is_weighted_so_that_it_estimates_the_whole():
    x_0, noise, t = jnp.clip(draw_images(0), -1, 1), draw_images(1), jnp.array([0, 50, 99])
    level = level_at(SCHEDULE, t)
    x_t = add_noise(level, x_0, noise)
    model = p_mean_variance(
        SCHEDULE, to_prediction(0.5 * x_t, x_t, level, "eps"), x_t, t, "fixed_large"
    )
    term = vb_term(SCHEDULE, x_0, x_t, t, model)
    loss_fn = make_loss_fn(lambda params, x_t, t: 0.5 * x_t, SCHEDULE, objective="vlb")
    np.testing.assert_allclose(loss_fn(None, x_0, t, noise), 100 * term, rtol=1e-13)
    default, _ = compute_gradient(objective="hybrid")
    named, _ = compute_gradient(objective="hybrid", vb_weight=100 / 1000)
    assert default == named


@pytest.mark.parametrize(
    ("objective", "variance"), [("simple", "learned"), ("hybrid", "fixed_large")]
)
def test_an_objective_that_would_not_train_the_variance_is_refused(objective, variance):
    with pytest.raises(ValueError, match=f"{objective!r} does not go with variance {variance!r}"):
        make_loss_fn(two_headed, SCHEDULE, objective=objective, variance=variance)


@pytest.mark.parametrize("guess", [True, False])
def test_a_self_conditioned_network_gets_its_own_first_guess_or_zeros(guess):
    x_0, noise, t = draw_images(0), draw_images(1), jnp.array([3, 50, 95])

    def network(params, x_t, t, x_self_cond):
        return params * (x_t + 0.1 * x_self_cond)

    def loss(w, given):
        """By hand: the guess is an input, through which no gradient flows."""
        level = level_at(SCHEDULE, t)
        x_t = add_noise(level, x_0, noise)
        first = to_prediction(jax.lax.stop_gradient(w) * x_t, x_t, level, "v").x_0
        target = prediction_target(level, x_0, noise, "v")
        return ((network(w, x_t, t, given * first) - target) ** 2).mean()

    loss_fn = make_loss_fn(network, SCHEDULE, prediction_type="v")
    found = jax.value_and_grad(
        lambda w: loss_fn(w, x_0, t, noise, self_condition=jnp.array(guess)).mean()
    )(0.8)
    expected = jax.value_and_grad(loss)(0.8, float(guess))
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_the_first_guess_uses_other_dropout_masks():
    keys = jax.random.split(jax.random.key(0), 3)
    found = change_dropout_keys({"train": True, "dropout_keys": keys})
    assert found["train"]
    assert jnp.all(jax.random.key_data(found["dropout_keys"]) != jax.random.key_data(keys))
    assert change_dropout_keys({"dropout_keys": None}) == {"dropout_keys": None}


def test_offset_noise_shifts_whole_channels_and_nothing_else():
    keys = jax.random.split(jax.random.key(0), 2000)
    t, noise = draw(keys, (3, 3, 2), 1000)
    t_too, shifted = draw(keys, (3, 3, 2), 1000, offset_noise=0.5)
    np.testing.assert_array_equal(t, t_too)
    offset = np.asarray(shifted - noise)
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:, :1, :1], offset.shape), atol=1e-6)
    drawn = offset[:, 0, 0] / 0.5  # one per image and channel
    # Measured with this key: 0.19; correlation with the noise: 1.2 of its standard errors.
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(drawn.ravel(), noise.mean((1, 2)).ravel())[0, 1]
    assert abs(correlation) < 5 / drawn.size**0.5
    one = add_offset(noise[0], jnp.array([1.0, -1.0]), 0.5)
    np.testing.assert_allclose(one - noise[0], np.broadcast_to([0.5, -0.5], one.shape), atol=1e-6)
