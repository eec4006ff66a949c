"""Recorded traces of optimisers, learning rates and moving averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_ddpm.optim.averages import ema_rate, make_ema
from jax_ddpm.optim.optimizers import make_learning_rate, make_optimizer
from parity_tests.comparing import DOUBLE_FIRST, SHORT, read_golden

THEIRS = "recorded"


def average(make, start, params, dtype):
    """Average parameters [k, n]; return the average after each step."""
    params = jnp.asarray(params, dtype)

    def step(ema, now):
        ema = make(ema, now[0], now[1])
        return ema, ema

    return jax.lax.scan(step, jnp.asarray(start, dtype), (params, jnp.arange(len(params))))[1]


EMA_RUNS = {
    "diffusers/ema_and_lr": {
        "script": ("power", {"decay": 0.9999, "inv_gamma": 1.0, "power": 0.75}),
        "nowarmup": ("delayed_ramp", {"decay": 0.9999}),
        "after10_min": (
            "power",
            {"decay": 0.99, "update_after": 10, "min_decay": 0.3, "power": 2 / 3},
        ),
    },
    "lucidrains/ema": {
        "trainer": ("power", {"decay": 0.995, "update_after": 100, "every": 10}),
        "every1": ("power", {"decay": 0.9999, "update_after": 20}),
        "power34": ("power", {"decay": 0.999, "every": 2, "power": 0.75, "inv_gamma": 2.0}),
    },
}


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
@pytest.mark.parametrize(
    ("case", "tag"), [(case, tag) for case in EMA_RUNS for tag in EMA_RUNS[case]]
)
def test_moving_average(compare, dtype, case, tag):
    manifest, io = read_golden(case)
    (settings,) = (run for run in manifest["config"]["runs"] if run["tag"] == tag)
    form, ours = EMA_RUNS[case][tag]
    theirs = {
        {"beta": "decay", "update_every": "every", "update_after_step": "update_after"}.get(
            name, name
        ): value
        for name, value in settings.items()
    }
    assert theirs.items() >= {n: v for n, v in ours.items() if n in theirs}.items()
    found = average(make_ema(form, **ours), io["in.params"][0], io["in.params"], dtype)
    compare("moving averages", found, io[f"{SHORT[dtype]}.{tag}/ema"], dtype)


@pytest.mark.parametrize("tag", EMA_RUNS["diffusers/ema_and_lr"])
def test_decay_of_diffusers(compare, tag):
    _, io = read_golden("diffusers/ema_and_lr")
    form, ours = EMA_RUNS["diffusers/ema_and_lr"][tag]
    found = 1 - ema_rate(form, step=jnp.arange(60), **ours)
    compare("decays", found, io[f"f64.{tag}/decay"], "float64")


@pytest.mark.parametrize("tag", EMA_RUNS["lucidrains/ema"])
def test_decay_of_lucidrains(compare, tag):
    """The recording has the decay of the next update."""
    _, io = read_golden("lucidrains/ema")
    form, ours = EMA_RUNS["lucidrains/ema"][tag]
    ours = {name: value for name, value in ours.items() if name != "every"}
    found = 1 - ema_rate(form, step=jnp.arange(260), **ours)
    compare("decays", found, io[f"f64.{tag}/decay_after"], "float64")


@pytest.mark.parametrize(
    ("name", "decay"),
    [("cosine", "cosine"), ("linear", "linear"), ("constant_with_warmup", "constant")],
)
def test_learning_rates_of_diffusers(compare, name, decay):
    manifest, io = read_golden("diffusers/ema_and_lr")
    (its,) = (s for s in manifest["config"]["schedules"] if s["name"] == name)
    peak = manifest["config"]["lr"]
    rate = make_learning_rate(peak, warmup_steps=its["warmup"], decay=decay, num_steps=its["total"])
    found = jax.jit(jax.vmap(rate))(jnp.arange(its["total"]))
    compare("learning rates", found, io[f"f64.lr_{name}"], "float64")


def optimise(optimizer, start, grads, dtype):
    """Follow gradients [k, n]; return the parameters after each step."""
    start, grads = jnp.asarray(start, dtype), jnp.asarray(grads, dtype)

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (start, optimizer.init(start)), grads)[1]


TORCH_RUNS = {
    "adam_lr_trainer": ("adam", 1.0),
    "adamw_df_script": ("adamw", 1.0),
    "adam_bp": ("adam", None),
    "adamw_openai_wd": ("adamw", None),
}


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
@pytest.mark.parametrize("tag", TORCH_RUNS)
def test_torch_optimisers(compare, dtype, tag):
    manifest, io = read_golden("torch_optim/adam")
    (its,) = (run for run in manifest["config"]["runs"] if run["tag"] == tag)
    name, max_norm = TORCH_RUNS[tag]
    assert (its["kind"].lower(), its["clip"] or None) == (name, max_norm)
    optimizer = make_optimizer(
        its["lr"],
        optimizer=name,
        betas=tuple(its["betas"]),
        eps=its["eps"],
        weight_decay=its["wd"],
        max_grad_norm=max_norm,
        clip_eps=1e-6,
    )
    found = optimise(optimizer, io["in.w0"], io["in.grads"], dtype)
    compare("optimisers", found, io[f"{SHORT[dtype]}.{tag}/w"], dtype)
    if max_norm is not None:
        norms = jnp.linalg.norm(jnp.asarray(io["in.grads"], dtype), axis=1)
        compare("optimisers", norms, io[f"{SHORT[dtype]}.{tag}/grad_norm"], dtype)


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
def test_training_of_ho(compare, dtype):
    """TensorFlow's Adam, clipping and warm-up; the average before or after the update."""
    manifest, io = read_golden("hojonathanho/training_step")
    its = manifest["config"]
    rate = make_learning_rate(its["lr"], warmup_steps=its["warmup"])
    optimizer = make_optimizer(rate, optimizer="adam_tensorflow", max_grad_norm=its["clip"])
    theirs = {name[4:]: io[name] for name in io if name.startswith(SHORT[dtype])}
    rates = jax.jit(jax.vmap(rate))(jnp.arange(12)).astype(dtype)
    compare("learning rates", rates, theirs["lr"], dtype)
    norms = jnp.linalg.norm(jnp.asarray(io["in.grads"], dtype), axis=1)
    compare("optimisers", norms, theirs["gnorm"], dtype)

    start = jnp.asarray(io["in.w0"], dtype)
    params = optimise(optimizer, start, io["in.grads"], dtype)
    compare("optimisers", params, theirs["w"], dtype)
    ema = make_ema("constant", float(np.float32(its["ema"])))  # a float32 constant in their graph
    after = average(ema, start, params, dtype)
    before = average(ema, start, jnp.concatenate([start[None], params[:-1]]), dtype)
    compare("moving averages", after, theirs["ema_after"], dtype)
    compare("moving averages", before, theirs["ema_before"], dtype)
