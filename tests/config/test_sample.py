from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.config.jobs import SampleJob, Weights
from jax_ddpm.config.run import Config, DiffusionConfig, validate, validate_sampling
from jax_ddpm.config.sample import (
    SampleConfig,
    change_settings,
    describe_low_start,
    sampling_timesteps,
    validate_sample,
)
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.build import make_sampler, make_sampling_levels
from jax_ddpm.jobs.generate import make_denoiser
from jax_ddpm.jobs.parameters import load_params
from jax_ddpm.jobs.sample import sample_run
from jax_ddpm.models import PulferConfig
from jax_ddpm.process.grids import SPACINGS, timestep_grid
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.samplers import SAMPLERS, SamplerState

SCHEDULE = named_schedule("linear", 100, dtype=jnp.float64)
TABLE = {"whole_timesteps": True}
NOISE = {"zero_terminal_snr": True}
BAD = [
    ({"spacing": "karras", "num_steps": 0}, {}, "--steps is 0, .* at least 1"),
    ({"spacing": "log_snr", "num_steps": 1001}, TABLE, "--steps is 1001, .* at most 1000"),
    ({"spacing": "karras"}, NOISE, "spacing is karras, .* of timesteps, such as trailing"),
    ({"timesteps": "5,9"}, {}, "must descend between T - 1 = 999 and 0"),
    (
        {"timesteps": "9,5", "respacing": "25"},
        {},
        "timesteps is 9,5, .* left out with --respacing 25",
    ),
    ({"churn": 1.0}, {}, "churn is 1.0, .* 0 with --sampler ddpm: only heun"),
    ({"churn": -1.0, "sampler": "heun"}, {}, "churn is -1.0, .* 0 or more"),
    ({"churn": 1.0, "sampler": "heun"}, TABLE, "churn is 1.0, .* table of times"),
    ({"sampler": "kdpm2"}, TABLE, "sampler is kdpm2, .* such as heun: .* table of times"),
    ({"churn_min": -1.0}, {}, "churn-min is -1.0"),
    ({"churn_min": 2.0, "churn_max": 1.0}, {}, "churn-max is 1.0, .* at least --churn-min 2"),
    ({"churn_noise": -1.0}, {}, "churn-noise is -1.0"),
    ({"dynamic_threshold": 0.0}, {}, "dynamic-threshold is 0.0, .* a quantile"),
    ({"dynamic_threshold": 1.1}, {}, "dynamic-threshold is 1.1, .* a quantile"),
]
GOOD = [
    ({"spacing": "karras", "num_steps": 2000}, {}),
    ({"sampler": "dpmpp_2m", "spacing": "trailing", "num_steps": 20}, NOISE),
    ({"sampler": "heun", "spacing": "trailing", "num_steps": 20}, NOISE),
    ({"sampler": "heun", "spacing": "karras_trailing", "num_steps": 20}, NOISE),
    ({"sampler": "pndm", "timesteps": "999,0"}, NOISE),
    ({"spacing": "log_snr"}, TABLE),
    ({"sampler": "pndm", "num_steps": 20}, TABLE),
    ({"sampler": "kdpm2", "num_steps": 20}, {}),
    ({"sampler": "heun", "churn": 40.0, "churn_max": 50.0, "dynamic_threshold": 1.0}, {}),
]


@pytest.mark.parametrize(("settings", "of_run", "message"), BAD)
def test_settings_that_cannot_work_are_refused_in_one_sentence(settings, of_run, message):
    with pytest.raises(UserError, match=message) as caught:
        validate_sample(SampleConfig(**settings), 1000, **of_run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("settings", "of_run"), GOOD)
def test_settings_that_work_are_not_refused(settings, of_run):
    validate_sample(SampleConfig(**settings), 1000, **of_run)


def test_the_runs_network_and_schedule_limit_the_settings():
    sample = SampleConfig(sampler="heun", spacing="karras", num_steps=10)
    diffusion = DiffusionConfig(prediction_type="v", zero_terminal_snr=True)
    with pytest.raises(UserError, match="pure noise"):
        validate(Config(diffusion=diffusion, sample=sample))
    with pytest.raises(UserError, match="table of times"):
        validate_sampling(SampleConfig(sampler="kdpm2"), Config(model=PulferConfig()))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_grid_starts_within_a_tenth_of_the_end_or_the_command_says_so(spacing):
    """At 501 to 999 of 1,000 leading steps, T // S is 1: they start at 500 to 998."""
    told = set()
    for num_steps in range(1, 1001):
        sample = SampleConfig(spacing=spacing, num_steps=num_steps)
        try:
            first = int(sampling_timesteps(sample, 1000)[0])
        except UserError:
            continue  # quad visits a timestep twice
        low = describe_low_start(sample, 1000)
        assert (low is None) == (first >= 899)
        assert low is None or f"start at t = {first} of 0 to 999" in low
        told |= {num_steps} if low else set()
    most = {"leading": 501 in told, "quad": True}
    assert bool(told) == most.get(spacing, spacing == "linspace")  # one step of linspace is t = 0


def test_a_list_of_timesteps_that_starts_low_is_named():
    listed = SampleConfig(timesteps="500,9")
    assert "the listed timesteps start at t = 500" in describe_low_start(listed, 1000)
    assert describe_low_start(SampleConfig(spacing="karras"), 1000) is None


@pytest.mark.parametrize(
    ("of_run", "sampler", "spacing"),
    [
        (SampleConfig("ddim", spacing="leading"), "heun", "karras_trailing"),
        (SampleConfig("ddim", spacing="leading"), "ddpm", "leading"),
        (SampleConfig("heun", spacing="karras_trailing"), "ddim", "trailing"),
        (SampleConfig("heun", spacing="quad"), "ddim", "quad"),
    ],
)
def test_another_sampler_brings_its_spacing_or_leaves_the_choice_of_the_run(
    of_run, sampler, spacing
):
    assert change_settings(of_run, {"sampler": sampler}).spacing == spacing


def test_levels_at_whole_timesteps_come_from_the_tables():
    trailing = SampleConfig(spacing="trailing", num_steps=7)
    np.testing.assert_array_equal(
        make_sampling_levels(trailing, SCHEDULE),
        level_at(SCHEDULE, jnp.asarray(timestep_grid(100, 7, "trailing"))),
    )
    listed = replace(trailing, timesteps="90,40,3", spacing="karras")
    assert make_sampling_levels(listed, SCHEDULE).t.tolist() == [90, 40, 3, -1]
    assert sampling_timesteps(replace(trailing, respacing="ddim10"), 100)[0] == 90


def test_levels_between_the_timesteps_have_no_whole_timesteps():
    between = SampleConfig(spacing="log_snr", num_steps=7)
    levels = make_sampling_levels(between, SCHEDULE)
    assert (len(levels.t), float(levels.t[0]), float(levels.t[-1])) == (8, 99, -1)
    with pytest.raises(ValueError, match="between the timesteps"):
        sampling_timesteps(between, 100)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_built_by_its_name(name):
    settings = SampleConfig(sampler=name)
    sampler = make_sampler(settings, DiffusionConfig(), SCHEDULE, 5)
    assert isinstance(sampler.init(jnp.zeros((1, 2, 2, 1))), SamplerState)


@pytest.mark.slow
def test_thresholding_and_eps_reach_the_denoiser(trained_run):
    from jax_ddpm import runs
    from jax_ddpm.jobs.build import build

    run = runs.load(trained_run)
    parts = build(run.config, run.image_shape)
    params, _ = load_params(run, parts, Weights("raw"))
    level = level_at(parts.schedule, jnp.asarray(6))
    x_t = 3 * jnp.ones((1, *run.image_shape)).at[0, 0].set(0.5)

    def predict(**settings):
        return make_denoiser(parts, SampleConfig(**settings), params, None)(x_t, level)

    plain, clipped = predict(clip_x_0=False), predict()
    assert jnp.abs(plain.x_0).max() > 1.5
    limit = jnp.quantile(jnp.abs(plain.x_0), 0.5)
    found = predict(dynamic_threshold=0.5).x_0
    np.testing.assert_allclose(found, jnp.clip(plain.x_0 / limit, -1, 1), rtol=1e-6)
    assert jnp.abs(found - clipped.x_0).max() > 0.1
    np.testing.assert_array_equal(predict(rederive_eps=False).eps, plain.eps)
    assert jnp.abs(clipped.eps - plain.eps).max() > 0.1


def test_a_new_grid_replaces_the_runs_own():
    of_run = SampleConfig(respacing="25", timesteps=None)
    found = change_settings(of_run, {"timesteps": "5,1"})
    assert (found.timesteps, found.respacing) == ("5,1", None)
    found = change_settings(replace(of_run, timesteps="5,1"), {"steps": 7})
    assert (found.num_steps, found.timesteps, found.respacing) == (7, None, None)


def test_another_sampler_brings_its_own_spacing_and_the_same_one_does_not():
    of_run = SampleConfig(sampler="ddim", spacing="quad", num_steps=9, eta=0.5)
    assert change_settings(of_run, {}) == of_run
    assert change_settings(of_run, {"sampler": "ddim"}) == of_run
    found = change_settings(of_run, {"sampler": "dpmpp_2m", "clip_x_0": False})
    assert found == replace(of_run, sampler="dpmpp_2m", spacing="trailing", clip_x_0=False)
    assert change_settings(of_run, {"sampler": "ddpm"}).spacing == "quad"  # it has none of its own
    found = change_settings(of_run, {"sampler": "heun", "spacing": "linspace"})
    assert found.spacing == "linspace"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 3}, "the setting is 'stepz', .*: did you mean 'steps'"),
        ({"sampler": "dimm"}, "--sampler is 'dimm', .*: did you mean 'ddim'"),
        ({"steps": 3, "respacing": "5"}, "--steps 3 and --respacing 5 each choose the timesteps"),
        ({"spacing": "quad", "timesteps": "5,1"}, "--spacing quad and --timesteps 5,1 each choose"),
    ],
)
def test_changes_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        change_settings(SampleConfig(), changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_images_of_a_run(trained_run, tmp_path, name):
    out = tmp_path / "images.npz"
    sample_run(trained_run, SampleJob(2, out, batch_size=2), {"sampler": name, "steps": 5})
    images = np.load(out)["arr_0"]
    assert (images.shape, images.dtype) == ((2, 8, 8, 1), np.uint8)
    assert len(np.unique(images)) > 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"spacing": "karras", "sampler": "dpmpp_2m"},
        {"spacing": "log_snr", "sampler": "heun", "churn": 2.0},
        {"timesteps": "7,3,1", "sampler": "pndm"},
        {"dynamic_threshold": 0.9, "rederive_eps": False},
    ],
)
def test_grids_and_thresholds_draw_images_of_a_run(trained_run, tmp_path, settings):
    out = tmp_path / "images.npz"
    sample_run(trained_run, SampleJob(2, out, batch_size=2), settings)
    assert len(np.unique(np.load(out)["arr_0"])) > 5
