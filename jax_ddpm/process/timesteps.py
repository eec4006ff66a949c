"""Which timesteps are trained: uniform, spread over the batch, log-normal, or by their losses.

The functions take what is drawn; `make_timestep_fn` wraps them and draws it.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jax_ddpm.process.schedules import Schedule
from jax_ddpm.process.types import Losses, Timesteps

TimestepSampling = Literal["uniform", "stratified", "antithetic", "log_normal", "importance"]


class Place(NamedTuple):
    """Where examples are in a global batch: their numbers, its size, and the key all share."""

    indices: Int[Array, " b"]
    batch_size: int
    key: Key[Array, ""]


class LossHistory(struct.PyTreeNode):
    """The last H losses of each timestep, oldest first, and how many there are (0..H)."""

    losses: Float[Array, "T H"]
    counts: Int[Array, " T"]


TimestepFn = Callable[
    [Key[Array, " b"], Place, LossHistory | None], tuple[Timesteps, Losses | None]
]


def make_timestep_fn(
    sampling: TimestepSampling,
    schedule: Schedule,
    *,
    log_normal_mean: float = -1.2,
    log_normal_std: float = 1.2,
) -> TimestepFn:
    """(keys[b], place, history) -> t[b] in 0..T-1, and the weights of their losses; None: all 1.

    uniform, stratified, log_normal and importance use the example's own key, antithetic the shared
    one. `history` is for importance alone.
    """
    T = schedule.num_timesteps

    def timestep_fn(
        keys: Key[Array, " b"], place: Place, history: LossHistory | None = None
    ) -> tuple[Timesteps, Losses | None]:
        match sampling:
            case "uniform":
                return uniform_timesteps(keys, T), None
            case "stratified":
                u = jax.vmap(jax.random.uniform)(keys)
                return stratified_timesteps(u, place.indices, place.batch_size, T), None
            case "antithetic":
                shared = jax.random.uniform(place.key)
                return antithetic_timesteps(shared, place.indices, place.batch_size, T), None
            case "log_normal":
                normal = jax.vmap(jax.random.normal)(keys)
                return nearest_timesteps(schedule, log_normal_mean + log_normal_std * normal), None
            case "importance":
                if history is None:
                    raise ValueError("importance sampling of timesteps needs the earlier losses")
                p = importance(history)
                t = inverse_cdf(jax.vmap(jax.random.uniform)(keys), p)
                return t, 1 / (T * p[t])

    return timestep_fn


def uniform_timesteps(keys: Key[Array, " b"], num_timesteps: int) -> Timesteps:
    """t uniform in 0..T-1, each from its own key (Ho et al. 2020, algorithm 1)."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, num_timesteps))(keys)


def stratified_timesteps(
    u: Float[Array, " b"], index: Int[Array, " b"], batch_size: int, num_timesteps: int
) -> Timesteps:
    """floor(T (i + u_i) / B): example i of a batch of B has the i-th of B equal parts of 0..T-1.

    u in [0, 1), index in 0..B-1. Over the batch every timestep has the same chance.
    """
    return _whole(num_timesteps * ((index + u) / batch_size), num_timesteps)


def antithetic_timesteps(
    u: Float[Array, ""], index: Int[Array, " b"], batch_size: int, num_timesteps: int
) -> Timesteps:
    """floor(T ((u + i/B) mod 1)): one draw for the batch, the rest at equal distances.

    u in [0, 1), index in 0..B-1 (Kingma et al. 2021, their low-discrepancy sampler).
    """
    return _whole(num_timesteps * ((u + index / batch_size) % 1), num_timesteps)


def _whole(t: Float[Array, " b"], num_timesteps: int) -> Timesteps:
    return jnp.minimum(t.astype(jnp.int32), num_timesteps - 1)  # rounding can reach T


def nearest_timesteps(schedule: Schedule, log_ratio: Float[Array, " b"]) -> Timesteps:
    """The timesteps whose log(sigma / signal) is nearest to `log_ratio`.

    Normal with mean -1.2 and standard deviation 1.2 in Karras et al. 2022, table 1, where signal
    is 1.
    """
    table = jnp.log(schedule.sqrt_recipm1_alphas_cumprod)
    return jnp.searchsorted((table[1:] + table[:-1]) / 2, log_ratio)


def inverse_cdf(u: Float[Array, " b"], p: Float[Array, " T"]) -> Timesteps:
    """The timesteps at which the running sum of the probabilities `p` passes u, in [0, 1)."""
    total = jnp.cumsum(p)
    t = jnp.searchsorted(total, u.astype(p.dtype) * total[-1], side="right")
    return jnp.minimum(t, len(p) - 1)


def empty_history(num_timesteps: int, size: int = 10, dtype: Any = jnp.float32) -> LossHistory:
    """No loss yet; room for the last `size` of each timestep (10: Nichol & Dhariwal 2021)."""
    zeros = jnp.zeros((num_timesteps, size), dtype)
    return LossHistory(zeros, jnp.zeros(num_timesteps, jnp.int32))


def importance(history: LossHistory, uniform_prob: float = 0.001) -> Float[Array, " T"]:
    """The probability of each timestep: proportional to the root mean square of its last losses.

    Uniform until every timestep has as many losses as there is room for; from then on a part
    `uniform_prob` of it stays so (Nichol & Dhariwal 2021, section 3.3 and its code).
    """
    T, size = history.losses.shape
    rms = jnp.sqrt((history.losses**2).mean(axis=1))
    p = (1 - uniform_prob) * rms / rms.sum() + uniform_prob / T
    return jnp.where(jnp.all(history.counts == size), p, 1 / T)


def record(history: LossHistory, t: Timesteps, losses: Losses) -> LossHistory:
    """The history after `losses` at timesteps `t`, in the order of the batch; the oldest go."""
    T, size = history.losses.shape
    earlier = jnp.tril(t[:, None] == t[None, :], -1).sum(1)  # [b], those of the same t before it
    added = jnp.zeros(T, jnp.int32).at[t].add(1)
    gone = jnp.maximum(history.counts + added - size, 0)  # [T], how far each row moves
    source = jnp.arange(size)[None, :] + gone[:, None]  # [T, H], beyond H: free places
    free = source >= history.counts[:, None]
    kept = jnp.take_along_axis(history.losses, jnp.minimum(source, size - 1), axis=1)
    place = history.counts[t] + earlier - gone[t]
    place = jnp.where(place < 0, size, place)  # more than H in one batch: not kept
    moved = jnp.where(free, 0, kept)
    new = moved.at[t, place].set(losses.astype(moved.dtype), mode="drop")
    return LossHistory(new, jnp.minimum(history.counts + added, size))
