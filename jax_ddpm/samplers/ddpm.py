"""Ancestral sampling (Ho et al. 2020, algorithm 2)."""

import jax.numpy as jnp

from jax_ddpm.errors import check_choice
from jax_ddpm.process.diffusion import LEARNED, VARIANCES, learned_log_variance
from jax_ddpm.process.levels import Level
from jax_ddpm.process.shapes import expand
from jax_ddpm.process.types import DenoiseFn, GradientFn, Images, Prediction
from jax_ddpm.samplers.base import Sampler, SamplerState, beta_between, broadcast_levels


def ddpm(variance: str = "fixed_large", gradient_fn: GradientFn | None = None) -> Sampler:
    """Draw x_{t-1} from q(x_{t-1} | x_t, x_0) at the predicted x_0 (Ho et al. 2020, Eqs. 6, 7, 11).

    On a sub-sequence of timesteps, posterior and betas are those of the shorter chain. The variance
    is beta-tilde ("fixed_small"), beta ("fixed_large"), or predicted by the network: between the
    two ("learned_range", Nichol & Dhariwal 2021, Eq. 15), or as its logarithm ("learned"). The last
    step adds no noise. `gradient_fn(x_t, level)`, from a classifier, shifts the mean by variance
    times gradient (Dhariwal & Nichol 2021, algorithm 1; at x_t, as in their code).

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> diffusion, shape = jd.Diffusion(jd.named_schedule("cosine", 1000)), (2, 8, 8, 1)
        >>> def apply_fn(params, x_t, t):
        ...     return params * x_t
        >>> diffusion.sample(
        ...     apply_fn, 0.5, jax.random.key(0), shape, sampler=jd.ddpm("fixed_small"), steps=5
        ... ).shape
        (2, 8, 8, 1)
    """
    variance = check_choice("variance", variance, VARIANCES)

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        prediction = denoise_fn(state.x_t, cur)
        beta = beta_between(cur, nxt)
        coef1 = nxt.signal * beta / cur.sigma**2
        coef2 = (cur.signal / nxt.signal) * (nxt.sigma / cur.sigma) ** 2
        mean = coef1 * prediction.x_0 + coef2 * state.x_t
        small = beta * (nxt.sigma / cur.sigma) ** 2
        if variance in LEARNED:
            bounds = jnp.log(jnp.maximum(small, 1e-20)), jnp.log(beta)
            std = jnp.exp(learned_log_variance(prediction, variance, *bounds) / 2)
        else:
            std = jnp.sqrt(beta if variance == "fixed_large" else small)
        std = jnp.where(expand(nxt.t, noise) < 0, 0, std)
        if gradient_fn is not None:
            mean = mean + std**2 * gradient_fn(state.x_t, cur)
        return SamplerState(mean + std * noise), prediction

    return Sampler(init=SamplerState, step=step)
