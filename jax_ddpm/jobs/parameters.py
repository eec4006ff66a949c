"""Load a run's parameters: from the newest or the best checkpoint, averaged or not.

The functions import what reads checkpoints themselves: a command's help needs no Orbax.
"""

import jax

from jax_ddpm import runs
from jax_ddpm.config.jobs import EMA, Weights
from jax_ddpm.config.run import Config
from jax_ddpm.devices.layout import shapes_to_load
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.build import Parts
from jax_ddpm.optim.averages import Params
from jax_ddpm.training.state import TrainState


def load_params(run: runs.Run, parts: Parts, weights: Weights = EMA) -> tuple[Params, str]:
    """Load the parameters that `weights` asks for, on one device, with a description of them.

    Raises UserError if the run does not have them.
    """
    return choose_params(run, load_state(run, parts, best=weights.checkpoint == "best"), weights)


def choose_params(run: runs.Run, state: TrainState, weights: Weights) -> tuple[Params, str]:
    """Choose the parameters in `state` that `weights` asks for, with a description of them.

    Raises UserError if the run does not have them.
    """
    from jax_ddpm.runs.averages import select_params

    return select_params(run, state, weights.weights, weights.posthoc_ema, weights.posthoc_step)


def check_weights(config: Config, weights: Weights) -> None:
    """Raise UserError if a run of `config` cannot have `weights`. Reads no checkpoint."""
    from jax_ddpm.runs.averages import check_selection

    check_selection(config, weights.weights, weights.posthoc_ema, weights.posthoc_step)


def load_state(run: runs.Run, parts: Parts, *, best: bool = False) -> TrainState:
    """Load the train state from the newest intact checkpoint, or from the best, on one device.

    Raises UserError if the run has no such checkpoint.
    """
    from jax_ddpm.runs.checkpoint import find_best_step, open_checkpoints, restore

    if not run.checkpoints.is_dir():
        raise UserError(f"{run.folder} has no checkpoint yet: train it first")
    like = shapes_to_load(jax.eval_shape(parts.init_state, jax.random.key(0)))
    with open_checkpoints(run.checkpoints) as checkpoints:
        step = find_best_step(checkpoints) if best else None
        if best and step is None:
            raise UserError(
                f"{run.folder} was trained without --train.keep-best: it has no best checkpoint"
            )
        return restore(checkpoints, like, step=step)
