"""Networks of any kind plug in within five lines: one training step, and samples."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jax_ddpm as jd

SHAPE = (4, 8, 8, 1)


def make_plain_jax():
    def apply_fn(params, x_t, t):
        h = jax.lax.conv_general_dilated(
            x_t, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return h + params["bias"] * (t / 1000)[:, None, None, None]

    return apply_fn, {"conv": 0.1 * jnp.ones((3, 3, 1, 1)), "bias": jnp.zeros((1, 1, 1, 1))}


def make_nnx():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 1, (3, 3), rngs=rngs)

        def __call__(self, x_t, t):
            times = jnp.broadcast_to((t / 1000)[:, None, None, None], x_t.shape)
            return self.conv(jnp.concatenate([x_t, times.astype(x_t.dtype)], axis=-1))

    graphdef, params = nnx.split(Net(nnx.Rngs(0)))
    return lambda params, x_t, t: nnx.merge(graphdef, params)(x_t, t), params


def make_equinox():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        conv: eqx.nn.Conv2d

        def __call__(self, x_t, t):  # one image, channels first
            times = jnp.full_like(x_t, 1) * t / 1000
            return self.conv(jnp.concatenate([x_t, times]))

    net = Net(eqx.nn.Conv2d(2, 1, 3, padding=1, key=jax.random.key(0)))
    params, static = eqx.partition(net, eqx.is_array)

    def apply_fn(params, x_t, t):
        image = jax.vmap(eqx.combine(params, static))(jnp.moveaxis(x_t, -1, 1), t)
        return jnp.moveaxis(image, 1, -1)

    return apply_fn, params


def make_linen():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x_t, t):
            return nn.Conv(1, (3, 3))(x_t) + nn.Dense(1)(t[:, None] / 1000)[:, None, None]

    net = Net()
    params = net.init(jax.random.key(0), jnp.zeros(SHAPE), jnp.zeros(4, int))
    return net.apply, params


def make_converted():
    torch = pytest.importorskip("torch")
    from torch_ref.lucidrains import LucidrainsUNet

    torch.manual_seed(0)
    model = LucidrainsUNet(dim=8, dim_mults=(1,), channels=1, flash_attn=False)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    network = jd.from_torch(weights, "lucidrains", {"dim": 8, "dim_mults": (1,), "channels": 1})
    return network.apply, network.params


GUARD = (pytest.mark.slow, pytest.mark.guard)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        make_plain_jax,
        make_nnx,
        make_equinox,
        make_linen,
        pytest.param(make_converted, marks=GUARD),  # 8 s
    ],
)
def test_a_network_is_trained_and_sampled(make):
    # As in a user's session: in float32, and with the broadcasts that some frameworks need.
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        check_training_and_sampling(*make())


def check_training_and_sampling(apply_fn, params):
    diffusion = jd.Diffusion(jd.named_schedule("cosine", 100), prediction_type="v")
    images = jnp.tanh(jax.random.normal(jax.random.key(1), SHAPE, jnp.float32))
    optimizer = jd.make_optimizer(1e-2)

    @jax.jit
    def step(params, opt_state, key):
        def mean_loss(params):
            return diffusion.loss(apply_fn, params, images, key).mean()

        loss, grads = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, key = optimizer.init(params), jax.random.key(2)
    new, opt_state, before = step(params, opt_state, key)
    _, _, after = step(new, opt_state, key)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    assert after < before
    drawn = diffusion.sample(apply_fn, new, key, SHAPE, sampler="ddim", steps=3)
    assert drawn.shape == SHAPE
    assert np.isfinite(drawn).all()
