"""Training losses, one value per example, and the thin wrapper that draws their randomness."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_ddpm.diffusion import ApplyFn, Images, PredictionType, add_noise, prediction_target
from jax_ddpm.schedules import Schedule, level_at

LossType = Literal["l1", "l2", "huber"]


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
    level = level_at(schedule, t)
    output = apply_fn(params, add_noise(level, x_0, noise), t, **network_args)
    target = prediction_target(level, x_0, noise, prediction_type)
    loss = pixel_loss(loss_type, output.astype(target.dtype), target)
    return loss.mean(axis=tuple(range(1, loss.ndim)))


def draw(
    keys: Key[Array, " b"],
    image_shape: tuple[int, ...],
    num_timesteps: int,
    dtype: Any = jnp.float32,
) -> tuple[Int[Array, " b"], Images]:
    """Draw t uniform in 0..T-1 and standard normal noise, each example from its own key."""

    def draw_one(key: Key[Array, ""]) -> tuple[Array, Array]:
        t_key, noise_key = jax.random.split(key)
        t = jax.random.randint(t_key, (), 0, num_timesteps)
        return t, jax.random.normal(noise_key, image_shape, dtype)

    return jax.vmap(draw_one)(keys)
