"""Twenty training steps in lock-step: jax_ddpm against torch_ref."""

import jax
import numpy as np
import pytest
import torch
from parity import draws, params_of, to_torch, tree_of, twin_networks

from jax_ddpm.schedules import linear_betas, make_schedule
from jax_ddpm.training.optim import make_learning_rate, make_optimizer
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import make_update
from torch_ref.schedule import make_schedule as make_ref_schedule
from torch_ref.train import Trainer

THEIRS = "torch_ref"
STEPS = 20
SETTINGS = [
    # As Ho et al.: warm-up from 0, clipping at 1, constant decay. The clipping is active.
    {"warmup_steps": 5, "max_grad_norm": 1.0, "ema_decay": 0.9, "ema_warmup": False},
    {"warmup_steps": 0, "max_grad_norm": None, "ema_decay": 0.999, "ema_warmup": True},
]


def our_steps(network, params, dtype, batches, settings):
    """The state after every step, and its metrics."""
    rate = make_learning_rate(1e-3, warmup_steps=settings["warmup_steps"])
    optimizer = make_optimizer(rate, betas=(0.9, 0.99), max_grad_norm=settings["max_grad_norm"])
    schedule = make_schedule(linear_betas(1000), dtype=dtype)
    ema = {name: settings[name] for name in ("ema_decay", "ema_warmup")}
    update = jax.jit(make_update(network.apply_fn, optimizer, schedule, **ema))
    state = create_state(params, optimizer)
    for x_0, t, noise in batches:
        state, metrics = update(state, x_0, t, noise)
        yield state, metrics


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(SETTINGS[0], id="as in the paper"),
        pytest.param(SETTINGS[1], id="ema warm-up, no clipping", marks=pytest.mark.slow),
    ],
)
def test_twenty_steps(compare, dtype, settings):
    model, network, params = twin_networks(dtype, seed=2)
    schedule = make_ref_schedule(linear_betas(1000), getattr(torch, dtype))
    trainer = Trainer(model, schedule, 1e-3, betas=(0.9, 0.99), **settings)
    shape = (4, 8, 8, 3)
    batches = [
        (np.clip(draws(shape, dtype, 3 * i), -1, 1),
         np.random.default_rng(3 * i + 1).integers(0, 1000, 4),
         draws(shape, dtype, 3 * i + 2))
        for i in range(STEPS)
    ]  # fmt: skip
    ours = our_steps(network, params, dtype, batches, settings)
    for batch, (state, metrics) in zip(batches, ours, strict=True):  # noqa: B007
        loss, grad_norm = trainer.train_step(*map(to_torch, batch))
        compare("training: loss", metrics["loss"], loss.numpy(), dtype)
        compare("training: gradient norm", metrics["grad_norm"], grad_norm.numpy(), dtype)
    moments = {
        name: trainer.optimizer.state[parameter] for name, parameter in model.named_parameters()
    }
    adam = state.opt_state[1][0]
    for ours_moment, key in ((adam.mu, "exp_avg"), (adam.nu, "exp_avg_sq")):
        theirs = tree_of({name: moment[key] for name, moment in moments.items()}, network)
        compare("training: Adam's moments", ours_moment, theirs, dtype)
    compare("training: parameters", state.params, params_of(model, network), dtype)
    compare("training: EMA", state.ema_params, tree_of(trainer.ema, network), dtype)
    assert int(state.step) == int(adam.count) == STEPS == trainer.step
