import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.process.losses import make_loss_fn
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.training.validation import make_validation_loss, spread_timesteps


@pytest.mark.parametrize(("n", "T"), [(1, 10), (10, 10), (7, 1000), (1000, 10)])
def test_timesteps_cover_the_chain_evenly(n, T):
    t = spread_timesteps(n, T)
    assert sorted(t) == [int(T * (i + 0.5) / n) for i in range(n)]
    if n >= T:
        assert np.bincount(t, minlength=T).tolist() == [n // T] * T


def apply_fn(params, x_t, t, x_self_cond=None, **_):
    assert x_self_cond is None or x_self_cond.shape == x_t.shape
    return params * x_t


def test_the_loss_of_an_image_depends_only_on_its_number_and_timestep():
    schedule = named_schedule("linear", 10)
    fn = jax.jit(make_validation_loss(make_loss_fn(apply_fn, schedule), self_condition=True))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 4, 4, 1), np.uint8)
    t, numbers = spread_timesteps(6, 10), np.arange(6, dtype=np.int32)
    whole = fn(jnp.float32(0.5), (pixels, None, t, numbers))
    part = [4, 1]
    some = fn(jnp.float32(0.5), (pixels[part], None, t[part], numbers[part]))
    np.testing.assert_allclose(some, whole[np.array(part)], rtol=1e-6)  # measured: 0
    others = fn(jnp.float32(0.5), (pixels, None, t, numbers + 6))
    assert np.abs(others - whole).min() > 1e-4  # other noise


def test_labels_are_given_to_a_network_that_takes_them():
    def with_label(params, x_t, t, label):
        return params * x_t * label[:, None, None, None]

    loss_fn = make_loss_fn(with_label, named_schedule("linear", 10))
    fn = make_validation_loss(loss_fn, class_conditional=True)
    pixels, labels = np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 3], np.int32)
    numbers = np.zeros(2, np.int32)
    one, other = fn(jnp.float32(1), (pixels, labels, np.full(2, 9, np.int32), numbers))
    assert abs(one - other) > 0.1
