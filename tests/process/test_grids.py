import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.process.grids import CONTINUOUS, continuous_levels, parse_timesteps
from jax_ddpm.process.levels import level_at, level_list, level_of_sigma, level_of_t
from jax_ddpm.process.schedules import named_schedule

SCHEDULE = named_schedule("linear", 100, dtype=jnp.float64)
ALL = level_at(SCHEDULE, jnp.arange(100))


@pytest.mark.parametrize("spacing", CONTINUOUS)
def test_a_continuous_grid_runs_from_the_last_timestep_to_the_first_and_the_clean_image(spacing):
    levels = continuous_levels(SCHEDULE, 9, spacing)
    assert [len(field) for field in levels] == [10, 10, 10]
    ends = {} if spacing == "karras_trailing" else {8: 0}
    for i, t in {0: 99, **ends}.items():
        mine, theirs = (jax.tree.map(lambda a, i=i: a[i], f) for f, i in ((levels, i), (ALL, t)))
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)  # measured: 5e-15
    if spacing == "karras_trailing":
        assert float(levels.t[8]) == pytest.approx(100 / 9 - 1)
    assert [float(field[-1]) for field in levels] == [-1, 1, 0]
    assert jnp.all(jnp.diff(levels.t) < 0)
    np.testing.assert_allclose(levels.signal**2 + levels.sigma**2, 1, rtol=1e-14)


def test_steps_are_equal_in_log_snr_or_in_the_seventh_root_of_sigma():
    for spacing, curve in (("log_snr", jnp.log), ("karras", lambda s: s ** (1 / 7))):
        levels = continuous_levels(SCHEDULE, 9, spacing)
        steps = jnp.diff(curve(levels.sigma[:-1] / levels.signal[:-1]))
        np.testing.assert_allclose(steps, steps[0], rtol=1e-11)  # measured: 4e-14
    only = continuous_levels(SCHEDULE, 1, "karras").t
    np.testing.assert_allclose(only, [99, -1], rtol=1e-12)  # measured: 3e-16


def test_a_continuous_grid_may_have_more_steps_than_timesteps():
    assert len(continuous_levels(SCHEDULE, 250, "log_snr").t) == 251


def test_impossible_continuous_grids_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        continuous_levels(SCHEDULE, 0, "karras")
    noise = named_schedule("linear", 100, dtype=jnp.float64, zero_terminal_snr=True)
    with pytest.raises(ValueError, match="keeps some signal"):
        continuous_levels(noise, 5, "log_snr")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_levels_of_t_and_of_sigma_are_inverses(dtype):
    schedule = named_schedule("linear", 100, dtype=dtype)
    t = jnp.asarray([0.0, 0.3, 17.25, 98.9, 99.0], dtype)
    level = jax.jit(level_of_t(schedule))(t)
    back = level_of_sigma(schedule)(level.sigma / level.signal)
    assert {field.dtype for field in (*level, *back)} == {jnp.dtype(dtype)}
    # Measured: 2e-14 and 2e-5
    np.testing.assert_allclose(back.t, t, rtol=0, atol=1e-11 if dtype == "float64" else 1e-4)


def test_integer_timesteps_are_looked_up_in_the_tables():
    level = level_of_t(SCHEDULE)(jnp.asarray([5, 99, -1]))
    assert jnp.issubdtype(level.t.dtype, jnp.integer)
    np.testing.assert_array_equal(level, level_at(SCHEDULE, jnp.asarray([5, 99, -1])))
    between = level_of_t(SCHEDULE)(jnp.asarray(5.5))
    assert ALL.sigma[5] < between.sigma < ALL.sigma[6]


def test_a_sigma_outside_the_schedule_gets_the_nearest_timestep():
    level = level_of_sigma(SCHEDULE)(jnp.asarray([1e-6, 1e6]))
    assert level.t.tolist() == [0, 99]
    np.testing.assert_allclose(level.sigma / level.signal, [1e-6, 1e6], rtol=1e-12)


def test_tabulated_levels_end_with_the_clean_image():
    levels = level_list(SCHEDULE, np.array([99.0, 7.5]), np.array([3.0, 0.75]))
    np.testing.assert_allclose(levels.t, [99, 7.5, -1])
    np.testing.assert_allclose(levels.signal, [10**-0.5, 0.8, 1], rtol=1e-14)
    np.testing.assert_allclose(levels.sigma, [0.9**0.5, 0.6, 0], rtol=1e-14)


def test_listed_timesteps_are_visited_as_listed():
    align_your_steps = "999,850,736,645,545,455,343,233,124,24"
    found = parse_timesteps(1000, align_your_steps)
    assert found.tolist() == [*map(int, align_your_steps.split(",")), -1]
    assert parse_timesteps(10, " 9, 0 ").tolist() == [9, 0, -1]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("1000,5", "must descend between T - 1 = 999 and 0"),
        ("5,5", "must descend"),
        ("5,7", "must descend"),
        ("5,-1", "like"),
        ("", "like"),
        ("9,8.5", "like"),
    ],
)
def test_lists_that_do_not_descend_are_refused(listed, message):
    with pytest.raises(ValueError, match=message):
        parse_timesteps(1000, listed)
