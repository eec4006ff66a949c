"""What training minimises: the simple error, the bound on the likelihood, or both."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_ddpm.errors import UserError, check_choice
from jax_ddpm.process.diffusion import LEARNED, VARIANCES, p_mean_variance
from jax_ddpm.process.levels import Level
from jax_ddpm.process.likelihood import vb_term
from jax_ddpm.process.pixel_losses import PIXEL_LOSSES, mean_loss
from jax_ddpm.process.predictions import prediction_target, to_prediction
from jax_ddpm.process.schedules import Schedule
from jax_ddpm.process.types import Images, Losses


class LossParts(NamedTuple):
    """The terms of an example's loss with their weights; the one that an objective lacks is 0."""

    error: Losses  # of the network's output, L_simple
    bound: Losses  # on the likelihood, L_t in bits per dimension


class NoisedBatch(NamedTuple):
    """x_t and what it consists of."""

    x_0: Images
    t: Int[Array, " b"]
    noise: Images
    level: Level
    x_t: Images


ErrorFn = Callable[[Images, NoisedBatch], Losses]  # of the output
BoundFn = Callable[[Images, Images | None, NoisedBatch], Losses]  # of the output and its variance


def make_error_fn(prediction_type: str, loss_type: str, weights: Float[Array, " T"]) -> ErrorFn:
    """(output, batch) -> L_simple, weighted by timestep (Ho et al. 2020, Eq. 14)."""
    loss_type = check_choice("loss_type", loss_type, PIXEL_LOSSES)

    def error(output: Images, batch: NoisedBatch) -> Losses:
        target = prediction_target(batch.level, batch.x_0, batch.noise, prediction_type)
        return weights[batch.t] * mean_loss(loss_type, output, target)

    return error


def make_bound_fn(
    schedule: Schedule, prediction_type: str, variance: str, weight: float, log_floor: float
) -> BoundFn:
    """(output, raw_variance, batch) -> `weight` times the term of L_vlb at t (Ho et al., Eq. 5)."""

    def bound(output: Images, raw_variance: Images | None, batch: NoisedBatch) -> Losses:
        x_0, t, _, level, x_t = batch
        prediction = to_prediction(output.astype(x_t.dtype), x_t, level, prediction_type)
        prediction = prediction._replace(raw_variance=raw_variance)
        model = p_mean_variance(schedule, prediction, x_t, t, variance)
        return weight * vb_term(schedule, x_0, x_t, t, model, log_floor=log_floor)

    return bound


def simple_objective(
    error: ErrorFn, bound: BoundFn, output: Images, raw_variance: Images | None, batch: NoisedBatch
) -> LossParts:
    """L_simple (Ho et al. 2020, Eq. 14)."""
    loss = error(output, batch)
    return LossParts(loss, jnp.zeros_like(loss))


def hybrid_objective(
    error: ErrorFn, bound: BoundFn, output: Images, raw_variance: Images | None, batch: NoisedBatch
) -> LossParts:
    """L_simple + lambda L_vlb; L_vlb trains only the variance (Nichol & Dhariwal 2021, Eq. 16)."""
    fixed = jax.lax.stop_gradient(output)
    return LossParts(error(output, batch), bound(fixed, raw_variance, batch))


def vlb_objective(
    error: ErrorFn, bound: BoundFn, output: Images, raw_variance: Images | None, batch: NoisedBatch
) -> LossParts:
    """L_vlb, one term of it (Ho et al. 2020, Eq. 5)."""
    loss = bound(output, raw_variance, batch)
    return LossParts(jnp.zeros_like(loss), loss)


class ObjectiveKind(NamedTuple):
    """How error and bound are combined, and the bound's default weight as a function of T."""

    combine: Callable[[ErrorFn, BoundFn, Images, Images | None, NoisedBatch], LossParts]
    bound_weight: Callable[[int], float]


OBJECTIVES: dict[str, ObjectiveKind] = {
    "simple": ObjectiveKind(simple_objective, lambda num_timesteps: 0),
    "hybrid": ObjectiveKind(hybrid_objective, lambda num_timesteps: num_timesteps / 1000),
    "vlb": ObjectiveKind(vlb_objective, lambda num_timesteps: num_timesteps),
}

if TYPE_CHECKING:
    Objective = str
else:
    Objective = Literal[tuple(OBJECTIVES)]


def check_objective(objective: str, variance: str) -> ObjectiveKind:
    """The objective of this name.

    Raises UserError for an unknown name, and where the objective would not train the variance or
    there is none to train.
    """
    objective = check_choice("objective", objective, OBJECTIVES)
    learned = check_choice("variance", variance, VARIANCES) in LEARNED
    if objective != "vlb" and learned != (objective == "hybrid"):
        raise UserError(
            f"objective {objective!r} does not go with variance {variance!r}: a learned variance "
            "takes hybrid or vlb, a fixed one simple or vlb"
        )
    return OBJECTIVES[objective]
