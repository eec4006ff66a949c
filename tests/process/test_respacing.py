import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.grids import respace_betas, space_timesteps, timestep_grid
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.schedules import cosine_betas, make_schedule
from jax_ddpm.samplers import ddim, ddpm, sample

BETAS = cosine_betas(90)


@pytest.mark.parametrize(
    ("num_timesteps", "sections", "expected"),
    [
        (10, "10", [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (10, "2", [9, 0]),
        (10, "1", [0]),
        (10, "2,1", [5, 4, 0]),
        (11, "3,2", [10, 6, 5, 2, 0]),
        (10, [0, 2], [9, 5]),
        (10, "ddim5", [8, 6, 4, 2, 0]),
        (10, "ddim2", [5, 0]),
    ],
)
def test_respaced_timesteps_are_the_ones_worked_out_by_hand(num_timesteps, sections, expected):
    found = space_timesteps(num_timesteps, sections)
    assert found.tolist() == [*expected, -1]
    assert found.dtype == np.int32


def test_every_section_has_its_ends_and_its_count():
    kept = space_timesteps(300, "10,15,20")[-2::-1]
    for i, count in enumerate((10, 15, 20)):
        section = kept[(kept >= 100 * i) & (kept < 100 * i + 100)]
        assert (len(section), section[0], section[-1]) == (count, 100 * i, 100 * i + 99)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ("60,10", "60 timesteps do not fit into a section of 50"),
        ("ddim33", "no integer stride gives exactly 33 of T = 100 timesteps"),
        ("ddim", 'must be like "25"'),
        ("3,x", 'must be like "25"'),
        ("", 'must be like "25"'),
        ("0", "at least one timestep"),
        ([-1], "-1 timesteps do not fit into a section"),
    ],
)
def test_impossible_sections_are_refused(sections, message):
    with pytest.raises(ValueError, match=message):
        space_timesteps(100, sections)


def test_respacing_to_all_timesteps_changes_nothing():
    found = respace_betas(BETAS, timestep_grid(90, 90))
    np.testing.assert_allclose(found, BETAS, rtol=1e-12)  # measured: 7e-15


def test_the_respaced_chain_visits_the_same_levels():
    timesteps = space_timesteps(90, "5,3,2")
    schedule = make_schedule(BETAS, dtype=jnp.float64)
    respaced = make_schedule(respace_betas(BETAS, timesteps), dtype=jnp.float64)
    few = level_at(respaced, jnp.arange(9, -2, -1))
    kept = level_at(schedule, jnp.asarray(timesteps))
    np.testing.assert_allclose(few.signal, kept.signal, rtol=0, atol=1e-13)  # measured: 8e-15
    np.testing.assert_allclose(few.sigma, kept.sigma, rtol=0, atol=1e-13)  # measured: 0


@pytest.mark.parametrize("sampler", [ddpm("learned_range"), ddim(0.5)], ids=["ddpm", "ddim"])
def test_sampling_the_respaced_schedule_equals_sampling_over_the_visited_timesteps(sampler):
    timesteps = space_timesteps(90, "5,3,2")
    schedule = make_schedule(BETAS, dtype=jnp.float64)
    respaced = make_schedule(respace_betas(BETAS, timesteps), dtype=jnp.float64)
    noises = jnp.asarray(np.random.default_rng(0).standard_normal((11, 2, 3, 3, 1)))
    visited = jnp.asarray(timesteps[-2::-1])

    @jax.jit
    def chain(levels, names):
        def network(params, x_t, t):
            time = names[t].astype(x_t.dtype)[:, None, None, None] / 90
            return jnp.concatenate([0.5 * x_t + 0.1 * time, jnp.tanh(x_t)], axis=-1)

        denoise_fn = make_denoise_fn(network, None, learned_variance=True)
        return sample(sampler, denoise_fn, levels, noises[10], lambda i: noises[i])[0]

    # in both, the network gets the timestep of the full chain
    full = chain(level_at(schedule, jnp.asarray(timesteps)), jnp.arange(90))
    padded = jnp.zeros(90, visited.dtype).at[:10].set(visited)
    few = chain(level_at(respaced, jnp.arange(9, -2, -1, dtype=jnp.int32)), padded)
    np.testing.assert_allclose(few, full, rtol=0, atol=1e-12)  # measured: 1e-14
