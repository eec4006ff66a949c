import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_ddpm.devices.layout import to_one_device
from jax_ddpm.devices.parallel import parallelize
from jax_ddpm.jobs.build import Parts
from jax_ddpm.models import NetworkFns, UNetConfig, make_network
from jax_ddpm.optim.averages import make_ema
from jax_ddpm.optim.optimizers import make_optimizer
from jax_ddpm.process.losses import make_loss_fn
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import example_keys, flip_at_random, make_train_step
from jax_ddpm.training.update import make_update

T = 50
SHAPE = (8, 8, 1)
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, *SHAPE), dtype=np.uint8)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def parts():
    """A float64 network with dropout, so that rounding cannot hide a difference."""
    config = UNetConfig(
        channels=4, channel_mult=(1,), num_res_blocks=1, attn_levels=(), num_groups=2, dropout=0.3
    )
    network = make_network(config, SHAPE, dtype=jnp.float64)
    schedule = named_schedule("linear", T, dtype=jnp.float64)
    rate = optax.constant_schedule(1e-3)
    return Parts(network, schedule, rate, make_optimizer(rate))


@pytest.fixture(scope="module")
def start(parts):
    """Makes the first state anew, for it is donated."""
    shapes = jax.eval_shape(parts.network.init, jax.random.key(0))
    numbers = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: numbers.normal(0, 0.2, leaf.shape), shapes)
    return lambda: create_state(jax.tree.map(jnp.asarray, params), parts.optimizer)


def maker(parts):
    def make_step(axis_name):
        loss_fn = make_loss_fn(parts.network.apply_fn, parts.schedule)
        update = make_update(loss_fn, parts.optimizer, ema=make_ema(decay=0.9), axis_name=axis_name)
        return make_train_step(update, T, random_flip=True, axis_name=axis_name)

    return make_step


@pytest.fixture(scope="module")
def jit_step(parts):
    return parallelize(maker(parts), "jit")


def run(step, state, num_steps=3, key=KEY):
    rows = []
    for i in range(num_steps):
        state, metrics = step(state, PIXELS[i], key)
        rows.append(jax.device_get(metrics))
    return to_one_device(state), rows


@pytest.fixture(scope="module")
def by_jit(jit_step, start):
    return run(jit_step, start())


def largest_difference(one, other):
    differences = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), one, other)
    return max(jax.tree.leaves(differences))


def test_eight_devices_give_the_answer_of_one(parts, start, by_jit):
    assert jax.local_device_count() == 8
    state, rows = run(parallelize(maker(parts), "pmap"), start())
    # Measured: 1e-7, for the loss is taken in float32, and 1e-15 for the state, which is float64.
    # A wrong mask, flip or noise of one image changes both by more than 1e-4.
    assert largest_difference(rows, by_jit[1]) < 2e-6
    assert largest_difference(state, by_jit[0]) < 1e-8
    assert state.step == 3


def test_the_same_key_gives_the_same_bits(jit_step, start, by_jit):
    state, rows = run(jit_step, start())
    assert rows == by_jit[1]
    assert largest_difference(state, by_jit[0]) == 0


def test_another_key_gives_other_noise(jit_step, start, by_jit):
    _, rows = run(jit_step, start(), num_steps=1, key=jax.random.key(8))
    assert abs(rows[0]["loss"] - by_jit[1][0]["loss"]) > 1e-3


def test_every_step_draws_anew(jit_step, start, by_jit):
    later = start().replace(step=jnp.array(1, jnp.int32))
    _, metrics = jit_step(later, PIXELS[0], KEY)
    assert abs(metrics["loss"] - by_jit[1][0]["loss"]) > 1e-3


def test_the_given_state_is_donated_and_the_new_one_is_whole(jit_step, start):
    state = start()
    old = jax.tree.leaves(state)
    new, _ = jit_step(state, PIXELS[0], KEY)
    assert all(leaf.is_deleted() for leaf in old)
    assert new.step == 1
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(jax.device_get(new)))


def linear_parts():
    """A 'network' output = w x_t, of which every number can be worked out by hand."""
    network = NetworkFns(
        lambda key: {"w": jnp.zeros(())}, lambda params, x_t, t, **_: params["w"] * x_t
    )
    schedule = named_schedule("cosine", T, dtype=jnp.float64)
    return network, schedule, optax.sgd(0.5)


@pytest.mark.parametrize("form", ["constant", "ramp"])
def test_an_update_is_gradient_descent_then_the_moving_average(form):
    network, schedule, optimizer = linear_parts()
    loss_fn = make_loss_fn(network.apply_fn, schedule)
    update = make_update(loss_fn, optimizer, ema=make_ema(form, 0.75))
    state = create_state({"w": jnp.array(0.2, jnp.float64)}, optimizer)
    x_0, noise = jax.random.normal(jax.random.key(0), (2, 4, 2, 2, 1), jnp.float64)
    t = jnp.array([0, 10, 20, 49])
    new, metrics = update(state, x_0, t, noise)
    at = (4, 1, 1, 1)
    x_t = schedule.sqrt_alphas_cumprod[t].reshape(at) * x_0
    x_t += schedule.sqrt_one_minus_alphas_cumprod[t].reshape(at) * noise
    gradient = (2 * (0.2 * x_t - noise) * x_t).mean()
    w, decay = 0.2 - 0.5 * gradient, 0.1 if form == "ramp" else 0.75
    # Measured: at most 2e-16 relative.
    np.testing.assert_allclose(metrics["loss"], ((0.2 * x_t - noise) ** 2).mean(), rtol=1e-12)
    np.testing.assert_allclose(metrics["grad_norm"], abs(gradient), rtol=1e-12)
    np.testing.assert_allclose(new.params["w"], w, rtol=1e-12)
    average = decay * 0.2 + (1 - decay) * w
    np.testing.assert_allclose(new.ema_params["w"], average, rtol=1e-12)
    assert new.step == 1


def test_keys_of_examples_come_from_their_place_in_the_global_batch():
    whole = example_keys(KEY, 16, None)
    spread = jax.vmap(lambda _: example_keys(KEY, 4, "axis"), axis_name="axis")(jnp.arange(4))
    np.testing.assert_array_equal(
        jax.random.key_data(spread).reshape(16, 2), jax.random.key_data(whole)
    )
    assert len(np.unique(jax.random.key_data(whole), axis=0)) == 16


def test_about_half_of_the_images_are_mirrored_left_to_right():
    images = jnp.arange(6.0).reshape(1, 2, 3, 1) * jnp.ones((1000, 1, 1, 1))
    found = flip_at_random(jax.random.split(KEY, 1000), images)
    flipped = jnp.all(found == images[:, :, ::-1], axis=(1, 2, 3))
    assert jnp.all(flipped | jnp.all(found == images, axis=(1, 2, 3)))
    # Five standard errors of 1000 coin flips. Measured: 0.25 of them.
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / 1000**0.5
