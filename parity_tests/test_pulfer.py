"""MyUNet and MyDDPM of BrianPulfer's tutorial: recorded numbers, and torch_ref's network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, from_torch, to_state_dict, to_torch
from jax_ddpm.models import PulferConfig, make_network, parameter_shapes
from jax_ddpm.models.pulfer import TimeEmbedding, interleaved_embedding
from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.diffusion import q_sample
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.losses import diffusion_loss
from jax_ddpm.process.schedules import linear_betas, make_schedule
from jax_ddpm.samplers import ddpm, sample
from parity_tests.comparing import (
    DOUBLE_FIRST,
    GOLDENS,
    QUICK,
    SHORT,
    load_weights,
    nchw_to_nhwc,
    read_golden,
    to_jax,
)
from torch_ref import pulfer as ref

THEIRS = "Pulfer (recorded)"
CASE = "brianpulfer/myunet"


@pytest.fixture(scope="module")
def recorded():
    """(configuration, arrays, our network with the recorded weights)."""
    manifest, io = read_golden(CASE)
    return manifest["config"], io, from_torch(load_weights(GOLDENS / CASE), "pulfer")


@pytest.fixture(scope="module")
def forward(recorded):
    """The network as one compiled function, which casts the parameters to the images' dtype."""
    apply = jax.jit(recorded[2].apply, compiler_options=QUICK)
    return lambda params, x_t, t: apply(cast(params, x_t.dtype), x_t, t)


def cast(params, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def to_images(array, dtype):
    return jnp.asarray(nchw_to_nhwc(array).astype(dtype))


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
def test_output(compare, recorded, forward, dtype):
    _, io, network = recorded
    out = forward(network.params, to_images(io["in.x"], dtype), io["in.t"])
    compare("MyUNet", out, nchw_to_nhwc(io[f"{SHORT[dtype]}.out"]), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gradients(compare, recorded, dtype):
    config, io, network = recorded
    x, target = to_images(io["in.x"], dtype), to_images(io["in.target"], dtype)
    params = cast(network.params, dtype)

    def loss_fn(params, x):
        return ((network.apply(params, x, io["in.t"]) - target) ** 2).mean()

    loss, (grads, grad_x) = jax.jit(jax.value_and_grad(loss_fn, (0, 1)), compiler_options=QUICK)(
        params, x
    )
    theirs = {name[4:]: io[name] for name in io if name.startswith(SHORT[dtype])}
    compare("MyUNet", loss, theirs["loss"].astype(dtype).reshape(()), dtype)
    compare("MyUNet: gradients", grad_x, nchw_to_nhwc(theirs["grad_x"]), dtype)
    grads, params = (to_state_dict(tree, PEERS["pulfer"]) for tree in (grads, params))
    assert np.all(grads.pop("time_embed.weight") == 0)
    assert grads.keys() == set(config["grad_rows"])
    rows = [summarize_gradient(grads[name], params[name]) for name in config["grad_rows"]]
    compare("MyUNet: gradients", np.array(rows, dtype), theirs["param_grads"].astype(dtype), dtype)


def summarize_gradient(gradient, parameter):
    return gradient.sum(), np.linalg.norm(gradient.ravel()), (gradient * parameter).sum()


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
def test_process(compare, recorded, forward, dtype):
    """Tables, noised images, and the loss of the tutorial's training loop."""
    config, io, network = recorded
    betas = linear_betas(config["n_steps"], start=config["min_beta"], end=config["max_beta"])
    schedule = make_schedule(betas, dtype=dtype)
    theirs = {name[4:]: io[name] for name in io if name.startswith(SHORT[dtype])}
    compare("schedule tables", schedule.betas, theirs["betas"], dtype)
    compare("schedule tables", 1 - schedule.betas, theirs["alphas"], dtype)
    compare("schedule tables", schedule.alphas_cumprod, theirs["alpha_bars"], dtype)
    x_0, noise = (jnp.asarray(to_images(a, dtype)) for a in (io["in.x0"], io["in.noise"][0]))
    t = jnp.asarray(io["in.t"])
    compare("q_sample", q_sample(schedule, x_0, t, noise), nchw_to_nhwc(theirs["noisy"]), dtype)
    loss = diffusion_loss(forward, network.params, schedule, x_0, t, noise)
    compare("losses", loss.mean(), theirs["mse"].astype(dtype).reshape(()), dtype)


@pytest.mark.slow
def test_table_of_time_embeddings(compare, recorded, dtype):
    config, io, network = recorded
    theirs = io[f"{SHORT[dtype]}.sinusoidal_embedding"]
    compare("interleaved embedding", interleaved_embedding(*theirs.shape, dtype), theirs, dtype)
    table = interleaved_embedding(config["n_steps"], config["time_emb_dim"])
    stored = network.params["time_embed"]["embedding"]
    compare("interleaved embedding", table, stored, "float32")


@pytest.mark.slow
def test_generate_new_images(compare, recorded, forward, dtype):
    """Its chain of 8 steps, with variance beta and without clipping."""
    config, io, network = recorded
    betas = linear_betas(config["sample_steps"], start=config["min_beta"], end=config["max_beta"])
    noises = to_images(io["in.noise4"], dtype)
    denoise_fn = make_denoise_fn(network.apply, cast(network.params, dtype), clip_x_0=False)
    levels = level_at(make_schedule(betas, dtype=dtype), jnp.arange(len(betas) - 1, -2, -1))
    noise_fn = lambda i: noises[jnp.minimum(i + 1, len(noises) - 1)]  # noqa: E731 (none at t = 0)
    x_0, _ = sample(ddpm("fixed_large"), denoise_fn, levels, noises[0], noise_fn)
    compare("recorded chains", x_0, nchw_to_nhwc(io[f"{SHORT[dtype]}.generate_new_images"]), dtype)


def test_weights_go_back_bit_for_bit(recorded):
    weights = load_weights(GOLDENS / CASE)
    back = to_torch(recorded[2])
    assert list(back) and back.keys() == weights.keys()
    for name, array in weights.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(back[name], array)


def test_files_of_the_whole_model_are_read(recorded):
    """MyDDPM saves its network under a prefix."""
    weights = load_weights(GOLDENS / CASE)
    network = from_torch({f"network.{name}": array for name, array in weights.items()}, "pulfer")
    assert network.config == PulferConfig(n_steps=200, time_emb_dim=100)
    jax.tree.map(np.testing.assert_array_equal, network.params, recorded[2].params)
    with pytest.raises(UserError, match="time_embed"):
        from_torch(weights, "pulfer", {"n_steps": 100})


@pytest.mark.slow
@pytest.mark.parametrize(("n_steps", "dim"), [(1000, 100), (3, 1)])
def test_the_reference_has_the_same_parameters(n_steps, dim):
    """Names and shapes are equal, and the tables up to rounding."""
    theirs = {k: v.numpy() for k, v in ref.PulferUNet(n_steps, dim).state_dict().items()}
    network = from_torch(theirs, "pulfer")
    assert network.config == PulferConfig(n_steps=n_steps, time_emb_dim=dim)
    assert sum(leaf.size for leaf in jax.tree.leaves(network.params)) == sum(
        array.size for array in theirs.values()
    )
    np.testing.assert_allclose(
        interleaved_embedding(n_steps, dim), theirs["time_embed.weight"], atol=1e-4
    )


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
def test_the_reference_computes_the_same(compare, recorded, forward, dtype):
    _, io, network = recorded
    theirs = ref.PulferUNet(200, 100)
    theirs.load_state_dict({k: torch.tensor(v) for k, v in to_torch(network).items()})
    theirs = theirs.to(getattr(torch, dtype))
    with torch.no_grad():
        out = theirs(torch.from_numpy(io["in.x"].astype(dtype)), torch.from_numpy(io["in.t"]))
    compare("MyUNet", to_jax(out), nchw_to_nhwc(io[f"{SHORT[dtype]}.out"]), dtype)


@pytest.mark.slow
def test_initial_parameters_are_distributed_as_in_torch():
    """Uniform within 1/sqrt(fan_in); the table is the same."""
    config = PulferConfig(n_steps=5)
    init = make_network(config, config.example_shape).init
    ours = to_state_dict(init(jax.random.key(0)), PEERS["pulfer"])
    for name, parameter in ref.PulferUNet(5).state_dict().items():
        expected, found = parameter.numpy(), ours[name]
        if name == "time_embed.weight" or ".ln." in name:
            np.testing.assert_allclose(found, expected, atol=1e-6)
        elif found.size > 150:
            np.testing.assert_allclose(np.abs(found).max(), np.abs(expected).max(), rtol=0.1)
            np.testing.assert_allclose(found.std(), expected.std(), rtol=0.2)


def test_settings_that_cannot_work_are_refused():
    config = PulferConfig(n_steps=4)
    with pytest.raises(ValueError, match="1 output channel, but 2"):
        make_network(config, (28, 28, 1), out_channels=2)
    with pytest.raises(ValueError, match="32x32, but this network needs 28x28"):
        make_network(config, (32, 32, 1))
    with pytest.raises(ValueError, match="n-steps is 0"):
        PulferConfig(n_steps=0).check()
    with pytest.raises(ValueError, match="time-emb-dim is 0"):
        PulferConfig(time_emb_dim=0).check()
    assert parameter_shapes(config)["time_embed"]["embedding"].shape == (4, 100)


def test_a_timestep_without_a_row_gives_nan():
    """Clamping it would silently use another timestep."""
    layer = TimeEmbedding(4, 6)
    rows, _ = layer.init_with_output(jax.random.key(0), jnp.array([0, 3, 4]))
    assert np.isnan(rows).any(1).tolist() == [False, False, True]
