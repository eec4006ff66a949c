"""Training losses, one value per example, and the thin wrapper that draws their randomness."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.diffusion import (
    LEARNED,
    PredictionType,
    Variance,
    add_noise,
    p_mean_variance,
    prediction_target,
    split_output,
    to_prediction,
)
from jax_ddpm.process.levels import Level, level_at
from jax_ddpm.process.likelihood import vb_term
from jax_ddpm.process.schedules import Schedule
from jax_ddpm.process.timesteps import uniform_timesteps
from jax_ddpm.process.types import ApplyFn, DenoiseFn, Images

LossType = Literal["l1", "l2", "huber"]
Objective = Literal["simple", "hybrid", "vlb"]
Weighting = Literal["constant", "snr", "truncated_snr", "min_snr", "soft_min_snr", "p2"]
LossFn = Callable[..., Float[Array, " b"]]


def pixel_loss(loss_type: LossType, output: Images, target: Images) -> Images:
    """|d|, d^2, or Huber with delta = 1 (d^2/2 up to 1, then |d| - 1/2), d = output - target."""
    d = output - target
    match loss_type:
        case "l1":
            return jnp.abs(d)
        case "l2":
            return d**2
        case "huber":
            return jnp.where(jnp.abs(d) <= 1, 0.5 * d**2, jnp.abs(d) - 0.5)


def mean_loss(loss_type: LossType, output: Images, target: Images) -> Float[Array, " b"]:
    """`pixel_loss` in the dtype of `target`, averaged over each image."""
    loss = pixel_loss(loss_type, output.astype(target.dtype), target)
    return loss.mean(axis=tuple(range(1, loss.ndim)))


def loss_weight(
    schedule: Schedule,
    weighting: Weighting = "constant",
    prediction_type: PredictionType = "eps",
    gamma: float = 5.0,
    *,
    p2_gamma: float = 1.0,
    p2_k: float = 1.0,
) -> Float[Array, " T"]:
    """The weight of each timestep, with snr = signal^2 / sigma^2.

    constant: 1. The others say what weight the squared error of x_0 gets; that of eps gets the same
    divided by snr, and that of v divided by snr + 1, so that all three are one loss. snr: snr.
    truncated_snr: max(snr, 1) (Salimans & Ho 2022, section 4). min_snr: min(snr, gamma) (Hang et
    al. 2023, section 3.4). soft_min_snr: snr gamma / (snr + gamma) (Crowson et al. 2024, with
    gamma = 4). p2: snr / (p2_k + snr)^p2_gamma, the only one defined by the error of eps (Choi et
    al. 2022, Eq. 8).

    Finite for x_0 and v; where snr is 0, the error of eps has no weight but the constant.
    """
    snr = (schedule.sqrt_alphas_cumprod / schedule.sqrt_one_minus_alphas_cumprod) ** 2
    match weighting:
        case "constant":
            return jnp.ones_like(snr)
        case "snr":
            of_x_0 = snr
        case "truncated_snr":
            of_x_0 = jnp.maximum(snr, 1)
        case "min_snr":
            of_x_0 = jnp.minimum(snr, gamma)
        case "soft_min_snr":
            of_x_0 = snr * gamma / (snr + gamma)
        case "p2":
            of_x_0 = snr / (p2_k + snr) ** p2_gamma
    match prediction_type:
        case "eps":
            return of_x_0 / snr
        case "x_0":
            return of_x_0
        case "v":
            return of_x_0 / (snr + 1)


def diffusion_loss(
    apply_fn: ApplyFn,
    params: Any,
    schedule: Schedule,
    x_0: Images,
    t: Int[Array, " b"],
    noise: Images,
    *,
    prediction_type: PredictionType = "eps",
    loss_type: LossType = "l2",
    **network_args: Any,
) -> Float[Array, " b"]:
    """L_simple per example, averaged over pixels and channels (Ho et al. 2020, Eq. 14).

    x_0 in [-1, 1], t in 0..T-1; `network_args` (train, dropout_keys, label, ...) go to `apply_fn`.
    """
    loss_fn = make_loss_fn(apply_fn, schedule, prediction_type=prediction_type, loss_type=loss_type)
    return loss_fn(params, x_0, t, noise, **network_args)


def make_loss_fn(
    apply_fn: ApplyFn,
    schedule: Schedule,
    *,
    prediction_type: PredictionType = "eps",
    loss_type: LossType = "l2",
    weighting: Weighting = "constant",
    min_snr_gamma: float = 5.0,
    p2_gamma: float = 1.0,
    p2_k: float = 1.0,
    objective: Objective = "simple",
    variance: Variance = "fixed_large",
    vb_weight: float | None = None,
    log_floor: float = 1e-12,
) -> LossFn:
    """(params, x_0, t, noise, *, self_condition=None, **network_args) -> loss of each example [b].

    simple: `loss_type` between output and target, weighted by `loss_weight` (Ho et al. 2020, Eq.
    14). vlb: the term of the bound at t in bits per dimension times `vb_weight`, by default T,
    which estimates the whole bound. hybrid: both; the bound, by default times T/1000, then trains
    the learned variance and not the prediction (Nichol & Dhariwal 2021, Eq. 16). A learned
    `variance` takes the second half of the output's channels. With `self_condition`, one truth
    value for the whole batch, the network is given its own first guess of x_0, or zeros.

    Raises ValueError where `objective` would not train `variance`.
    """
    learned = variance in LEARNED
    check_objective(objective, variance)
    weights = loss_weight(
        schedule, weighting, prediction_type, min_snr_gamma, p2_gamma=p2_gamma, p2_k=p2_k
    )
    T = schedule.num_timesteps
    bound_weight = (T if objective == "vlb" else T / 1000) if vb_weight is None else vb_weight

    def loss_fn(
        params: Any, x_0: Images, t: Int[Array, " b"], noise: Images, *,
        self_condition: Bool[Array, ""] | None = None, **network_args: Any,
    ) -> Float[Array, " b"]:  # fmt: skip
        level = level_at(schedule, t)
        x_t = add_noise(level, x_0, noise)
        if self_condition is not None:
            guess = make_denoise_fn(
                apply_fn, jax.lax.stop_gradient(params), prediction_type=prediction_type,
                clip_x_0=False, learned_variance=learned, **other_dropout(network_args),
            )  # fmt: skip
            network_args["x_self_cond"] = first_guess(guess, x_t, level, self_condition)
        output, raw_variance = split_output(apply_fn(params, x_t, t, **network_args), learned)
        loss = jnp.zeros(t.shape, x_t.dtype)
        if objective != "vlb":
            target = prediction_target(level, x_0, noise, prediction_type)
            loss = weights[t] * mean_loss(loss_type, output, target)
        if objective != "simple":
            mean = output if objective == "vlb" else jax.lax.stop_gradient(output)
            prediction = to_prediction(mean.astype(x_t.dtype), x_t, level, prediction_type)
            prediction = prediction._replace(raw_variance=raw_variance)
            model = p_mean_variance(schedule, prediction, x_t, t, variance)
            loss += bound_weight * vb_term(schedule, x_0, x_t, t, model, log_floor=log_floor)
        return loss

    return loss_fn


def check_objective(objective: Objective, variance: Variance) -> None:
    """Raise ValueError where `objective` would not train `variance`, or has none to train."""
    if objective != "vlb" and (variance in LEARNED) != (objective == "hybrid"):
        raise ValueError(
            f"objective {objective!r} does not go with variance {variance!r}: a learned variance "
            "takes hybrid or vlb, a fixed one simple or vlb"
        )


def first_guess(
    denoise_fn: DenoiseFn, x_t: Images, level: Level, wanted: Bool[Array, ""]
) -> Images:
    """x_0 as `denoise_fn` sees it without an earlier guess, or zeros if it is not `wanted`.

    What a self-conditioned network is trained with half of the time (Chen et al. 2023).
    """
    nothing = jnp.zeros_like(x_t)
    return jax.lax.cond(wanted, lambda: denoise_fn(x_t, level, nothing).x_0, lambda: nothing)


def other_dropout(network_args: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with other dropout masks, for a second use of the network."""
    keys = network_args.get("dropout_keys")
    if keys is None:
        return network_args
    return network_args | {"dropout_keys": jax.vmap(jax.random.fold_in, (0, None))(keys, 1)}


def add_offset(
    noise: Float[Array, "*b h w c"], offset: Float[Array, "*b c"], strength: float
) -> Float[Array, "*b h w c"]:
    """Noise whose mean colour varies too: noise + strength * offset, so images can get darker."""
    return noise + strength * offset[..., None, None, :]


def match_noise(x_0: Images, noise: Images) -> Images:
    """`noise` in the order that brings it closest to `x_0` in sum (immiscible, Li et al. 2024).

    The least sum of Euclidean distances over all pairings of the batch, found in O(b^3).
    """
    flat_x_0, flat_noise = x_0.reshape(len(x_0), -1), noise.reshape(len(noise), -1)
    distances = jnp.linalg.norm(flat_x_0[:, None] - flat_noise[None], axis=-1)  # [b, b]
    rows, columns = optax.assignment.hungarian_algorithm(distances)
    return noise[jnp.zeros_like(columns).at[rows].set(columns)]


def draw(
    keys: Key[Array, " b"],
    image_shape: tuple[int, ...],
    num_timesteps: int,
    dtype: Any = jnp.float32,
    *,
    offset_noise: float = 0.0,
) -> tuple[Int[Array, " b"], Images]:
    """Draw t uniform in 0..T-1 and standard normal noise, each example from its own key.

    `offset_noise`: see `draw_training_noise`.
    """
    t = uniform_timesteps(timestep_keys(keys), num_timesteps)
    return t, draw_training_noise(keys, image_shape, dtype, offset_noise=offset_noise)


def timestep_keys(keys: Key[Array, " b"]) -> Key[Array, " b"]:
    """The keys of which each example's timestep is drawn."""
    return jax.vmap(jax.random.split)(keys)[:, 0]


def draw_training_noise(
    keys: Key[Array, " b"],
    image_shape: tuple[int, ...],
    dtype: Any = jnp.float32,
    *,
    offset_noise: float = 0.0,
) -> Images:
    """Standard normal noise, each example from its own key, independent of its timestep.

    `offset_noise` is the strength of an offset per channel that is added to the noise (0.1 in the
    text that proposed it, "Diffusion with Offset Noise", N. Guttenberg 2023).
    """

    def draw_one(key: Key[Array, ""]) -> Array:
        noise = jax.random.normal(jax.random.split(key)[1], image_shape, dtype)
        if offset_noise:
            offset = jax.random.normal(jax.random.fold_in(key, 2), image_shape[-1:], dtype)
            noise = add_offset(noise, offset, offset_noise)
        return noise

    return jax.vmap(draw_one)(keys)
