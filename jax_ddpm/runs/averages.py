"""Select a run's parameters: raw, a moving average, or an average made from snapshots."""

from jax_ddpm.config.run import Config
from jax_ddpm.errors import UserError
from jax_ddpm.optim.averages import Params
from jax_ddpm.runs.folder import Run
from jax_ddpm.runs.snapshots import reconstruct_average
from jax_ddpm.training.state import TrainState


def select_average(state: TrainState, config: Config, weights: str = "ema") -> Params:
    """Select the parameters that `weights` names: "ema", "raw", or a decay of the run.

    Raises UserError if a run of `config` has no such average.
    """
    check_weights(config, weights)
    match weights:
        case "raw":
            return state.params
        case "ema":
            return state.ema_params
    averages = dict(zip(config.train.ema_decays, state.more_ema, strict=True))
    return averages.get(float(weights), state.ema_params)


def check_weights(config: Config, weights: str) -> None:
    """Raise UserError unless `weights` is "ema", "raw", or a decay of the run of `config`."""
    train = config.train
    decays = () if train.ema_form == "half_life" else (train.ema_decay, *train.ema_decays)
    if weights not in ("ema", "raw") and _number(weights) not in decays:
        known = ", ".join(["ema", "raw", *map(str, decays)])
        raise UserError(f"--weights is {weights}, but this run has {known}")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def select_params(
    run: Run,
    state: TrainState,
    weights: str = "ema",
    posthoc_ema: float | None = None,
    posthoc_step: int | None = None,
) -> tuple[Params, str]:
    """Select the parameters that a job asks for, and describe them in words.

    `weights` names an average of `state` (see `select_average`). With `posthoc_ema`, the average of
    that relative width after `posthoc_step` steps (by default, at the last snapshot) is
    reconstructed from the snapshots of `run`. Raises UserError if that is impossible.
    """
    if posthoc_ema is None:
        params = select_average(state, run.config, weights)
        return params, f"{weights} parameters of step {int(state.step)}"
    found = reconstruct_average(run.snapshots, state.params, posthoc_ema, posthoc_step)
    made = f"from {found.num_snapshots} snapshots, relative error of its profile {found.error:.2g}"
    return found.params, f"average of relative width {posthoc_ema} at step {found.step} ({made})"


def check_selection(
    config: Config, weights: str, posthoc_ema: float | None, posthoc_step: int | None
) -> None:
    """Raise UserError for choices that `select_params` would refuse, before any work is done."""
    check_weights(config, weights)
    if posthoc_ema is None and posthoc_step is not None:
        raise UserError(f"--posthoc-step {posthoc_step} needs --posthoc-ema WIDTH")
    if posthoc_ema is not None and weights != "ema":
        raise UserError(f"--posthoc-ema selects an average itself: leave out --weights {weights}")
    if posthoc_ema is not None and not config.train.posthoc_ema:
        raise UserError(
            f"--posthoc-ema {posthoc_ema} needs a run trained with --train.posthoc-ema 0.05 0.1"
        )
