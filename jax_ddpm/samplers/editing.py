"""Chains that start from given images: inpainting, image to image, and interpolation.

Wrappers around any sampler, and functions that choose where a chain starts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from jax_ddpm.errors import UserError
from jax_ddpm.process.diffusion import add_noise
from jax_ddpm.process.levels import Level
from jax_ddpm.process.shapes import expand, pixel_axes
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers import Sampler, SamplerState, ddim_inverse, sample
from jax_ddpm.samplers.base import beta_between


def inpaint(sampler: Sampler, image: Images, known: Bool[Array, "#b #h #w 1"]) -> Sampler:
    """`sampler`, but each step replaces the known pixels by `image` at the level it reaches.

    At the clean level they are the image itself. Their noise is the step's own array: a pixel is
    either known or not, so no entry is used twice (Song et al. 2021, score SDE, appendix I.2).

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> image = jax.numpy.zeros((1, 8, 8, 1))
        >>> known = jax.numpy.arange(8)[:, None, None] < 4  # keeps the upper half: [8, 1, 1]
        >>> sampler = jd.inpaint(jd.ddim(), image, jax.numpy.broadcast_to(known, (1, 8, 8, 1)))
        >>> drawn = jd.Diffusion(jd.named_schedule("cosine", 1000)).sample(
        ...     lambda params, x_t, t: params * x_t, 0.5, jax.random.key(0), (1, 8, 8, 1),
        ...     sampler=sampler, steps=5,
        ... )
        >>> bool((drawn[:, :4] == 0).all()), bool((drawn[:, 4:] == 0).all())
        (True, False)
    """

    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        state, prediction = sampler.step(state, noise, cur, nxt, denoise_fn)
        noised = add_noise(nxt, jnp.broadcast_to(image, noise.shape), noise)
        x_t = jnp.where(known, noised, state.x_t)
        return state._replace(x_t=x_t), prediction

    return sampler._replace(step=step)


def allow_steps_up(sampler: Sampler) -> Sampler:
    """`sampler`, but a step to a noisier level adds noise, without evaluating the network.

    For grids like `repaint_grid`. A step up clears the memory of a multistep sampler; the x_0 for
    self-conditioning is the last one predicted. Raises UserError for one level per image.
    """

    def init(x_T: Images) -> SamplerState:
        state = sampler.init(x_T)
        return SamplerState(state.x_t, (state.memory, jnp.zeros_like(x_T)))

    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        memory, x_0 = state.memory

        def down() -> tuple[SamplerState, Prediction]:
            at = SamplerState(state.x_t, memory)
            after, prediction = sampler.step(at, noise, cur, nxt, denoise_fn)
            return SamplerState(after.x_t, (after.memory, prediction.x_0)), prediction

        if jnp.ndim(cur.sigma):
            raise UserError("a grid that goes up and down takes one level for all images")
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(down)[1])

        def up() -> tuple[SamplerState, Prediction]:
            x_t = renoise(cur, nxt, state.x_t, noise)
            return SamplerState(x_t, (sampler.init(x_t).memory, x_0)), nothing._replace(x_0=x_0)

        # `cond`, not `where`, so that a step up does not evaluate the network
        return jax.lax.cond(nxt.sigma > cur.sigma, up, down)

    return sampler._replace(init=init, step=step, direction="any")


def repaint(sampler: Sampler, image: Images, known: Bool[Array, "#b #h #w 1"]) -> Sampler:
    """Inpainting that goes back up to let known and new pixels agree (Lugmayr et al. 2022, alg. 1).

    Runs over a grid of `repaint_grid`.
    """
    return allow_steps_up(inpaint(sampler, image, known))


def renoise(cur: Level, nxt: Level, x: Images, noise: Images) -> Images:
    """Draw from q(x_nxt | x_cur) with nxt the noisier level (Ho et al. 2020, Eq. 2)."""
    scale, beta = nxt.signal / cur.signal, beta_between(nxt, cur)
    return expand(scale, x) * x + expand(jnp.sqrt(jnp.maximum(beta, 0)), x) * noise


def repaint_order(num_steps: int, jump_length: int, num_resamples: int) -> Int[np.ndarray, " R"]:
    """Which of the S + 1 levels of a descending grid RePaint visits, in order (their code).

    Each `jump_length` levels above the last noisy one the chain goes back up by `jump_length`
    steps, `num_resamples` - 1 times. Raises UserError unless 1 <= jump_length < S and
    num_resamples >= 1.
    """
    if not 1 <= jump_length < num_steps:
        raise UserError(
            f"the jump length must be between 1 and {num_steps - 1}, one less than the steps of "
            f"the grid, got {jump_length}"
        )
    if num_resamples < 1:
        raise UserError(f"the number of resamples must be at least 1, got {num_resamples}")
    left = dict.fromkeys(range(0, num_steps - jump_length, jump_length), num_resamples - 1)
    order, height = [num_steps - 1], num_steps - 1  # height: steps above the last noisy level
    while height > 0 or left[0]:
        if left.get(height):
            left[height] -= 1
            order += range(height + 1, height + jump_length + 1)
            height += jump_length
        else:
            height -= 1
            order.append(height)
    return np.append(num_steps - 1 - np.array(order), num_steps)


def repaint_grid(
    timesteps: Int[np.ndarray, " num_levels"], jump_length: int, num_resamples: int
) -> Int[np.ndarray, " R"]:
    """The grid `timesteps`, going back up as `repaint_order` says; it also ends in -1."""
    return timesteps[repaint_order(len(timesteps) - 1, jump_length, num_resamples)]


def find_start(
    timesteps: Num[np.ndarray, " num_levels"], strength: float, num_timesteps: int
) -> int:
    """The first position of a descending grid below strength T (SDEdit, Meng et al. 2022).

    The smaller the strength (0 < strength <= 1), the more of the image a chain from there keeps.
    Raises UserError for another strength, and if only the clean image lies below.
    """
    if not 0 < strength <= 1:
        raise UserError(f"the strength must be above 0 and at most 1, got {strength:g}")
    first = int(np.argmax(np.asarray(timesteps) < strength * num_timesteps))
    if timesteps[first] < 0:
        raise UserError(
            f"the grid visits no timestep below {strength * num_timesteps:g}, strength "
            f"{strength:g} of T = {num_timesteps}: take more steps or a larger strength"
        )
    return first


def lerp(a: Images, b: Images, weight: Float[Array, " b"]) -> Images:
    """(1 - weight) a + weight b."""
    return (1 - expand(weight, a)) * a + expand(weight, a) * b


def slerp(a: Images, b: Images, weight: Float[Array, " b"]) -> Images:
    """From `a` (weight 0) to `b` (weight 1) along a great circle, image by image (Shoemake 1985).

    A line where the two are parallel or opposite, where the circle is not defined.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> a, b = jax.random.normal(jax.random.key(0), (2, 1, 8, 8, 1))
        >>> jd.slerp(a, b, jax.numpy.array([0.5])).shape
        (1, 8, 8, 1)
    """

    def norm(x: Images) -> Float[Array, "b 1 1 1"]:
        return jnp.sqrt(jnp.sum(x**2, axis=pixel_axes(x), keepdims=True))

    tiny = jnp.finfo(a.dtype).tiny
    one, other = a / jnp.maximum(norm(a), tiny), b / jnp.maximum(norm(b), tiny)
    angle = 2 * jnp.arctan2(norm(one - other), norm(one + other))  # exact for small angles too
    w = expand(weight, a)
    sine = jnp.sin(angle)
    line = sine < 1e-5
    sine = jnp.where(line, 1, sine)
    from_a = jnp.where(line, 1 - w, jnp.sin((1 - w) * angle) / sine)
    from_b = jnp.where(line, w, jnp.sin(w * angle) / sine)
    return from_a * a + from_b * b


def mix_noisy(
    level: Level,
    images: tuple[Images, Images],
    weight: Float[Array, " b"],
    noises: tuple[Images, Images],
) -> Images:
    """The line between two noised images, to be denoised from `level` on (Ho et al. 2020, Fig. 8).

    With the same noise for both, the images in between are as noisy as the ends.
    """
    a, b = (add_noise(level, x, noise) for x, noise in zip(images, noises, strict=True))
    return lerp(a, b, weight)


def find_latents(denoise_fn: DenoiseFn, levels: Level, images: Images, **settings: Any) -> Images:
    """The x_T from which DDIM leads back to `images`: `ddim_inverse` run up the grid `levels`.

    `levels` is the descending grid of the way back; `settings` go to `sample` (Song et al. 2021,
    DDIM, section 4.3).
    """
    up = jax.tree.map(lambda field: field[::-1], levels)
    no_noise = jnp.zeros_like(images)
    x_T, _ = sample(ddim_inverse(), denoise_fn, up, images, lambda i: no_noise, **settings)
    return x_T
