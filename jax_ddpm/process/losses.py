"""Training losses, one value per example, and the thin wrapper that draws their randomness."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jax_ddpm.process.checks import check_network_args, check_output
from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.diffusion import LEARNED, add_noise
from jax_ddpm.process.levels import Level, level_at
from jax_ddpm.process.objectives import (
    LossParts,
    NoisedBatch,
    check_objective,
    make_bound_fn,
    make_error_fn,
)
from jax_ddpm.process.pixel_losses import mean_loss
from jax_ddpm.process.predictions import (
    check_prediction_type,
    prediction_target,
    split_output,
)
from jax_ddpm.process.schedules import Schedule
from jax_ddpm.process.types import ApplyFn, Images, Losses
from jax_ddpm.process.weighting import loss_weight

LossFn = Callable[..., Losses]


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

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> x_0, keys = jax.numpy.zeros((4, 8, 8, 3)), jax.random.split(jax.random.key(0), 4)
        >>> schedule = jd.named_schedule("linear", 1000)
        >>> t, noise = jd.draw(keys, x_0.shape[1:], 1000)
        >>> jd.diffusion_loss(lambda params, x_t, t: x_t, None, schedule, x_0, t, noise).shape
        (4,)
    """
    check_network_args(network_args, LOSS_SETTINGS, "make_loss_fn")
    level = level_at(schedule, t)
    x_t = add_noise(level, x_0, noise)
    output = apply_fn(params, x_t, t, **network_args)
    check_output(output, x_t, False)
    return mean_loss(loss_type, output, prediction_target(level, x_0, noise, prediction_type))


@dataclass(frozen=True)
class Loss:
    """A loss function (params, x_0, t, noise, **args) -> [b], the sum of its `parts`.

    `parts` takes the same arguments and gives the terms apart. `is_sum` if both terms are in use.
    """

    parts: Callable[..., LossParts]
    is_sum: bool = False

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

    simple: `loss_type` between output and target, times `loss_weight` (Ho et al. 2020, Eq. 14).
    vlb: the term of the bound at t in bits per dimension, times `vb_weight`; the default, T,
    estimates the whole bound. hybrid: both; the bound, by default times T/1000, then trains the
    learned variance and not the prediction (Nichol & Dhariwal 2021, Eq. 16). A learned `variance`
    is the second half of the output's channels. With `self_condition`, one truth value for the
    whole batch, the network is given its own first guess of x_0, or zeros. The function's `parts`
    gives error and bound apart.

    Raises UserError for an unknown name, and where `objective` would not train `variance`.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> def apply_fn(params, x_t, t):
        ...     return params * x_t
        >>> schedule = jd.named_schedule("cosine", 1000)
        >>> loss_fn = jd.make_loss_fn(apply_fn, schedule, weighting="min_snr")
        >>> x_0, keys = jax.numpy.zeros((4, 8, 8, 1)), jax.random.split(jax.random.key(0), 4)
        >>> t, noise = jd.draw(keys, (8, 8, 1), 1000)
        >>> loss, grad = jax.value_and_grad(lambda p: loss_fn(p, x_0, t, noise).mean())(0.5)
        >>> loss.shape, grad.shape
        ((), ())
    """
    prediction_type = check_prediction_type(prediction_type)
    kind = check_objective(objective, variance)
    weights = loss_weight(
        schedule, weighting, prediction_type, min_snr_gamma, p2_gamma=p2_gamma, p2_k=p2_k
    )
    bound_weight = kind.bound_weight(schedule.num_timesteps) if vb_weight is None else vb_weight
    error = make_error_fn(prediction_type, loss_type, weights)
    bound = make_bound_fn(schedule, prediction_type, variance, bound_weight, log_floor)
    learned = variance in LEARNED
    guess = make_guess_fn(apply_fn, prediction_type, learned)

    def parts(
        params: Any,
        x_0: Images,
        t: Int[Array, " b"],
        noise: Images,
        *,
        self_condition: Bool[Array, ""] | None = None,
        **args: Any,
    ) -> LossParts:
        check_network_args(args, LOSS_SETTINGS, "make_loss_fn")
        level = level_at(schedule, t)
        x_t = add_noise(level, x_0, noise)
        if self_condition is not None:
            args["x_self_cond"] = guess(params, x_t, level, self_condition, args)
        output = apply_fn(params, x_t, t, **args)
        check_output(output, x_t, learned)
        batch = NoisedBatch(x_0, t, noise, level, x_t)
        return kind.combine(error, bound, *split_output(output, learned), batch)

    return Loss(parts, is_sum=objective == "hybrid")


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


def make_guess_fn(
    apply_fn: ApplyFn, prediction_type: str, learned_variance: bool
) -> Callable[..., Images]:
    """(params, x_t, level, wanted, network_args) -> the network's first x_0, or zeros.

    A self-conditioned network is trained with such a guess half of the time (Chen et al. 2023). No
    gradient flows through it, and it has its own dropout masks.
    """

    def guess(
        params: Any, x_t: Images, level: Level, wanted: Bool[Array, ""], args: dict[str, Any]
    ) -> Images:
        nothing = jnp.zeros_like(x_t)
        denoise_fn = make_denoise_fn(
            apply_fn,
            jax.lax.stop_gradient(params),
            prediction_type=prediction_type,
            clip_x_0=False,
            learned_variance=learned_variance,
            **change_dropout_keys(args),
        )
        # `cond` saves an evaluation of the network where no guess is wanted.
        return jax.lax.cond(wanted, lambda: denoise_fn(x_t, level, nothing).x_0, lambda: nothing)

    return guess


SECOND_PASS = 1  # folded into an example's dropout key


def change_dropout_keys(network_args: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with other dropout masks, for a second use of the network."""
    keys = network_args.get("dropout_keys")
    if keys is None:
        return network_args
    others = jax.vmap(jax.random.fold_in, (0, None))(keys, SECOND_PASS)
    return network_args | {"dropout_keys": others}
