from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jax_ddpm.diffusion import PredictionType, add_noise, prediction_target
from jax_ddpm.losses import LossType, diffusion_loss, draw, pixel_loss
from jax_ddpm.schedules import level_at, named_schedule

TYPES = get_args(PredictionType)
LOSSES = get_args(LossType)
SHAPE = (3, 4, 4, 1)
SCHEDULE = named_schedule("cosine", 100, dtype=jnp.float64)


def images(seed):
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
def test_the_loss_is_zero_for_a_perfect_network_and_known_for_one_that_is_off(
    prediction_type, loss_type
):
    x_0, noise, t = images(0), images(1), jnp.array([0, 50, 99])
    target = prediction_target(level_at(SCHEDULE, t), x_0, noise, prediction_type)

    def loss(off):
        return diffusion_loss(
            lambda params, x_t, t: target + off,
            None, SCHEDULE, x_0, t, noise, prediction_type=prediction_type, loss_type=loss_type,
        )  # fmt: skip

    np.testing.assert_array_equal(loss(0.0), [0, 0, 0])
    expected = {"l1": 0.5, "l2": 0.25, "huber": 0.125}[loss_type]
    np.testing.assert_allclose(loss(0.5), [expected] * 3, rtol=1e-13)  # measured: 0


def test_the_network_sees_the_noised_image_its_timestep_and_the_extra_arguments():
    x_0, noise, t = images(0), images(1), jnp.array([3, 1, 99])
    seen = {}

    def apply_fn(params, x_t, t, **network_args):
        seen.update(params=params, x_t=x_t, t=t, **network_args)
        return x_t

    diffusion_loss(apply_fn, "params", SCHEDULE, x_0, t, noise, train=True, label="label")
    assert (seen["params"], seen["train"], seen["label"]) == ("params", True, "label")
    np.testing.assert_array_equal(seen["t"], t)
    np.testing.assert_array_equal(seen["x_t"], add_noise(level_at(SCHEDULE, t), x_0, noise))


def test_the_loss_of_an_example_does_not_depend_on_the_others():
    x_0, noise, t = images(0), images(1), jnp.array([3, 1, 99])

    def loss(rows):
        return diffusion_loss(
            lambda params, x_t, t: 0.5 * x_t, None, SCHEDULE, x_0[rows], t[rows], noise[rows]
        )

    together = loss(jnp.arange(3))
    assert together.shape == (3,)
    for i in range(3):
        np.testing.assert_array_equal(loss(jnp.array([i])), together[i : i + 1])


def test_what_is_drawn_for_an_example_depends_on_its_key_alone():
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
