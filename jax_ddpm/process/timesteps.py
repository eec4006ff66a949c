"""Which timesteps are trained: uniform, spread over the batch, log-normal, or by their losses.

The functions take the random numbers; `make_timestep_fn` wraps them and draws these numbers.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jax_ddpm.errors import UserError, check_choice
from jax_ddpm.process.schedules import Schedule
from jax_ddpm.process.types import Losses

Keys = Key[Array, " b"]
Drawn = Int[Array, " b"]  # one timestep per example


class BatchPart(NamedTuple):
    """The indices of examples in a global batch, its size, and the key that the batch shares."""

    indices: Int[Array, " b"]
    batch_size: int
    key: Key[Array, ""]


class LossHistory(struct.PyTreeNode):
    """The last H losses of each timestep, oldest first, and how many there are (0..H)."""

    losses: Float[Array | np.ndarray, "T H"]
    counts: Int[Array | np.ndarray, " T"]


TimestepFn = Callable[[Keys, BatchPart, LossHistory | None], tuple[Drawn, Losses | None]]


class LogNormal(NamedTuple):
    """Mean and standard deviation of log(sigma / signal)."""

    mean: float
    std: float


def _draw_uniform(
    schedule: Schedule, curve: LogNormal, keys: Keys, part: BatchPart, history: LossHistory | None
) -> tuple[Drawn, Losses | None]:
    return uniform_timesteps(keys, schedule.num_timesteps), None


def _draw_stratified(
    schedule: Schedule, curve: LogNormal, keys: Keys, part: BatchPart, history: LossHistory | None
) -> tuple[Drawn, Losses | None]:
    u, T = jax.vmap(jax.random.uniform)(keys), schedule.num_timesteps
    return stratified_timesteps(u, part.indices, part.batch_size, T), None


def _draw_antithetic(
    schedule: Schedule, curve: LogNormal, keys: Keys, part: BatchPart, history: LossHistory | None
) -> tuple[Drawn, Losses | None]:
    u, T = jax.random.uniform(part.key), schedule.num_timesteps
    return antithetic_timesteps(u, part.indices, part.batch_size, T), None


def _draw_log_normal(
    schedule: Schedule, curve: LogNormal, keys: Keys, part: BatchPart, history: LossHistory | None
) -> tuple[Drawn, Losses | None]:
    normal = jax.vmap(jax.random.normal)(keys)
    return nearest_timesteps(schedule, curve.mean + curve.std * normal), None


def _draw_by_importance(
    schedule: Schedule, curve: LogNormal, keys: Keys, part: BatchPart, history: LossHistory | None
) -> tuple[Drawn, Losses | None]:
    if history is None:
        raise UserError("importance sampling of timesteps needs the history of their losses")
    p = importance(history)
    t = inverse_cdf(jax.vmap(jax.random.uniform)(keys), p)
    return t, 1 / (schedule.num_timesteps * p[t])


TIMESTEP_SAMPLINGS: dict[str, Callable[..., tuple[Drawn, Losses | None]]] = {
    "uniform": _draw_uniform,
    "stratified": _draw_stratified,
    "antithetic": _draw_antithetic,
    "log_normal": _draw_log_normal,
    "importance": _draw_by_importance,
}

if TYPE_CHECKING:
    TimestepSampling = str
else:
    TimestepSampling = Literal[tuple(TIMESTEP_SAMPLINGS)]


def make_timestep_fn(
    sampling: str,
    schedule: Schedule,
    *,
    log_normal_mean: float = -1.2,
    log_normal_std: float = 1.2,
) -> TimestepFn:
    """(keys[b], part, history) -> t[b] in 0..T-1, and the weights of their losses; None: all 1.

    uniform, stratified, log_normal and importance use the example's own key, antithetic the shared
    one. Only importance needs `history`. Raises UserError for an unknown `sampling`.
    """
    draw = TIMESTEP_SAMPLINGS[check_choice("timestep sampling", sampling, TIMESTEP_SAMPLINGS)]
    curve = LogNormal(log_normal_mean, log_normal_std)

    def timestep_fn(
        keys: Keys, part: BatchPart, history: LossHistory | None = None
    ) -> tuple[Drawn, Losses | None]:
        return draw(schedule, curve, keys, part, history)

    return timestep_fn


def uniform_timesteps(keys: Keys, num_timesteps: int) -> Drawn:
    """t uniform in 0..T-1, each from its own key (Ho et al. 2020, algorithm 1)."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, num_timesteps))(keys)


def stratified_timesteps(
    u: Float[Array, "*b"], index: Int[Array, " b"], batch_size: int, num_timesteps: int
) -> Drawn:
    """floor(T (i + u_i) / B): example i of a batch of B has the i-th of B equal parts of 0..T-1.

    u in [0, 1), index in 0..B-1. Over the batch every timestep has the same chance.
    """
    return floor_timesteps(num_timesteps * ((index + u) / batch_size), num_timesteps)


def antithetic_timesteps(
    u: Float[Array, ""], index: Int[Array, " b"], batch_size: int, num_timesteps: int
) -> Drawn:
    """floor(T ((u + i/B) mod 1)): one draw for the batch, the rest at equal distances.

    u in [0, 1), index in 0..B-1 (Kingma et al. 2021, their low-discrepancy sampler).
    """
    return floor_timesteps(num_timesteps * ((u + index / batch_size) % 1), num_timesteps)


def floor_timesteps(t: Float[Array, " b"], num_timesteps: int) -> Drawn:
    """The integers at or below t in [0, T]; T itself, which rounding can reach, counts as T - 1."""
    return jnp.minimum(t.astype(jnp.int32), num_timesteps - 1)


def nearest_timesteps(schedule: Schedule, log_ratio: Float[Array, " b"]) -> Drawn:
    """The timesteps whose log(sigma / signal) is nearest to `log_ratio`.

    In Karras et al. 2022, table 1, where signal is 1, it is normal with mean -1.2 and standard
    deviation 1.2.
    """
    table = jnp.log(schedule.sqrt_recipm1_alphas_cumprod)
    return jnp.searchsorted((table[1:] + table[:-1]) / 2, log_ratio)


def inverse_cdf(u: Float[Array, " b"], p: Float[Array, " T"]) -> Drawn:
    """The timesteps at which the running sum of the probabilities `p` exceeds u, in [0, 1)."""
    total = jnp.cumsum(p)
    t = jnp.searchsorted(total, u.astype(p.dtype) * total[-1], side="right")
    return jnp.minimum(t, len(p) - 1)


def empty_history(num_timesteps: int, size: int = 10, dtype: Any = jnp.float32) -> LossHistory:
    """No losses yet, and room for the last `size` of each timestep (10: Nichol & Dhariwal 2021)."""
    zeros = jnp.zeros((num_timesteps, size), dtype)
    return LossHistory(zeros, jnp.zeros(num_timesteps, jnp.int32))


def importance(history: LossHistory, uniform_prob: float = 0.001) -> Float[Array, " T"]:
    """The probability of each timestep: proportional to the root mean square of its last losses.

    It is uniform until every timestep has as many losses as there is room for. From then on a
    share of `uniform_prob` stays uniform (Nichol & Dhariwal 2021, section 3.3 and their code).
    """
    T, size = history.losses.shape
    rms = jnp.sqrt((history.losses**2).mean(axis=1))
    p = (1 - uniform_prob) * rms / rms.sum() + uniform_prob / T
    return jnp.where(jnp.all(history.counts == size), p, 1 / T)


def record(history: LossHistory, t: Drawn, losses: Losses) -> LossHistory:
    """The history with the `losses` at timesteps `t` appended in the order of the batch.

    Of each timestep the oldest losses make room for new ones.
    """
    T, size = history.losses.shape
    earlier = jnp.tril(t[:, None] == t[None, :], -1).sum(1)  # [b], how many of this t come before
    added = jnp.zeros(T, jnp.int32).at[t].add(1)
    dropped = jnp.maximum(history.counts + added - size, 0)  # [T], how far each row moves
    source = jnp.arange(size)[None, :] + dropped[:, None]  # [T, H], beyond H: free columns
    free = source >= history.counts[:, None]
    moved = jnp.take_along_axis(history.losses, jnp.minimum(source, size - 1), axis=1)
    moved = jnp.where(free, 0, moved)
    column = history.counts[t] + earlier - dropped[t]
    column = jnp.where(column < 0, size, column)  # more than H of one t in the batch: left out
    new = moved.at[t, column].set(losses.astype(moved.dtype), mode="drop")
    return LossHistory(new, jnp.minimum(history.counts + added, size))
