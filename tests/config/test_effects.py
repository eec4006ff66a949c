import pytest

from jax_ddpm.config.effects import Circumstances, require_effects, require_no_frames
from jax_ddpm.config.sample import SampleConfig, change_settings
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.build import make_sampling_levels
from jax_ddpm.process.schedules import named_schedule

SCHEDULE = named_schedule("cosine", 100)
OF_RUN = SampleConfig(num_steps=100)

IDLE = [
    (
        {"eta": 0.5, "sampler": "heun"},
        "--eta 0.5 has no effect with --sampler heun: it is for ddim",
    ),
    ({"eta": 0.5}, "--eta 0.5 has no effect with --sampler ddpm"),
    ({"variance": "fixed_small", "sampler": "ddim"}, "--variance fixed_small .* is for ddpm"),
    ({"churn_max": 9.0, "sampler": "euler"}, "--churn-max 9.0 .* is for heun"),
    ({"churn_noise": 1.1, "sampler": "heun"}, "--churn-noise 1.1 .* without --churn"),
    (
        {"sampler": "heun", "churn": 5.0, "churn_min": 1e4},
        "--churn 5.0 .* no step starts at a sigma/signal",
    ),
    ({"clip_x_0": False, "dynamic_threshold": 0.9}, "--no-clip-x-0 .* with --dynamic-threshold"),
    ({"rederive_eps": False, "sampler": "euler"}, "--no-rederive-eps .* for ddim, plms, pndm or"),
    ({"rederive_eps": False, "sampler": "ddim", "clip_x_0": False}, "where x_0 is not clipped"),
    ({"guidance": 1.0, "guidance_rescale": 0.5}, "--guidance-rescale 0.5 .* --guidance 1"),
    (
        {"guidance": 1.0, "guidance_interval": (5, 9)},
        "--guidance-interval 5 9 .* --guidance 1",
    ),
    (
        {"num_steps": 10, "guidance": 3.0, "guidance_interval": (1, 5)},
        "--guidance 3.0 has no effect because no visited timestep is within",
    ),
]
USEFUL = [
    {"eta": 0.5, "sampler": "ddim"},
    {"sampler": "ddim", "rederive_eps": False, "dynamic_threshold": 0.9},
    {"sampler": "heun", "churn": 5.0, "churn_noise": 1.1, "num_steps": 10},
    {"sampler": "euler", "eta": 0.0, "rederive_eps": True},
    {"num_steps": 10, "guidance": 3.0, "guidance_interval": (1, 9)},
    {"num_steps": 10, "sampler": "kdpm2", "guidance": 3.0, "guidance_interval": (20, 21)},
]


def check(of_run, changes, learned_variance=False):
    sample = change_settings(of_run, changes)
    levels = make_sampling_levels(sample, SCHEDULE)
    require_effects(sample, changes, Circumstances(levels, learned_variance))


@pytest.mark.parametrize(("changes", "message"), IDLE)
def test_settings_without_effect_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check(OF_RUN, changes)


@pytest.mark.parametrize("changes", USEFUL)
def test_settings_with_an_effect_are_not_refused(changes):
    check(SampleConfig(clip_x_0=False, num_steps=100), changes)


def test_idle_settings_of_the_run_itself_are_not_refused():
    of_run = SampleConfig("ddim", 50, eta=0.5, variance="fixed_small", rederive_eps=False)
    check(of_run, {"sampler": "heun"})


def test_a_chosen_variance_is_refused_where_the_network_predicts_it():
    with pytest.raises(UserError, match="network predicts the variance"):
        check(OF_RUN, {"variance": "fixed_small"}, learned_variance=True)


def test_frames_need_a_gif():
    require_no_frames({"eta": 0.5}, "draw one")
    with pytest.raises(UserError, match="--frames 9 has no effect without a GIF: draw one"):
        require_no_frames({"frames": 9}, "draw one")
