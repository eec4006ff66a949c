"""The sampler interface and the one loop that runs every sampler."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_ddpm.diffusion import DenoiseFn, Images, Prediction
from jax_ddpm.schedules import Level


class SamplerState(NamedTuple):
    """The image at the current level, and whatever a multistep sampler remembers."""

    x_t: Images
    memory: Any = ()


NoiseFn = Callable[[Array], Images]
StepFn = Callable[[SamplerState, Images, Level, Level, DenoiseFn], tuple[SamplerState, Prediction]]
TraceFn = Callable[[SamplerState, Prediction], Any]


class Sampler(NamedTuple):
    """`init(x_T) -> state` and `step(state, noise, cur, nxt, denoise_fn) -> (state, prediction)`.

    A step goes from level `cur` to the cleaner level `nxt`. It sees no schedule, network,
    prediction type or clipping: those are inside `denoise_fn`.
    """

    init: Callable[[Images], SamplerState]
    step: StepFn


def keep_nothing(state: SamplerState, prediction: Prediction) -> Any:
    """The trace of a sampler run of which only the final image is wanted."""
    return ()


def sample(
    sampler: Sampler,
    denoise_fn: DenoiseFn,
    levels: Level,
    x_T: Images,
    noise_fn: NoiseFn,
    *,
    trace: TraceFn = keep_nothing,
    num_frames: int | None = None,
) -> tuple[Images, Any]:
    """Run `sampler` over S + 1 `levels`, from x_T to the clean image, as one `lax.scan`.

    `noise_fn(i)` is the noise of step i. Returns x_0 and, stacked, what `trace(state, prediction)`
    keeps of each step; with `num_frames`, of that many steps, evenly spread, the last included.
    """
    cur, nxt = Level(*(field[:-1] for field in levels)), Level(*(field[1:] for field in levels))
    num_steps = len(cur.t)
    num_frames = min(num_frames or num_steps, num_steps)

    def advance(state: SamplerState, i: Array, cur: Level, nxt: Level) -> tuple[SamplerState, Any]:
        state, prediction = sampler.step(state, noise_fn(i), cur, nxt, denoise_fn)
        return state, trace(state, prediction)

    def body(carry: tuple[SamplerState, Any], step: tuple[Array, Level, Level]) -> tuple[Any, None]:
        state, frames = carry
        state, frame = advance(state, *step)
        slot = step[0] * num_frames // num_steps  # the last step that falls in a slot stays
        return (state, jax.tree.map(lambda kept, new: kept.at[slot].set(new), frames, frame)), None

    steps = (jnp.arange(num_steps), cur, nxt)
    state = sampler.init(x_T)
    frame = jax.eval_shape(advance, state, *jax.tree.map(lambda a: a[0], steps))[1]
    frames = jax.tree.map(lambda f: jnp.zeros((num_frames, *f.shape), f.dtype), frame)
    (state, frames), _ = jax.lax.scan(body, (state, frames), steps)
    return state.x_t, frames


def draw_noise(
    keys: Key[Array, " b"], image_shape: tuple[int, ...], dtype: Any = jnp.float32
) -> tuple[Images, NoiseFn]:
    """x_T and the noise of each step, image by image from its own key.

    An image therefore depends on its key alone, not on the batch or device that it is drawn in.
    """

    def normal(i: Array | int) -> Float[Array, "b h w c"]:
        return jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, i), image_shape, dtype)
        )(keys)

    return normal(0), lambda i: normal(i + 1)


def beta_between(cur: Level, nxt: Level) -> Float[Array, ""]:
    """1 - (cur.signal / nxt.signal)^2, the beta of one step from `nxt` to `cur`.

    Written with the sigmas, which keep their digits in float32 where the ratio is close to 1.
    """
    return cur.sigma**2 - (cur.signal / nxt.signal) ** 2 * nxt.sigma**2
