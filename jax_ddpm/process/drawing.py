"""The timesteps and the noise of a training batch, each example's from its own key."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_ddpm.process.timesteps import uniform_timesteps

# The domains of an example's key: `split` gives the first two, `fold_in` the last.
TIMESTEP, NOISE = 0, 1
OFFSET = 2


def add_offset(
    noise: Float[Array, "*b h w c"], offset: Float[Array, "*b c"], strength: float
) -> Float[Array, "*b h w c"]:
    """noise + strength * offset: the mean of each channel varies too, so images can get darker."""
    return noise + strength * offset[..., None, None, :]


def draw(
    keys: Key[Array, " b"],
    image_shape: tuple[int, ...],
    num_timesteps: int,
    dtype: Any = jnp.float32,
    *,
    offset_noise: float = 0.0,
) -> tuple[Int[Array, " b"], Float[Array, "b ..."]]:
    """Draw t uniform in 0..T-1 and standard normal noise, each example from its own key.

    `offset_noise`: see `draw_training_noise`.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> t, noise = jd.draw(jax.random.split(jax.random.key(0), 4), (8, 8, 3), 1000)
        >>> t.shape, noise.shape
        ((4,), (4, 8, 8, 3))
    """
    t = uniform_timesteps(timestep_keys(keys), num_timesteps)
    return t, draw_training_noise(keys, image_shape, dtype, offset_noise=offset_noise)


def timestep_keys(keys: Key[Array, " b"]) -> Key[Array, " b"]:
    """The keys from which the timesteps of the examples are drawn."""
    return jax.vmap(jax.random.split)(keys)[:, TIMESTEP]


def draw_training_noise(
    keys: Key[Array, " b"],
    image_shape: tuple[int, ...],
    dtype: Any = jnp.float32,
    *,
    offset_noise: float = 0.0,
) -> Float[Array, "b ..."]:
    """Standard normal noise, each example from its own key, independent of its timestep.

    `offset_noise` is the strength of an offset per channel that is added to the noise (0.1 in the
    text that proposed it, "Diffusion with Offset Noise", N. Guttenberg 2023).
    """

    def draw_one(key: Key[Array, ""]) -> Array:
        noise = jax.random.normal(jax.random.split(key)[NOISE], image_shape, dtype)
        if offset_noise:
            offset_key = jax.random.fold_in(key, OFFSET)
            offset = jax.random.normal(offset_key, image_shape[-1:], dtype)
            noise = add_offset(noise, offset, offset_noise)
        return noise

    return jax.vmap(draw_one)(keys)
