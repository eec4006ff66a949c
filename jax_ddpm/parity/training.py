"""Train jax_ddpm and torch_ref in lock-step, from the same parameters on the same batches."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import torch

from jax_ddpm.models import NetworkFns
from jax_ddpm.optim.averages import make_ema
from jax_ddpm.optim.optimizers import make_learning_rate, make_optimizer
from jax_ddpm.parity.measure import find_peak
from jax_ddpm.parity.quantities import Pair
from jax_ddpm.parity.twins import convert_tree, draws, make_twin_networks, to_torch
from jax_ddpm.process.losses import make_loss_fn
from jax_ddpm.process.schedules import linear_betas, make_schedule
from jax_ddpm.training.state import TrainState, create_state
from jax_ddpm.training.update import Metrics, make_update
from torch_ref.schedule import make_schedule as make_ref_schedule
from torch_ref.train import Trainer

StepInputs = tuple[np.ndarray, np.ndarray, np.ndarray]
SHAPE = (4, 8, 8, 3)
STEPS = 50
# As in Ho et al.: warm-up from 0, clipping at 1 (which takes effect), constant decay.
SETTINGS = {"warmup_steps": 5, "max_grad_norm": 1.0, "ema_decay": 0.9, "ema_warmup": False}


def draw_inputs(dtype: str, num_steps: int, seed: int = 0) -> list[StepInputs]:
    """Draw (x_0, t, noise) for every step."""
    seeds = range(3 * num_steps * seed, 3 * num_steps * (seed + 1), 3)

    def draw_step(seed: int) -> StepInputs:
        x_0 = np.clip(draws(SHAPE, dtype, seed), -1, 1)
        t = np.random.default_rng(seed + 1).integers(0, 1000, SHAPE[0])
        return x_0, t, draws(SHAPE, dtype, seed + 2)

    return [draw_step(seed) for seed in seeds]


def run_our_steps(
    network: NetworkFns, params: Any, dtype: str, inputs: list[StepInputs], settings: dict[str, Any]
) -> Iterator[tuple[TrainState, Metrics]]:
    """Train with jax_ddpm; yield the state after each step, and its metrics."""
    rate = make_learning_rate(1e-3, warmup_steps=settings["warmup_steps"])
    optimizer = make_optimizer(rate, betas=(0.9, 0.99), max_grad_norm=settings["max_grad_norm"])
    schedule = make_schedule(linear_betas(1000), dtype=dtype)
    ema = make_ema("ramp" if settings["ema_warmup"] else "constant", settings["ema_decay"])
    update = jax.jit(make_update(make_loss_fn(network.apply_fn, schedule), optimizer, ema=ema))
    state = create_state(params, optimizer)
    for x_0, t, noise in inputs:
        state, metrics = update(state, x_0, t, noise)
        yield state, metrics


def make_trainer(model: torch.nn.Module, dtype: str, settings: dict[str, Any]) -> Trainer:
    """Make the reference's trainer with the settings of `run_our_steps`."""
    schedule = make_ref_schedule(linear_betas(1000), getattr(torch, dtype))
    return Trainer(model, schedule, 1e-3, betas=(0.9, 0.99), **settings)


def pair_training(
    dtype: str, seed: int, num_steps: int = STEPS, settings: dict[str, Any] = SETTINGS
) -> Iterator[Pair]:
    """Pair loss, gradient norm, parameters, their average and Adam's moments, step by step."""
    model, network, params = make_twin_networks(dtype, seed=seed + 2)
    trainer = make_trainer(model, dtype, settings)
    inputs = draw_inputs(dtype, num_steps, seed)
    ours, theirs = [], []
    states = run_our_steps(network, params, dtype, inputs, settings)
    for batch, (state, metrics) in zip(inputs, states, strict=True):
        adam = state.opt_state[1][0]
        trees = state.params, state.ema_params, adam.mu, adam.nu
        ours.append((metrics["loss"], metrics["grad_norm"], *trees))
        scalars = [value.numpy() for value in trainer.train_step(*map(to_torch, batch))]
        theirs.append(
            (*scalars, *(convert_tree(tensors, network) for tensors in _list_tensors(trainer)))
        )
    yield from _pair_stacked(_stack(ours), _stack(theirs))


def _list_tensors(trainer: Trainer) -> Iterator[Mapping[str, torch.Tensor]]:
    """Yield parameters, their average, and Adam's two moments, each by parameter name."""
    params = dict(trainer.model.named_parameters())
    yield params
    yield trainer.ema
    for moment in ("exp_avg", "exp_avg_sq"):
        yield {name: trainer.optimizer.state[p][moment] for name, p in params.items()}


def _stack(steps: list[Any]) -> Any:
    """Stack the trees of all steps to one tree, with the steps along the first axis."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *steps)


def _pair_stacked(ours: Any, theirs: Any) -> Iterator[Pair]:
    kinds = {
        "loss": "loss",
        "gradient norm": "gradient norm",
        "parameters": "parameters",
        "moving average": "EMA",
        "Adam's first moment": "Adam's moments",
        "Adam's second moment": "Adam's moments",
    }
    group, along = "Adam with warm-up, clipping and EMA", "training step"
    for (name, kind), mine, reference in zip(kinds.items(), ours, theirs, strict=True):
        tolerance = f"training: {kind}"
        if kind not in ("parameters", "EMA"):
            yield Pair(group, name, tolerance, mine, reference, along)
            continue
        peak = find_peak(reference)
        for keys in (False, True):
            what = f"{name}, attention's key biases" if keys else name
            of_keys = "training: key biases" if keys else tolerance
            a, b = (_select(tree, keys) for tree in (mine, reference))
            yield Pair(group, what, of_keys, a, b, along, peak)


def _select(tree: Any, key_biases: bool) -> dict[str, Any]:
    """Select the key biases of attention, or all other leaves, by name.

    The gradient of a key bias is zero in exact arithmetic: Adam amplifies the rounding noise to
    full-size steps.
    """
    with_paths = jax.tree_util.tree_leaves_with_path(tree)
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in with_paths}
    return {
        name: leaf for name, leaf in leaves.items() if name.endswith("['k']['bias']") == key_biases
    }
