import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.process.denoiser import make_denoise_fn, rescale_timesteps, threshold
from jax_ddpm.process.diffusion import add_noise
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.predictions import to_prediction
from jax_ddpm.process.schedules import named_schedule

SCHEDULE = named_schedule("linear", 100, dtype=jnp.float64)
X_T = jax.random.normal(jax.random.key(0), (4, 3, 3, 1), jnp.float64)
OUTPUT = jax.random.normal(jax.random.key(1), X_T.shape, jnp.float64)
LEVEL = level_at(SCHEDULE, jnp.array(60))


def network(params, x_t, t, **network_args):
    return OUTPUT


@pytest.mark.parametrize("prediction_type", ["eps", "x_0", "v"])
def test_without_clipping_the_output_is_only_converted(prediction_type):
    denoise = make_denoise_fn(network, None, prediction_type=prediction_type, clip_x_0=False)
    expected = to_prediction(OUTPUT, X_T, LEVEL, prediction_type)
    assert jnp.abs(expected.x_0).max() > 1
    found = denoise(X_T, LEVEL)
    np.testing.assert_array_equal(found.x_0, expected.x_0)
    np.testing.assert_array_equal(found.eps, expected.eps)
    assert found.raw_variance is None


@pytest.mark.parametrize("prediction_type", ["eps", "x_0", "v"])
def test_clipping_bounds_x_0_and_eps_follows_it(prediction_type):
    raw = to_prediction(OUTPUT, X_T, LEVEL, prediction_type)
    found = make_denoise_fn(network, None, prediction_type=prediction_type)(X_T, LEVEL)
    np.testing.assert_array_equal(found.x_0, jnp.clip(raw.x_0, -1, 1))
    np.testing.assert_allclose(
        add_noise(LEVEL, found.x_0, found.eps), X_T, rtol=0, atol=1e-13
    )  # measured: 4e-16
    changed = jnp.abs(raw.x_0) > 1
    assert 0 < changed.sum() < changed.size
    assert jnp.all((jnp.abs(found.eps - raw.eps) > 1e-6) == changed)


def test_the_networks_own_eps_can_be_kept():
    found = make_denoise_fn(network, None, rederive_eps=False)(X_T, LEVEL)
    np.testing.assert_array_equal(found.eps, OUTPUT)
    assert jnp.abs(found.x_0).max() == 1


def test_the_network_gets_one_timestep_per_image_and_the_extra_arguments():
    seen = {}

    def spy(params, x_t, t, **network_args):
        seen.update(params=params, t=t, **network_args)
        return x_t

    make_denoise_fn(spy, "params", label="label")(X_T, LEVEL)
    assert (seen["params"], seen["label"]) == ("params", "label")
    assert seen["t"].tolist() == [60] * 4


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_predictions_have_the_dtype_of_the_image(dtype):
    schedule = named_schedule("linear", 100, dtype=dtype)
    denoise = make_denoise_fn(lambda params, x_t, t: OUTPUT.astype(jnp.bfloat16), None)
    found = denoise(X_T.astype(dtype), level_at(schedule, jnp.array(60)))
    assert (found.x_0.dtype, found.eps.dtype) == (dtype, dtype)


def test_a_learned_variance_is_the_second_half_of_the_channels():
    def two_headed(params, x_t, t):
        return jnp.concatenate([OUTPUT, 7 * OUTPUT], axis=-1)

    found = make_denoise_fn(two_headed, None, learned_variance=True)(X_T, LEVEL)
    expected = make_denoise_fn(network, None)(X_T, LEVEL)
    np.testing.assert_array_equal(found.x_0, expected.x_0)
    np.testing.assert_array_equal(found.eps, expected.eps)
    np.testing.assert_array_equal(found.raw_variance, 7 * OUTPUT)


def test_an_earlier_x_0_is_passed_to_the_network_if_there_is_one():
    def spy(params, x_t, t, x_self_cond=None):
        return x_t if x_self_cond is None else x_self_cond

    denoise = make_denoise_fn(spy, None, prediction_type="x_0", clip_x_0=False)
    np.testing.assert_array_equal(denoise(X_T, LEVEL).x_0, X_T)
    np.testing.assert_array_equal(denoise(X_T, LEVEL, x_self_cond=OUTPUT).x_0, OUTPUT)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float64", "float64"), ("float32", "float32"), ("bfloat16", "float32")]
)
def test_rescaled_timesteps_lie_between_0_and_1000(dtype, expected):
    seen = {}

    def spy(params, x_t, t, label):
        seen.update(t=t, label=label)
        return x_t

    rescale_timesteps(spy, 40)(None, X_T[:3].astype(dtype), jnp.array([0, 1, 39]), label=3)
    t = seen["t"]
    assert seen["label"] == 3
    assert t.tolist() == [0, 25, 975]
    assert t.dtype == expected


def test_a_threshold_is_a_quantile_of_each_image_and_at_least_one():
    x_0 = jnp.stack([jnp.linspace(-0.9, 0.5, 9), jnp.linspace(0.0, 4.0, 9)]).reshape(2, 3, 3, 1)
    found = threshold(x_0, 0.75)
    np.testing.assert_array_equal(found[0], x_0[0])
    np.testing.assert_allclose(found[1], jnp.minimum(x_0[1], 3) / 3, rtol=1e-15)
    np.testing.assert_allclose(threshold(x_0, 0.75, 2.0)[1], jnp.minimum(x_0[1], 2) / 2, rtol=1e-15)


def test_a_dynamic_threshold_replaces_clipping():
    raw = to_prediction(OUTPUT, X_T, LEVEL, "eps")
    found = make_denoise_fn(network, None, dynamic_threshold=0.8)(X_T, LEVEL)
    np.testing.assert_array_equal(found.x_0, threshold(raw.x_0, 0.8))
    np.testing.assert_allclose(add_noise(LEVEL, found.x_0, found.eps), X_T, rtol=0, atol=1e-13)
    assert jnp.abs(found.x_0 - jnp.clip(raw.x_0, -1, 1)).max() > 0.1


def test_the_clean_image_keeps_the_networks_eps():
    clean = level_at(SCHEDULE, jnp.array(-1))
    found = make_denoise_fn(network, None)(X_T, clean)
    np.testing.assert_array_equal(found.eps, OUTPUT)
