"""The sampler interface and the one loop that runs every sampler."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jax_ddpm.errors import UserError
from jax_ddpm.process.checks import check_images, known_values
from jax_ddpm.process.levels import Level
from jax_ddpm.process.shapes import expand
from jax_ddpm.process.types import DenoiseFn, Images, NoiseFn, Prediction

PerImage = Float[Array, "..."]  # a scalar, or [b, 1, 1, 1]


class SamplerState(NamedTuple):
    """The image at the current level, and whatever a multistep sampler remembers."""

    x_t: Images
    memory: Any = ()


StepFn = Callable[[SamplerState, Images, Level, Level, DenoiseFn], tuple[SamplerState, Prediction]]
TraceFn = Callable[[SamplerState, Prediction], Any]
LevelFn = Callable[[Array], Level]  # the level of a timestep, or of a sigma / signal


class Sampler(NamedTuple):
    """`init(x_T) -> state` and `step(state, noise, cur, nxt, denoise_fn) -> (state, prediction)`.

    A step goes from level `cur` to level `nxt`. It sees no schedule, network, prediction type or
    clipping: those are inside `denoise_fn`. `direction` is where steps may lead: "down", to cleaner
    levels; "up", to noisier ones; or "any". A sampler with `starts_at_noise=False` divides by the
    signal, so its first level must have some.
    """

    init: Callable[[Images], SamplerState]
    step: StepFn
    direction: Literal["down", "up", "any"] = "down"
    starts_at_noise: bool = True


def broadcast_levels(step: StepFn) -> StepFn:
    """`step`, which now takes one level for all images or one per image.

    Inside it signal and sigma broadcast over the pixels: they are scalars or [b, 1, 1, 1].
    """

    @wraps(step)
    def broadcast_step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        cur, nxt = expand_level(cur, noise), expand_level(nxt, noise)
        return step(state, noise, cur, nxt, denoise_fn)

    return broadcast_step


def expand_level(level: Level, x: Images) -> Level:
    """The same level with a signal and sigma that broadcast over the pixels of `x`."""
    return Level(level.t, expand(level.signal, x), expand(level.sigma, x))


class Chain(NamedTuple):
    """What a run carries from step to step: the sampler's state, and x_0 for self-conditioning."""

    state: SamplerState
    x_0: Images | None


def keep_nothing(state: SamplerState, prediction: Prediction) -> Any:
    """The trace for a run in which only the final image is wanted."""
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
    self_condition: bool = False,
) -> tuple[Images, Any]:
    """Run `sampler` over S + 1 `levels`, from x_T to the clean image, as one `lax.scan`.

    `levels` is a grid [S + 1], or [S + 1, b] with one level per image. `noise_fn(i)` is the noise
    of step i. Returns x_0 and, stacked, what `trace(state, prediction)` keeps of each step; with
    `num_frames`, only of the steps of `choose_frames`. With `self_condition`, `denoise_fn` also
    gets the x_0 of the step before as `x_self_cond`, and zeros in the first step (Chen et al.
    2023); the sampler does not notice.

    Raises UserError for a grid that does not suit the sampler: one that ascends, does not end at
    the clean image, or starts at pure noise if the sampler cannot. Also raises it for an x_T that
    is not a float image [b, h, w, c]. `run_chain` takes any grid.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> schedule = jd.named_schedule("cosine", 1000)
        >>> denoise_fn = jd.make_denoise_fn(lambda params, x_t, t: params * x_t, 0.5)
        >>> levels = jd.level_at(schedule, jd.timestep_grid(1000, 5, "trailing"))
        >>> x_T, noise_fn = jd.draw_noise(jax.random.split(jax.random.key(0), 2), (8, 8, 1))
        >>> images, _ = jd.sample(jd.ddim(), denoise_fn, levels, x_T, noise_fn)
        >>> images.shape
        (2, 8, 8, 1)
    """
    check_images("x_T", x_T)
    check_grid(sampler, levels, len(x_T))
    return run_chain(
        sampler,
        denoise_fn,
        levels,
        x_T,
        noise_fn,
        trace=trace,
        num_frames=num_frames,
        self_condition=self_condition,
    )


def check_grid(sampler: Sampler, levels: Level, num_images: int) -> None:
    """Raise UserError unless the sampler can follow `levels`, as far as their values are known.

    They are [S + 1] or [S + 1, num_images].
    """
    shape = tuple(levels.sigma.shape)
    if len(shape) not in (1, 2) or shape[0] < 2 or shape[1:] not in ((), (1,), (num_images,)):
        raise UserError(
            f"levels has shape {shape}, but it must be [steps + 1], or [steps + 1, {num_images}] "
            "with one level per image"
        )
    sigma, signal = known_values(levels.sigma), known_values(levels.signal)
    if sigma is None or signal is None:
        return
    if sampler.direction == "up":
        sigma, signal = sigma[::-1], signal[::-1]
    if np.any(sigma[-1] != 0):
        end = "start" if sampler.direction == "up" else "end"
        raise UserError(
            f"the grid {end}s at sigma = {np.max(sigma[-1]):.3g}, but it must {end} at the clean "
            "image, t = -1: timestep_grid appends it"
        )
    ascends = np.any(np.diff(np.arctan2(sigma, signal), axis=0) > 0)
    if ascends and sampler.direction == "down":
        raise UserError("the grid ascends, but this sampler goes to cleaner levels: reverse it")
    if ascends and sampler.direction == "up":
        raise UserError("the grid descends, but this sampler goes to noisier levels: reverse it")
    if np.any(signal[0] == 0) and not sampler.starts_at_noise:
        raise UserError(
            "the grid starts at pure noise, but this sampler divides by the signal: start at a "
            "level that has some, such as leading timesteps"
        )


def run_chain(
    sampler: Sampler,
    denoise_fn: DenoiseFn,
    levels: Level,
    x_T: Images,
    noise_fn: NoiseFn,
    *,
    trace: TraceFn = keep_nothing,
    num_frames: int | None = None,
    self_condition: bool = False,
) -> tuple[Images, Any]:
    """`sample` over any grid: up to the noise, up and down, or without the clean image."""
    cur, nxt = (jax.tree.map(lambda a, s=s: a[s], levels) for s in (slice(-1), slice(1, None)))
    num_steps = len(cur.t)
    chosen = choose_frames(num_steps, num_frames or num_steps)

    def advance(chain: Chain, i: Array, cur: Level, nxt: Level) -> tuple[Chain, Any]:
        denoise = partial(denoise_fn, x_self_cond=chain.x_0) if self_condition else denoise_fn
        state, prediction = sampler.step(chain.state, noise_fn(i), cur, nxt, denoise)
        x_0 = prediction.x_0 if self_condition else None
        return Chain(state, x_0), trace(state, prediction)

    def body(carry: tuple[Chain, Any], step: tuple[Array, Level, Level]) -> tuple[Any, None]:
        chain, frames = carry
        chain, frame = advance(chain, *step)
        slot = jnp.searchsorted(chosen, step[0])  # the last step that falls in a slot stays
        return (chain, jax.tree.map(lambda old, new: old.at[slot].set(new), frames, frame)), None

    steps = (jnp.arange(num_steps), cur, nxt)
    chain = Chain(sampler.init(x_T), jnp.zeros_like(x_T) if self_condition else None)
    frame = jax.eval_shape(advance, chain, *jax.tree.map(lambda a: a[0], steps))[1]
    frames = jax.tree.map(lambda f: jnp.zeros((len(chosen), *f.shape), f.dtype), frame)
    (chain, frames), _ = jax.lax.scan(body, (chain, frames), steps)
    return chain.state.x_t, frames


def choose_frames(num_steps: int, num_frames: int) -> Int[np.ndarray, " f"]:
    """The steps among 0..S-1 that are kept as frames: floor(linspace(0, S, F)), and the last.

    The choice of B. Pulfer's GIFs: even, and with the first step. At most S frames.
    """
    even = np.floor(np.linspace(0, num_steps, num_frames))[:-1]
    return np.unique(np.append(even, num_steps - 1)).astype(np.int32)


def draw_noise(
    keys: Key[Array, " b"], image_shape: tuple[int, ...], dtype: Any = jnp.float32
) -> tuple[Images, NoiseFn]:
    """x_T and the noise of each step, image by image from its own key.

    An image therefore depends on its key alone, not on the batch or device that it is drawn in.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> x_T, noise_fn = jd.draw_noise(jax.random.split(jax.random.key(0), 4), (8, 8, 3))
        >>> x_T.shape, noise_fn(0).shape
        ((4, 8, 8, 3), (4, 8, 8, 3))
    """

    def normal(i: Array | int) -> Float[Array, "b h w c"]:
        return jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, i), image_shape, dtype)
        )(keys)

    return normal(START), lambda i: normal(FIRST_STEP + i)


# What an image's key is folded with: this for x_T, and this and the numbers after it for the steps.
START, FIRST_STEP = 0, 1


def beta_between(cur: Level, nxt: Level) -> PerImage:
    """1 - (cur.signal / nxt.signal)^2, the beta of one step from `nxt` to `cur`.

    Written with the sigmas, which keep their digits in float32 where the ratio is close to 1.
    """
    return cur.sigma**2 - (cur.signal / nxt.signal) ** 2 * nxt.sigma**2


def to_s(level: Level) -> PerImage:
    """sigma / signal, the sigma of Karras et al."""
    return level.sigma / level.signal


def sigma_ratio(cur: Level, nxt: Level) -> PerImage:
    """s' / s, where s = sigma / signal: exp(-h) for a step h in log-SNR.

    0 where the step starts at pure noise or ends at the clean image: there h is infinite.
    """
    return (cur.signal / nxt.signal) * (nxt.sigma / cur.sigma)


# Methods that divide by the signal magnify the errors of a step by sigma / signal at its start over
# sigma / signal at its end. As published, they need it only to be finite; unless they are told
# otherwise, their steps from above LARGE_SIGMA (Karras et al. 2022 start at 80) are of first order.
ANY_SIGMA = 1e5


def is_far(level: Level, most: float) -> Bool[Array, "..."]:
    """Whether sigma / signal is above `most` or not finite, where steps are those of `move`."""
    return level.sigma > min(most, ANY_SIGMA) * level.signal


def guard_signal(level: Level, far: Bool[Array, "..."]) -> Level:
    """The level with signal 1 where it is `far`: nothing is divided by there."""
    return level._replace(signal=jnp.where(far, jnp.ones_like(level.signal), level.signal))


def log_snr_step(cur: Level, nxt: Level) -> PerImage:
    """h, the growth of log(signal / sigma) from `cur` to `nxt`; an infinite one counts as 100.

    exp(-100) is negligible beside 1 in any precision, and ratios of such steps stay finite.
    """
    return jnp.minimum(-jnp.log(sigma_ratio(cur, nxt)), 100)


def move(x_t: Images, x_0: Images, cur: Level, nxt: Level) -> Images:
    """Follow the line from x_0 through x_t to the level `nxt` (Song et al. 2021, Eq. 12, eta = 0).

    In x = x_t / signal and s = sigma / signal this is Euler's step x + (s' - s) d with the slope
    d = (x - x_0) / s, rearranged to (s' / s) x + (1 - s' / s) x_0: so it is defined at pure noise
    too. It is also the first-order step of DPM-Solver++ (Lu et al. 2022, Eq. 2.2b); better steps
    put a better x_0 in.
    """
    return (nxt.sigma / cur.sigma) * x_t + nxt.signal * (1 - sigma_ratio(cur, nxt)) * x_0


def move_with_noise(x_t: Images, x_0: Images, noise: Images, cur: Level, nxt: Level) -> Images:
    """First-order step of the SDE: below `nxt` along the line from x_0, then noise up to it.

    With h the step in log-SNR, this is the first-order step of SDE-DPM-Solver++ (Lu et al. 2022,
    appendix D); better steps put a better x_0 in.
    """
    ratio = sigma_ratio(cur, nxt)  # exp(-h)
    fresh = (1 - ratio) * (1 + ratio)  # 1 - exp(-2 h)
    x = (nxt.sigma / cur.sigma) * ratio * x_t + fresh * nxt.signal * x_0
    return x + nxt.sigma * jnp.sqrt(fresh) * noise
