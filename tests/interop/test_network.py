"""`from_torch` and `to_torch` refuse mistakes, and their networks work like any other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, from_torch, to_state_dict
from jax_ddpm.models import LucidrainsConfig, parameter_shapes
from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.losses import make_loss_fn
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.samplers import ddim, sample
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import make_train_step
from jax_ddpm.training.update import make_update

T = 10
ARGUMENTS = {
    "dim": 4,
    "dim_mults": (1,),
    "channels": 1,
    "attn_heads": 1,
    "attn_dim_head": 2,
    "dropout": 0.5,
}


@pytest.fixture(scope="module")
def weights():
    numbers = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: numbers.normal(0, 0.2, leaf.shape).astype(np.float32),
        parameter_shapes(LucidrainsConfig(**ARGUMENTS)),
    )
    return to_state_dict(params, PEERS["lucidrains"])


@pytest.mark.slow
def test_the_network_is_trained_and_sampled_like_any_other(weights):
    """Only traced, because only the arguments could go wrong."""
    network, schedule = from_torch(weights, "lucidrains", ARGUMENTS), named_schedule("linear", T)
    optimizer = optax.sgd(0.1)
    update = make_update(make_loss_fn(network.apply, schedule), optimizer)
    state = jax.eval_shape(lambda: create_state(network.params, optimizer))
    pixels = jax.ShapeDtypeStruct((2, 4, 4, 1), jnp.uint8)
    after, _ = jax.eval_shape(make_train_step(update, T), state, pixels, jax.random.key(0))
    assert jax.tree.structure(after.params) == jax.tree.structure(network.params)

    def draw(x_T):
        levels = level_at(schedule, jnp.array([9, 4, -1]))
        denoise_fn = make_denoise_fn(network.apply, network.params)
        return sample(ddim(), denoise_fn, levels, x_T, lambda i: 0 * x_T)[0]

    x_T = jax.ShapeDtypeStruct((2, 4, 4, 1), jnp.float32)
    assert jax.eval_shape(draw, x_T).shape == x_T.shape


@pytest.mark.slow
@pytest.mark.guard
def test_a_step_of_gradient_descent_lowers_the_loss(weights):
    network, schedule = from_torch(weights, config=ARGUMENTS), named_schedule("linear", T)
    loss_fn = make_loss_fn(network.apply, schedule)
    x_0, t = jnp.full((2, 4, 4, 1), 0.5, jnp.float32), jnp.array([2, 8])
    noise = jax.random.normal(jax.random.key(1), x_0.shape, jnp.float32)

    def measure(params):
        return loss_fn(params, x_0, t, noise).mean()

    before, slopes = jax.jit(jax.value_and_grad(measure))(network.params)
    after = measure(jax.tree.map(lambda p, slope: p - 0.01 * slope, network.params, slopes))
    assert after < before


def test_dropout_is_used_only_in_training(weights):
    network = from_torch(weights, "lucidrains", ARGUMENTS)
    x_t, t = jnp.ones((2, 4, 4, 1), jnp.float32), jnp.array([3, 7])
    keys = jax.random.split(jax.random.key(0), 2)

    def draws_masks(**arguments):
        jaxpr = jax.make_jaxpr(lambda p: network.apply(p, x_t, t, **arguments))(network.params)
        return "random_bits" in str(jaxpr)

    assert draws_masks(train=True, dropout_keys=keys)
    assert not draws_masks(train=False, dropout_keys=keys)
    with pytest.raises(UserError, match="train=True needs dropout_keys"):
        draws_masks(train=True)


@pytest.mark.parametrize(
    ("shape", "arguments", "sentence"),
    [
        ((2, 3, 4, 4), {}, "have 4 channels, but this network takes 1"),
        ((2, 1, 4, 8), {}, "channels come last, so transpose NCHW"),
        ((2, 4, 4, 1), {"label": np.zeros(2, int)}, "no classes, but a label is given"),
        ((2, 4, 4, 1), {"y": np.zeros(2)}, "takes no argument 'y'"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_its_arguments_are_checked(weights, shape, arguments, sentence):
    network = from_torch(weights, "lucidrains", ARGUMENTS)
    with pytest.raises(UserError, match=sentence):
        network.apply(network.params, np.zeros(shape, np.float32), np.zeros(2), **arguments)


@pytest.mark.parametrize(
    ("source", "config", "sentence"),
    [
        ("lucidrain", {}, "source is 'lucidrain', .* did you mean 'lucidrains'"),
        ("pulfer", None, "--source is pulfer, but tensors such as .* are those of lucidrains"),
        ("lucidrains", {"dimm": 4}, "no argument 'dimm', did you mean 'dim'"),
        ("lucidrains", {"dim": 8}, "does not fit"),
        ("lucidrains", {"dropout": 2}, "dropout is 2, but it must be in"),
    ],
)
def test_mistakes_get_one_sentence(weights, source, config, sentence):
    with pytest.raises(UserError, match=sentence):
        from_torch(weights, source, config)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(weights, value):
    name = next(iter(weights))
    damaged = {**weights, name: np.full_like(weights[name], value)}
    with pytest.raises(UserError, match="not all finite"):
        from_torch(damaged, config=ARGUMENTS)
