"""Training losses, one value per example, and the thin wrapper that draws their randomness."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jax_ddpm.errors import UserError, check_choice
from jax_ddpm.process.checks import check_network_args, check_output
from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.diffusion import LEARNED, VARIANCES, add_noise, p_mean_variance
from jax_ddpm.process.levels import Level, level_at
from jax_ddpm.process.likelihood import vb_term
from jax_ddpm.process.predictions import (
    check_prediction_type,
    prediction_target,
    split_output,
    to_prediction,
)
from jax_ddpm.process.schedules import Schedule
from jax_ddpm.process.shapes import mean_over_pixels
from jax_ddpm.process.types import ApplyFn, DenoiseFn, Images, Losses
from jax_ddpm.process.weighting import loss_weight

LossFn = Callable[..., Losses]


# Of d = output - target; huber has delta = 1.
PIXEL_LOSSES: dict[str, Callable[[Array], Array]] = {
    "l1": jnp.abs,
    "l2": lambda d: d**2,
    "huber": lambda d: jnp.where(jnp.abs(d) <= 1, 0.5 * d**2, jnp.abs(d) - 0.5),
}


def pixel_loss(loss_type: str, output: Images, target: Images) -> Images:
    """|d|, d^2, or Huber with delta = 1 (d^2/2 up to 1, then |d| - 1/2), d = output - target."""
    return PIXEL_LOSSES[check_choice("loss_type", loss_type, PIXEL_LOSSES)](output - target)


def mean_loss(loss_type: str, output: Images, target: Images) -> Losses:
    """`pixel_loss` in the dtype of `target`, averaged over each image."""
    return mean_over_pixels(pixel_loss(loss_type, output.astype(target.dtype), target))


def diffusion_loss(
    apply_fn: ApplyFn,
    params: Any,
    schedule: Schedule,
    x_0: Images,
    t: Int[Array, " b"],
    noise: Images,
    *,
    prediction_type: str = "eps",
    loss_type: str = "l2",
    **network_args: Any,
) -> Losses:
    """L_simple per example, averaged over pixels and channels (Ho et al. 2020, Eq. 14).

    x_0 [b, h, w, c] in [-1, 1], t [b] in 0..T-1, noise like x_0. `network_args` (train,
    dropout_keys, label, ...) go to `apply_fn`. For weights, the bound, a learned variance or
    self-conditioning see `make_loss_fn`.
    """
    check_network_args(network_args, LOSS_SETTINGS, "make_loss_fn")
    level = level_at(schedule, t)
    x_t = add_noise(level, x_0, noise)
    output = apply_fn(params, x_t, t, **network_args)
    check_output(output, x_t, False)
    return mean_loss(loss_type, output, prediction_target(level, x_0, noise, prediction_type))


class LossParts(NamedTuple):
    """The terms of an example's loss with their weights; the one that an objective lacks is 0."""

    error: Losses  # of the network's output, L_simple
    bound: Losses  # on the likelihood, L_t in bits per dimension


ErrorFn = Callable[[Images], Losses]  # the weighted error of an output


BoundFn = Callable[[Images], Losses]  # the weighted term of the bound of an output


def simple_objective(output: Images, error: ErrorFn, bound: BoundFn) -> LossParts:
    """L_simple (Ho et al. 2020, Eq. 14)."""
    loss = error(output)
    return LossParts(loss, jnp.zeros_like(loss))


def hybrid_objective(output: Images, error: ErrorFn, bound: BoundFn) -> LossParts:
    """L_simple + lambda L_vlb; L_vlb trains only the variance (Nichol & Dhariwal 2021, Eq. 16)."""
    return LossParts(error(output), bound(jax.lax.stop_gradient(output)))


def vlb_objective(output: Images, error: ErrorFn, bound: BoundFn) -> LossParts:
    """L_vlb, one term of it (Ho et al. 2020, Eq. 5)."""
    loss = bound(output)
    return LossParts(jnp.zeros_like(loss), loss)


OBJECTIVES: dict[str, Callable[[Images, ErrorFn, BoundFn], LossParts]] = {
    "simple": simple_objective,
    "hybrid": hybrid_objective,
    "vlb": vlb_objective,
}


if TYPE_CHECKING:
    LossType = str
    Objective = str
else:
    LossType = Literal[tuple(PIXEL_LOSSES)]
    Objective = Literal[tuple(OBJECTIVES)]


@dataclass(frozen=True)
class Loss:
    """A loss function (params, x_0, t, noise, **args) -> [b], the sum of its `parts`.

    `parts` takes the same arguments and gives the terms apart.
    """

    parts: Callable[..., LossParts]

    def __call__(
        self, params: Any, x_0: Images, t: Int[Array, " b"], noise: Images, **args: Any
    ) -> Losses:
        error, bound = self.parts(params, x_0, t, noise, **args)
        return error + bound


def make_loss_fn(
    apply_fn: ApplyFn,
    schedule: Schedule,
    *,
    prediction_type: str = "eps",
    loss_type: str = "l2",
    weighting: str = "constant",
    min_snr_gamma: float = 5.0,
    p2_gamma: float = 1.0,
    p2_k: float = 1.0,
    objective: str = "simple",
    variance: str = "fixed_large",
    vb_weight: float | None = None,
    log_floor: float = 1e-12,
) -> Loss:
    """(params, x_0, t, noise, *, self_condition=None, **network_args) -> loss of each example [b].

    simple: `loss_type` between output and target, weighted by `loss_weight` (Ho et al. 2020, Eq.
    14). vlb: the term of the bound at t in bits per dimension times `vb_weight`, by default T,
    which estimates the whole bound. hybrid: both; the bound, by default times T/1000, then trains
    the learned variance and not the prediction (Nichol & Dhariwal 2021, Eq. 16). A learned
    `variance` takes the second half of the output's channels. With `self_condition`, one truth
    value for the whole batch, the network is given its own first guess of x_0, or zeros.

    The function's `parts` gives the error and the bound apart. Raises UserError for an unknown
    name, and where `objective` would not train `variance`.
    """
    prediction_type = check_prediction_type(prediction_type)
    loss_type = check_choice("loss_type", loss_type, PIXEL_LOSSES)
    combine = OBJECTIVES[check_choice("objective", objective, OBJECTIVES)]
    learned = check_choice("variance", variance, VARIANCES) in LEARNED
    check_objective(objective, variance)
    weights = loss_weight(
        schedule, weighting, prediction_type, min_snr_gamma, p2_gamma=p2_gamma, p2_k=p2_k
    )
    T = schedule.num_timesteps
    bound_weight = (T if objective == "vlb" else T / 1000) if vb_weight is None else vb_weight

    def parts(
        params: Any,
        x_0: Images,
        t: Int[Array, " b"],
        noise: Images,
        *,
        self_condition: Bool[Array, ""] | None = None,
        **network_args: Any,
    ) -> LossParts:
        check_network_args(network_args, LOSS_SETTINGS, "make_loss_fn")
        level = level_at(schedule, t)
        x_t = add_noise(level, x_0, noise)
        if self_condition is not None:
            denoise_fn = make_denoise_fn(
                apply_fn,
                jax.lax.stop_gradient(params),
                prediction_type=prediction_type,
                clip_x_0=False,
                learned_variance=learned,
                **change_dropout_keys(network_args),
            )
            network_args["x_self_cond"] = guess_x_0(denoise_fn, x_t, level, self_condition)
        output = apply_fn(params, x_t, t, **network_args)
        check_output(output, x_t, learned)
        output, raw_variance = split_output(output, learned)

        def error(output: Images) -> Losses:
            target = prediction_target(level, x_0, noise, prediction_type)
            return weights[t] * mean_loss(loss_type, output, target)

        def bound(output: Images) -> Losses:
            prediction = to_prediction(output.astype(x_t.dtype), x_t, level, prediction_type)
            prediction = prediction._replace(raw_variance=raw_variance)
            model = p_mean_variance(schedule, prediction, x_t, t, variance)
            return bound_weight * vb_term(schedule, x_0, x_t, t, model, log_floor=log_floor)

        return combine(output, error, bound)

    return Loss(parts)


LOSS_SETTINGS = (
    "prediction_type",
    "loss_type",
    "weighting",
    "min_snr_gamma",
    "p2_gamma",
    "p2_k",
    "objective",
    "variance",
    "vb_weight",
    "log_floor",
    "self_condition",
)  # of make_loss_fn and the function that it returns


def check_objective(objective: str, variance: str) -> None:
    """Raise UserError where `objective` would not train `variance`, or has none to train."""
    if objective != "vlb" and (variance in LEARNED) != (objective == "hybrid"):
        raise UserError(
            f"objective {objective!r} does not go with variance {variance!r}: a learned variance "
            "takes hybrid or vlb, a fixed one simple or vlb"
        )


def guess_x_0(denoise_fn: DenoiseFn, x_t: Images, level: Level, wanted: Bool[Array, ""]) -> Images:
    """x_0 as `denoise_fn` predicts it without an earlier guess, or zeros if it is not `wanted`.

    A self-conditioned network is trained with such a guess half of the time (Chen et al. 2023).
    `cond` saves the evaluation of the network in the other half.
    """
    nothing = jnp.zeros_like(x_t)
    return jax.lax.cond(wanted, lambda: denoise_fn(x_t, level, nothing).x_0, lambda: nothing)


SECOND_PASS = 1  # folded into an example's dropout key


def change_dropout_keys(network_args: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with other dropout masks, for a second use of the network."""
    keys = network_args.get("dropout_keys")
    if keys is None:
        return network_args
    others = jax.vmap(jax.random.fold_in, (0, None))(keys, SECOND_PASS)
    return network_args | {"dropout_keys": others}
