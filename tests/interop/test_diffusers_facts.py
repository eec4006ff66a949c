"""Each setting in the documents of diffusers becomes a fact, or is refused by its name."""

from pathlib import Path

import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.interop.diffusers_facts import describe
from jax_ddpm.interop.facts import Missing, Question
from jax_ddpm.interop.source import Source
from jax_ddpm.process.schedules import linear_betas, quadratic_betas, rescale_zero_terminal_snr


def make_question(scheduler, network=None, **typed):
    documents = {"scheduler/scheduler_config.json": scheduler, "unet/config.json": network or {}}
    source = Source(Path("p"), {}, documents, "unet/config.json")
    return Question(source, {name.replace("__", "."): value for name, value in typed.items()})


OTHER = {
    "_class_name": "HeliosScheduler",
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}


def find(scheduler, network=None, **typed):
    """The facts of these documents, by their settings."""
    facts = describe(make_question(scheduler, network, **typed))
    return {fact.what.partition(".")[2]: fact.value for fact in facts}


def test_an_empty_scheduler_has_the_defaults_of_diffusers():
    assert find({}) == {
        "schedule": "linear",
        "num_timesteps": 1000,
        "zero_terminal_snr": False,
        "prediction_type": "eps",
        "variance": "fixed_small",
        "clip_x_0": True,
        "sampler": "ddpm",
        "num_steps": 1000,
        "spacing": "leading",
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"beta_schedule": "squaredcos_cap_v2"}, {"schedule": "cosine"}),
        ({"beta_schedule": "scaled_linear"}, {"schedule": "quadratic"}),
        ({"beta_schedule": "sigmoid"}, {"schedule": "sigmoid"}),
        ({"prediction_type": "sample"}, {"prediction_type": "x_0"}),
        ({"prediction_type": "v_prediction"}, {"prediction_type": "v"}),
        ({"predict_epsilon": False}, {"prediction_type": "x_0"}),
        ({"variance_type": "fixed_large"}, {"variance": "fixed_large"}),
        ({"variance_type": "fixed_small_log"}, {"variance": "fixed_small"}),
        ({"variance_type": "learned_range"}, {"variance": "learned_range", "objective": "hybrid"}),
        ({"clip_sample": False, "clip_sample_range": 3.0}, {"clip_x_0": False}),
        ({"thresholding": True, "clip_sample": False}, {"clip_x_0": True}),
        ({"thresholding": True, "sample_max_value": 1e30}, {"dynamic_threshold": 0.995}),
        ({"timestep_spacing": "trailing"}, {"spacing": "trailing"}),
        ({"num_train_timesteps": 40}, {"num_timesteps": 40, "num_steps": 40}),
        (
            {"rescale_betas_zero_snr": True, "prediction_type": "sample"},
            {"zero_terminal_snr": True, "schedule": "linear"},
        ),
        ({"_class_name": "DDIMScheduler"}, {"sampler": "ddim", "rederive_eps": False}),
    ],
)
def test_a_setting_is_translated(settings, expected):
    assert expected.items() <= find(settings).items()


@pytest.mark.parametrize(
    ("settings", "betas"),
    [
        (
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
            quadratic_betas(1000, start=0.00085, end=0.012),
        ),
        ({"trained_betas": [0.1, 0.2, 0.4], "num_train_timesteps": 3}, [0.1, 0.2, 0.4]),
        (
            {"beta_end": 0.03, "rescale_betas_zero_snr": True, "prediction_type": "sample"},
            rescale_zero_terminal_snr(linear_betas(1000, end=0.03)),
        ),
    ],
)
def test_schedules_without_a_name_become_betas(settings, betas):
    np.testing.assert_allclose(find(settings)["betas"], betas, rtol=1e-12)


SHORT = {"num_train_timesteps": 100}
PNDM = {"_class_name": "PNDMScheduler", "set_alpha_to_one": True, **SHORT}
EULER = {"_class_name": "EulerDiscreteScheduler", **SHORT}
UNIPC = {"_class_name": "UniPCMultistepScheduler"}
MULTISTEP = {"_class_name": "DPMSolverMultistepScheduler", "num_train_timesteps": 100}


def test_a_multistep_solver_visits_the_timesteps_of_its_class():
    found = find(MULTISTEP, sample__num_steps=4)
    assert (found["sampler"], found["clip_x_0"]) == ("dpmpp_2m", False)
    assert found["timesteps"] == "99,74,50,25"
    trailing = find(MULTISTEP | {"timestep_spacing": "trailing"}, sample__num_steps=4)
    assert trailing["spacing"] == "trailing"
    assert "timesteps" not in trailing
    clipped = find(MULTISTEP | {"lambda_min_clipped": 0.0}, sample__num_steps=4)
    assert int(clipped["timesteps"].split(",")[0]) < 99


def test_an_offset_becomes_a_list_of_timesteps():
    settings = {"_class_name": "DDIMScheduler", "steps_offset": 1}
    assert find(settings, sample__num_steps=4)["timesteps"] == "751,501,251,1"


@pytest.mark.parametrize(
    ("settings", "what", "reason"),
    [
        (OTHER, "sampler", "no sampler for HeliosScheduler"),
        ({"_class_name": "DDIMScheduler", "set_alpha_to_one": False}, "sampler", "set_alpha_to"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "linspace"}, "spacing", "linspace"),
        ({**MULTISTEP, "use_karras_sigmas": True}, "sampler", "use_karras_sigmas"),
        ({**MULTISTEP, "final_sigmas_type": "sigma_min"}, "sampler", "final_sigmas_type"),
        ({**MULTISTEP, "solver_type": "heun"}, "sampler", "solver_type is heun"),
        ({**MULTISTEP, "algorithm_type": "dpmsolver"}, "sampler", "algorithm_type is dpmsolver"),
        ({**MULTISTEP, "solver_order": 4}, "sampler", "of order 4"),
        ({"clip_sample_range": 2.0}, "clip_x_0", "clip_sample_range is 2"),
        ({**MULTISTEP, "euler_at_final": True}, "sampler", "euler_at_final is True"),
        (
            {**MULTISTEP, "rescale_betas_zero_snr": True, "prediction_type": "sample"},
            "sampler",
            "starts from a little signal",
        ),
        ({**UNIPC, "solver_order": 3}, "sampler", "solver_order is 3"),
        ({**UNIPC, "solver_type": "bh1"}, "sampler", "solver_type is bh1"),
        ({**UNIPC, "disable_corrector": [0]}, "sampler", "disable_corrector is [0]"),
        ({**UNIPC, "use_karras_sigmas": True}, "sampler", "use_karras_sigmas is true"),
        ({**PNDM, "set_alpha_to_one": False}, "sampler", "set_alpha_to_one is false"),
        ({**PNDM, "prediction_type": "v_prediction"}, "sampler", "only epsilon"),
        ({**EULER, "final_sigmas_type": "sigma_min"}, "sampler", "final_sigmas_type is sigma_min"),
        ({**EULER, "use_beta_sigmas": True}, "sampler", "use_beta_sigmas is true"),
        ({**EULER, "interpolation_type": "log_linear"}, "sampler", "interpolation_type"),
        (
            {**EULER, "use_karras_sigmas": True, "timestep_spacing": "leading"},
            "sampler",
            "timestep_spacing is leading",
        ),
        (
            {**EULER, "timestep_type": "continuous", "prediction_type": "v_prediction"},
            "sampler",
            "timestep_type is continuous",
        ),
        ({"_class_name": "DEISMultistepScheduler"}, "sampler", "ends at the noise of t = 0"),
        ({"_class_name": "SASolverScheduler"}, "sampler", "between t = 200 and 800"),
        ({"_class_name": "DPMSolverSDEScheduler"}, "sampler", "one Brownian motion"),
        (
            {"thresholding": True, "sample_max_value": 1.5},
            "dynamic_threshold",
            "sample_max_value is 1.5",
        ),
    ],
)
def test_what_we_do_not_have_is_named(settings, what, reason):
    found = find(settings)[what]
    assert isinstance(found, Missing)
    assert reason in found.reason


def test_of_a_class_that_we_do_not_have_only_what_its_file_states_is_taken():
    found = find(OTHER)
    assert found["schedule"] == "quadratic"
    assert found["prediction_type"] == "v"
    assert not found["clip_x_0"]  # DDPMScheduler would clip
    assert find(OTHER | {"clip_sample": True})["clip_x_0"]


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon"}, "beta_schedule"),
        ({"_class_name": "IPNDMScheduler", "trained_betas": None}, "beta_schedule"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "beta_schedule"),
        ({"_class_name": "TCDScheduler", "beta_schedule": "linear"}, "prediction_type"),
    ],
)
def test_the_process_of_a_class_that_we_do_not_have_must_be_stated(settings, missing):
    with pytest.raises(UserError, match=f"describes a .*Scheduler without {missing}"):
        find(settings, sample__sampler="ddim")


def test_a_default_is_not_said_to_be_in_the_file():
    facts = {fact.what: fact.origin for fact in describe(make_question({"clip_sample": False}))}
    assert facts["sample.clip_x_0"] == "scheduler/scheduler_config.json"
    assert facts["diffusion.prediction_type"] == "default of DDPMScheduler"
    assert facts["sample.variance"] == "default of DDPMScheduler"


def test_a_network_whose_labels_are_not_classes_is_for_python_only():
    found = find({}, {"class_embed_type": "timestep"})["class_embed_type"]
    assert "is 'timestep', but the labels of a run" in found.reason


SOLVERS = {
    "UniPCMultistepScheduler": ("unipc", "99,74,50,25"),
    "DPMSolverSinglestepScheduler": ("dpmpp_2s", "99,74,50,25"),
    "EulerDiscreteScheduler": ("euler", "99,66,33,0"),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", "99,66,33,0"),
    "HeunDiscreteScheduler": ("heun", "99,66,33,0"),
    "LMSDiscreteScheduler": ("lms", "99,66,33,0"),
    "KDPM2DiscreteScheduler": ("kdpm2", "99,66,33,0"),
    "KDPM2AncestralDiscreteScheduler": ("kdpm2_ancestral", "99,66,33,0"),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_has_a_sampler_and_visits_the_timesteps_of_its_class(name):
    sampler, timesteps = SOLVERS[name]
    found = find({"_class_name": name, **SHORT}, sample__num_steps=4)
    visited = found.get("timesteps", "99,66,33,0" if found["spacing"] == "linspace" else None)
    assert (found["sampler"], found["clip_x_0"], visited) == (sampler, False, timesteps)
    latent = name.startswith(("Heun", "KDPM2"))  # whose betas are others by default
    assert ("betas" in found) == latent


def test_pndm_without_runge_kutta_steps_is_plms():
    assert find(PNDM, sample__num_steps=10)["sampler"] == "pndm"
    assert find(PNDM | {"skip_prk_steps": True}, sample__num_steps=20)["sampler"] == "plms"


def test_sigmas_may_be_spaced_as_ours_are():
    assert find(EULER | {"use_karras_sigmas": True})["spacing"] == "karras"
    assert find(EULER | {"use_exponential_sigmas": True})["spacing"] == "log_snr"


def test_linspace_between_timesteps_gets_fewer_steps_or_is_refused():
    assert find(EULER)["num_steps"] == 34
    found = find(EULER, sample__num_steps=50)["spacing"]
    assert "with 50 steps it visits t = 96.98, between two timesteps" in found.reason


def test_ddpm_that_adds_noise_in_its_last_step_is_refused():
    settings = {"timestep_spacing": "trailing", "variance_type": "fixed_large"}
    assert isinstance(find(settings, sample__num_steps=10)["spacing"], Missing)
    small = settings | {"variance_type": "fixed_small"}
    assert find(small, sample__num_steps=10)["spacing"] == "trailing"


def test_the_user_may_choose_the_sampler_and_the_steps():
    found = find(OTHER, sample__sampler="ddim")
    assert not {"sampler", "spacing"} & found.keys()
    linspace = {"_class_name": "DDIMScheduler", "timestep_spacing": "linspace"}
    assert "spacing" not in find(linspace, sample__spacing="leading")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"beta_schedule": "exp"}, "beta_schedule is 'exp', but it must be linear"),
        ({"prediction_type": "flow"}, "prediction_type in scheduler.* is 'flow'"),
        ({"variance_type": "learned"}, "variance_type in scheduler.* is 'learned', but"),
        ({"variance_type": "fixed_large_log"}, "is 'fixed_large_log', but"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr with prediction_type epsilon"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps in .* must be a number"),
        ({"num_train_timesteps": 10.5}, "num_train_timesteps in .* must be a number"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"clip_sample": "yes"}, "clip_sample in .* must be true or false"),
        ({"trained_betas": [0.1]}, "trained_betas have shape"),
        ({"trained_betas": ["a"]}, "trained_betas are not numbers"),
        ({"timestep_spacing": "quad"}, "timestep_spacing in .* is 'quad'"),
        ({"beta_end": 2.0}, "run from 0.0001 to 2"),
    ],
)
def test_a_process_that_a_run_cannot_have_is_refused_by_name(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        find(settings)


def test_the_size_of_the_images_may_be_a_rectangle():
    assert find({}, {"sample_size": 64})["image_size"] == 64
    assert find({}, {"sample_size": [32, 32]})["image_size"] == 32
    assert find({}, {"sample_size": [16, 32]})["image_size"] == (16, 32)
    assert "image_size" not in find({}, {"sample_size": None})


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "describes a UNet2DConditionModel"),
        ({"sample_size": [1, 2, 3]}, "must be a side or two sides"),
    ],
)
def test_a_network_that_a_run_cannot_have_is_refused_by_name(network, sentence):
    with pytest.raises(UserError, match=sentence):
        find({}, network)
