from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jax_ddpm.process.drawing import draw, timestep_keys
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.process.timesteps import (
    BatchPart,
    LossHistory,
    antithetic_timesteps,
    empty_history,
    importance,
    inverse_cdf,
    make_timestep_fn,
    nearest_timesteps,
    record,
    stratified_timesteps,
)

T = 10
SCHEDULE = named_schedule("linear", T, dtype=jnp.float64)
KEYS = jax.random.split(jax.random.key(1), 20_000)
FULL = LossHistory(jnp.arange(1.0, 31).reshape(T, 3), jnp.full(T, 3))


def make_part(keys, key=3):
    return BatchPart(jnp.arange(len(keys)), len(keys), jax.random.key(key))


def draw_timesteps(sampling, schedule=SCHEDULE, keys=KEYS, history=None, **settings):
    timestep_fn = make_timestep_fn(sampling, schedule, **settings)
    return jax.jit(lambda keys, place: timestep_fn(keys, place, history))(keys, make_part(keys))


def compute_p_value(t, probabilities):
    """Compute the p-value of the counts of `t`; a wrong distribution gives 0."""
    counts = np.bincount(t, minlength=len(probabilities))
    assert counts.size == len(probabilities)
    return stats.chisquare(counts, len(t) * np.asarray(probabilities)).pvalue


def test_uniform_timesteps_equal_the_timesteps_of_draw():
    t, weight = draw_timesteps("uniform", keys=timestep_keys(KEYS))
    np.testing.assert_array_equal(t[:50], jax.jit(lambda keys: draw(keys, (), T)[0])(KEYS[:50]))
    assert weight is None


def test_stratified_timesteps_split_the_chain_among_the_examples():
    index, ends = jnp.arange(5), jnp.array([0, 0.9999])
    low, high = (stratified_timesteps(u, index, 5, 1000) for u in ends)
    np.testing.assert_array_equal(low, [0, 200, 400, 600, 800])
    np.testing.assert_array_equal(high, [199, 399, 599, 799, 999])
    single = stratified_timesteps(jnp.float32(1) - jnp.float32(6e-8), index, 5, 1000)
    assert single.max() == 999  # in float32 this sum rounds to the end of the chain


def test_stratified_timesteps_are_uniform_within_each_part():
    parts = BatchPart(jnp.full(len(KEYS), 2), 4, jax.random.key(0))  # the third quarter of forty
    t, _ = make_timestep_fn("stratified", named_schedule("linear", 40))(KEYS, parts, None)
    assert (
        compute_p_value(np.asarray(t) - 20, np.full(10, 0.1)) > 1e-3
    )  # measured with these keys: 0.67


def test_antithetic_timesteps_are_equally_spaced():
    t = antithetic_timesteps(jnp.float64(0.62), jnp.arange(8), 8, 1000)
    np.testing.assert_array_equal(t, (620 + 125 * np.arange(8)) % 1000)
    timestep_fn = make_timestep_fn("antithetic", SCHEDULE)
    many = jax.vmap(lambda key: timestep_fn(KEYS[:4], BatchPart(jnp.arange(4), 4, key), None)[0])
    for example in many(KEYS[:5000]).T:  # measured with these keys: at least 0.4
        assert compute_p_value(example, np.full(T, 1 / T)) > 1e-3


def test_the_nearest_timestep_is_the_one_that_a_search_finds():
    table = np.log(np.asarray(SCHEDULE.sqrt_recipm1_alphas_cumprod))
    wanted = np.random.default_rng(0).uniform(table[0] - 1, table[-1] + 1, 200)
    expected = np.abs(wanted[:, None] - table[None]).argmin(1)
    found = nearest_timesteps(SCHEDULE, jnp.asarray(wanted))
    np.testing.assert_array_equal(found, expected)
    assert set(range(T)) == set(expected.tolist())


def test_log_normal_timesteps_have_the_probabilities_of_the_normal_distribution():
    table = np.log(np.asarray(SCHEDULE.sqrt_recipm1_alphas_cumprod))
    edges = np.concatenate([[-np.inf], (table[1:] + table[:-1]) / 2, [np.inf]])
    for mean, std in ((-1.2, 1.2), (-3.0, 0.7)):
        t, weight = draw_timesteps("log_normal", log_normal_mean=mean, log_normal_std=std)
        p = np.diff(stats.norm.cdf(edges, mean, std))
        assert compute_p_value(t, p) > 1e-3  # measured with these keys: 0.57, 0.14
        assert weight is None


def test_the_inverse_of_the_running_sum_has_the_given_probabilities():
    p = jnp.array([0.1, 0.0, 0.4, 0.0, 0.3, 0.2])
    u = jax.vmap(jax.random.uniform)(KEYS)
    t = inverse_cdf(u, p)
    assert set(np.unique(t).tolist()) == {0, 2, 4, 5}
    assert compute_p_value(np.searchsorted([0, 2, 4, 5], t), p[p > 0]) > 1e-3  # measured: 0.89
    np.testing.assert_array_equal(inverse_cdf(jnp.array([0.0, np.nextafter(1, 0)]), p), [0, 5])
    third = jnp.full(3, 1 / 3, jnp.float32)  # their sum is not 1 in float32
    assert inverse_cdf(jnp.array([np.nextafter(np.float32(1), 0)]), third) == 2


def test_importance_sampling_follows_the_losses_and_its_weights_keep_the_mean():
    p = importance(FULL, 0.1)
    rms = np.sqrt((np.arange(1.0, 31).reshape(T, 3) ** 2).mean(1))
    np.testing.assert_allclose(p, 0.9 * rms / rms.sum() + 0.1 / T, rtol=1e-12)
    t, weight = draw_timesteps("importance", history=FULL)
    p = np.asarray(importance(FULL))
    assert compute_p_value(t, p) > 1e-3  # measured with these keys: 0.94
    np.testing.assert_allclose(weight, 1 / (T * p[t]), rtol=1e-12)
    loss = np.random.default_rng(0).uniform(size=T)
    np.testing.assert_allclose((p * loss / (T * p)).sum(), loss.mean(), rtol=1e-12)


@pytest.mark.parametrize("counts", [np.zeros(T, int), np.r_[2, np.full(T - 1, 3)]])
def test_importance_is_uniform_until_the_history_is_full(counts):
    history = FULL.replace(counts=jnp.asarray(counts))
    np.testing.assert_array_equal(importance(history), np.full(T, 0.1))
    _, weight = draw_timesteps("importance", history=history)
    np.testing.assert_allclose(weight, 1, rtol=1e-12)


def test_importance_needs_a_history():
    with pytest.raises(ValueError, match="needs the history of their losses"):
        draw_timesteps("importance")


def test_the_history_holds_the_last_losses_in_order():
    """Compared with a queue per timestep; a batch may hold more losses than a queue keeps."""
    numbers = np.random.default_rng(0)
    queues = [deque(maxlen=3) for _ in range(4)]
    history, add = empty_history(4, 3, jnp.float64), jax.jit(record)
    for _ in range(12):
        t, losses = numbers.integers(0, 4, 9) // 2 * 2 % 4, numbers.uniform(size=9)
        t[0] = numbers.integers(4)
        for one, loss in zip(t, losses, strict=True):
            queues[one].append(loss)
        history = add(history, jnp.asarray(t), jnp.asarray(losses))
        assert history.counts.tolist() == [len(queue) for queue in queues]
        for row, queue in zip(history.losses, queues, strict=True):
            np.testing.assert_array_equal(row, [*queue, *[0] * (3 - len(queue))])
    assert history.counts.tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("sampling", ["stratified", "antithetic", "importance"])
def test_half_a_batch_draws_the_same_as_the_whole_batch(sampling):
    history = FULL if sampling == "importance" else None
    timestep_fn, keys = make_timestep_fn(sampling, SCHEDULE), KEYS[:12]

    @jax.jit
    def draw_three(keys, others):
        half = BatchPart(jnp.arange(6, 12), 12, jax.random.key(3))
        batches = (keys, make_part(keys)), (keys[6:], half), (others, make_part(keys, 4))
        return [timestep_fn(*batch, history)[0] for batch in batches]

    whole, half, other = draw_three(keys, KEYS[50:62])
    np.testing.assert_array_equal(half, whole[6:])
    assert np.any(other != whole)
    assert jnp.issubdtype(whole.dtype, jnp.integer)
