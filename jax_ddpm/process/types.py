"""The types that travel through the maths. Images are [batch, height, width, channels]."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, Int

from jax_ddpm.process.levels import Level

Images = Float[Array, "b h w c"]
Losses = Float[Array, " b"]
Labels = Int[Array, " b"]
Timesteps = Int[Array, "*n"]  # one for all images, or one per image


class Prediction(NamedTuple):
    """A denoiser's view of x_t: the x_0 and the eps with x_t = signal * x_0 + sigma * eps.

    `raw_variance` holds the network's channels for the variance of the reverse step, if it has any.
    """

    x_0: Images
    eps: Images
    raw_variance: Images | None = None


class Gaussian(NamedTuple):
    """A Gaussian with diagonal covariance; variance and log_variance broadcast against mean."""

    mean: Images
    variance: Float[Array, "*b h_or_1 w_or_1 c_or_1"]
    log_variance: Float[Array, "*b h_or_1 w_or_1 c_or_1"]


ApplyFn = Callable[..., Images]  # a network: (params, x_t, t, **its own arguments) -> output
DenoiseFn = Callable[..., Prediction]  # (x_t, level), or (x_t, level, x_self_cond=x_0)
GradientFn = Callable[[Images, Level], Images]  # of log p(y | x_t), with respect to x_t
NoiseFn = Callable[[Array], Images]  # the noise of step i, or of timestep t
