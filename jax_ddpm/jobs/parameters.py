"""Load a run's parameters: from the newest, the best or a given checkpoint, averaged or not.

The functions import what reads checkpoints themselves: a command's help needs no Orbax.
"""

from typing import TYPE_CHECKING

import jax

from jax_ddpm import runs
from jax_ddpm.config.jobs import EMA, Weights
from jax_ddpm.config.run import Config
from jax_ddpm.devices.layout import shapes_to_load
from jax_ddpm.errors import UserError, check_choice, require
from jax_ddpm.jobs.build import Parts
from jax_ddpm.optim.averages import Params
from jax_ddpm.training.state import TrainState

if TYPE_CHECKING:
    from jax_ddpm.runs.checkpoint import Checkpoints

BEST = "best"


def load_params(run: runs.Run, parts: Parts, weights: Weights = EMA) -> tuple[Params, str]:
    """Load the parameters that `weights` asks for, on one device, with a description of them.

    Raises UserError if the run does not have them.
    """
    return choose_params(run, load_state(run, parts, weights.checkpoint), weights)


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
    wanted = weights.checkpoint
    if not (wanted.isascii() and wanted.isdigit()):
        check_choice("--checkpoint", wanted, ("newest", "best", "STEP"))
        require(wanted != "STEP", "--checkpoint", wanted, "newest, best or the step of one")
    if wanted == BEST and not config.train.keep_best:
        raise UserError(
            "--checkpoint best: this run was trained without --train.keep-best, so no checkpoint "
            "was kept because it is the best. Give the step of one, or newest"
        )


def load_state(run: runs.Run, parts: Parts, wanted: str = "newest") -> TrainState:
    """Load the train state from the newest intact checkpoint, or from the one `wanted`.

    `wanted` is "newest", "best", or a step. The state is on one device. Raises UserError if the run
    has no such checkpoint, or its configuration is that of another run.
    """
    from jax_ddpm.runs.checkpoint import describe, open_checkpoints, restore

    require_checkpoints(run)
    like = shapes_to_load(jax.eval_shape(parts.init_state, jax.random.key(0)))
    with open_checkpoints(run.checkpoints) as checkpoints:
        state = restore(checkpoints, like, step=find_step(checkpoints, wanted))
        step = int(state.step)
        runs.require_own_checkpoint(run, step, describe(checkpoints, step))
    return state


def choose_step(run: runs.Run, wanted: str = "newest") -> int:
    """The step of the checkpoint that `load_state` would load. Reads only descriptions."""
    from jax_ddpm.runs.checkpoint import describe, open_checkpoints, read_newest

    require_checkpoints(run)
    with open_checkpoints(run.checkpoints) as checkpoints:
        if (step := find_step(checkpoints, wanted)) is not None:
            return step
        return read_newest(checkpoints, lambda step: (describe(checkpoints, step), step))[1]


def require_checkpoints(run: runs.Run) -> None:
    """Raise UserError if `run` has no folder of checkpoints."""
    if not run.checkpoints.is_dir():
        raise UserError(f"{run.folder} has no checkpoint yet: train it first")


def find_step(checkpoints: "Checkpoints", wanted: str) -> int | None:
    """Find the step of the checkpoint `wanted` (see `load_state`); None for the newest.

    Raises UserError if it is not there.
    """
    from jax_ddpm.runs.checkpoint import find_best_step, list_steps

    if wanted == "newest":
        return None
    kept = list_steps(checkpoints)
    step = find_best_step(checkpoints) if wanted == BEST else int(wanted)
    if step not in kept:
        there = ", ".join(map(str, kept)) or "none"
        raise UserError(
            f"--checkpoint {wanted}: {checkpoints.directory} has no such checkpoint, but those of "
            f"steps {there}"
        )
    return step
