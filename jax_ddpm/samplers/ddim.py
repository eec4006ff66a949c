"""Denoising diffusion implicit models (Song et al. 2021)."""

import jax.numpy as jnp

from jax_ddpm.process.checks import check_range
from jax_ddpm.process.levels import Level
from jax_ddpm.process.predictions import x_0_from_eps
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import (
    Sampler,
    SamplerState,
    beta_between,
    broadcast_levels,
    sigma_ratio,
)


def ddim(eta: float = 0.0) -> Sampler:
    """The implicit sampler (Song et al. 2021, Eqs. 12 and 16).

    eta = 0 is deterministic given x_T; eta = 1 is ancestral sampling with the small variance. With
    eta = 0 a step may also go up, to a noisier level (`ddim_reverse_sample` in OpenAI's code).
    Raises UserError for an eta outside 0..1.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> diffusion, shape = jd.Diffusion(jd.named_schedule("cosine", 1000)), (2, 8, 8, 1)
        >>> def apply_fn(params, x_t, t):
        ...     return params * x_t
        >>> diffusion.sample(
        ...     apply_fn, 0.5, jax.random.key(0), shape, sampler=jd.ddim(eta=0.5), steps=5
        ... ).shape
        (2, 8, 8, 1)
    """
    check_range("eta", eta, 0, 1)

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        prediction = denoise_fn(state.x_t, cur)
        if eta == 0:  # without fractions: a step may start and end at pure noise
            x_t = nxt.signal * prediction.x_0 + nxt.sigma * prediction.eps
            return SamplerState(x_t), prediction
        std = eta * (nxt.sigma / cur.sigma) * jnp.sqrt(jnp.maximum(beta_between(cur, nxt), 0))
        # sqrt(nxt.sigma^2 - std^2), without the difference of two nearly equal numbers
        rest = jnp.maximum(1 - eta**2 + (eta * sigma_ratio(cur, nxt)) ** 2, 0)
        direction = nxt.sigma * jnp.sqrt(rest)
        x_t = nxt.signal * prediction.x_0 + direction * prediction.eps + std * noise
        return SamplerState(x_t), prediction

    return Sampler(init=SamplerState, step=step)


def ddim_inverse(*, clip_x_0: bool = False) -> Sampler:
    """DDIM from an image up to its noise, on an ascending grid that starts at the clean image.

    Solves the step of `ddim` from `nxt` to `cur` for the noisier x_t, with the eps that the network
    sees in the less noisy image when it is told the noisier level. There is always noise at that
    level, so every prediction type and clipping gives an eps. With `clip_x_0`, the x_0 of each step
    is clipped to [-1, 1] too (diffusers' inverse DDIM with `clip_sample`).
    """

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        prediction = denoise_fn(state.x_t, nxt)
        x_0 = x_0_from_eps(cur, state.x_t, prediction.eps)
        x_0 = jnp.clip(x_0, -1, 1) if clip_x_0 else x_0
        x_t = nxt.signal * x_0 + nxt.sigma * prediction.eps
        return SamplerState(x_t), prediction

    return Sampler(init=SamplerState, step=step, direction="up")
