"""diffusers' classes of schedulers: their settings, our samplers for them, their timesteps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from jax_ddpm.errors import UserError
from jax_ddpm.interop.diffusers_betas import Settings, make_betas

# Their default for a setting that an old file lacks.
SHARED = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
CLIPPING = {"clip_sample": True, "clip_sample_range": 1.0}
# Of a class that we do not have: what its file does not state, it may not have.
OTHER = {**SHARED, **CLIPPING, "clip_sample": False, "variance_type": None}
OTHER_SIGMAS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
)
LINSPACE = {"timestep_spacing": "linspace"}
LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}  # of latent diffusion
NO_OTHER_SIGMAS = dict.fromkeys(OTHER_SIGMAS, False)
# Levels between the timesteps that we visit as well.
SIGMAS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "log_snr"}
MULTISTEP = {
    **LINSPACE,
    **NO_OTHER_SIGMAS,
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    "final_sigmas_type": "zero",
    "lambda_min_clipped": float("-inf"),
    "variance_type": None,
    "use_dynamic_shifting": False,
}


@dataclass(frozen=True)
class SchedulerClass:
    """A class of schedulers that has a sampler of ours."""

    choose_sampler: Callable[[Settings], str]
    """Our sampler for its settings. Raises UserError if there is none."""
    list_timesteps: Callable[[Settings, int], np.ndarray]
    """The timesteps that it visits in S steps, descending."""
    defaults: Settings
    beta_schedules: tuple[str, ...] = ("linear", "scaled_linear", "squaredcos_cap_v2")
    clips: bool = False
    """Whether it has clip_sample; all have thresholding."""
    num_steps: int | None = None
    """Steps that its pipeline takes by default; None: all."""
    choose_spacing: Callable[[Settings], str | None] = lambda settings: None
    """Our spacing of levels between the timesteps, if its settings ask for it."""
    fills: Mapping[str, Settings] = field(default_factory=dict)
    """Our samplers that it has -> the settings that choose them."""


def space_evenly(settings: Settings, num_steps: int) -> np.ndarray:
    """The timesteps of DDPMScheduler and DDIMScheduler."""
    timesteps, spacing = settings["num_train_timesteps"], settings["timestep_spacing"]
    match spacing:
        case "linspace":
            return np.linspace(0, timesteps - 1, num_steps).round()[::-1]
        case "leading":
            ascending = np.arange(num_steps) * (timesteps // num_steps)
            return ascending[::-1] + settings["steps_offset"]
    return np.round(np.arange(timesteps, 0, -timesteps / num_steps)) - 1


def space_without_end(settings: Settings, num_steps: int) -> np.ndarray:
    """The timesteps of DPM-Solver and its kin, which by default leave out t = 0."""
    timesteps, spacing = settings["num_train_timesteps"], settings["timestep_spacing"]
    last = timesteps - count_clipped(settings)
    match spacing:
        case "linspace":
            return np.linspace(0, last - 1, num_steps + 1).round()[:0:-1]
        case "leading":
            ascending = np.arange(num_steps + 1) * (last // (num_steps + 1))
            return ascending[:0:-1] + settings["steps_offset"]
    return np.arange(last, 0, -timesteps / num_steps).round() - 1


def space_finely(settings: Settings, num_steps: int) -> np.ndarray:
    """The timesteps of k-diffusion's solvers, which linspace does not round."""
    if settings["timestep_spacing"] == "linspace":
        return np.linspace(0, settings["num_train_timesteps"] - 1, num_steps)[::-1]
    return space_evenly(settings, num_steps)


def count_clipped(settings: Settings) -> int:
    """Count the noisiest timesteps that are left out because of lambda_min_clipped."""
    if settings.get("lambda_min_clipped", float("-inf")) == float("-inf"):
        return 0
    alphas_cumprod = np.cumprod(1 - make_betas(settings))
    with np.errstate(divide="ignore"):
        log_ratio = np.log(alphas_cumprod / (1 - alphas_cumprod)) / 2
    return int(np.sum(log_ratio < settings["lambda_min_clipped"]))


def choose_ddim(settings: Settings) -> str:
    """ddim, if its last step ends at the clean image."""
    if not settings["set_alpha_to_one"]:
        raise UserError(
            "set_alpha_to_one is false, so that its last step ends at the noise of t = 0; our "
            "samplers end at the clean image"
        )
    return "ddim"


def refuse_unless(settings: Settings, **expected: object) -> None:
    """Raise UserError for the first setting of a sampler that has another value than ours."""
    for name, value in expected.items():
        if settings[name] != value:
            raise UserError(f"{name} is {settings[name]}, but only {value} can be converted")


def refuse_sigmas(settings: Settings, *known: str) -> None:
    """Raise UserError for levels that we do not visit; `known` names those that we do."""
    for name in OTHER_SIGMAS:
        if settings.get(name) and name not in known:
            raise UserError(f"{name} is true, which visits other levels than ours")
    if settings["rescale_betas_zero_snr"]:
        raise UserError(
            "rescale_betas_zero_snr is true, where its first step starts from a little signal"
        )


def choose_multistep(settings: Settings) -> str:
    """The variant of DPM-Solver++ with these settings."""
    order, algorithm = settings["solver_order"], settings["algorithm_type"]
    refuse_sigmas(settings)
    refuse_unless(settings, solver_type="midpoint", final_sigmas_type="zero")
    refuse_unless(settings, euler_at_final=False, use_dynamic_shifting=False)
    if order == 3:
        refuse_unless(settings, lower_order_final=True)
    samplers = {1: "ddim", 2: "dpmpp_2m", 3: "dpmpp_3m"}
    if algorithm == "sde-dpmsolver++":
        samplers = {2: "dpmpp_2m_sde"}
    elif algorithm not in ("dpmsolver++", "deis"):  # the class reads deis as dpmsolver++
        raise UserError(f"algorithm_type is {algorithm}, which is not one of our samplers")
    if order not in samplers:
        raise UserError(f"{algorithm} of order {order} is not one of our samplers")
    return samplers[order]


def choose_singlestep(settings: Settings) -> str:
    """dpmpp_2s, if the solver is of second order."""
    refuse_sigmas(settings)
    refuse_unless(settings, solver_order=2, algorithm_type="dpmsolver++", solver_type="midpoint")
    refuse_unless(settings, final_sigmas_type="zero", use_dynamic_shifting=False)
    return "dpmpp_2s"


def choose_unipc(settings: Settings) -> str:
    """unipc, if it is of second order and corrects every step."""
    refuse_sigmas(settings)
    refuse_unless(settings, solver_order=2, solver_type="bh2", predict_x0=True)
    refuse_unless(settings, lower_order_final=True, final_sigmas_type="zero", solver_p=None)
    refuse_unless(settings, disable_corrector=[], use_dynamic_shifting=False)
    return "unipc"


def choose_pndm(settings: Settings) -> str:
    """pndm, or plms without the Runge-Kutta steps, if the last step ends at the clean image."""
    choose_ddim(settings)
    refuse_unless(settings, prediction_type="epsilon")  # it mixes the outputs of several levels
    return "plms" if settings["skip_prk_steps"] else "pndm"


def choose_euler(settings: Settings) -> str:
    """euler, on the levels of whole timesteps, or equally spaced as ours are."""
    refuse_sigmas(settings, *SIGMAS)
    refuse_unless(settings, interpolation_type="linear", final_sigmas_type="zero")
    refuse_unless(settings, sigma_min=None, sigma_max=None)
    if settings["prediction_type"] == "v_prediction":
        refuse_unless(settings, timestep_type="discrete")
    return "euler"


def choose_plainly(sampler: str, *sigmas: str) -> Callable[[Settings], str]:
    """Choose `sampler` for a class whose only other settings are its levels."""

    def choose(settings: Settings) -> str:
        refuse_sigmas(settings, *sigmas)
        return sampler

    return choose


def refuse(reason: str) -> Callable[[Settings], str]:
    """Refuse a class whose steps differ from ours with any settings."""

    def choose(settings: Settings) -> str:
        raise UserError(reason)

    return choose


def choose_levels(settings: Settings) -> str | None:
    """The spacing that karras or exponential sigmas have.

    Raises UserError unless they run from the level of T - 1 to the one of t = 0.
    """
    found = next((ours for theirs, ours in SIGMAS.items() if settings.get(theirs)), None)
    if found is not None:
        refuse_unless(settings, timestep_spacing="linspace", steps_offset=0)
    return found


DDPM = SchedulerClass(
    lambda settings: "ddpm",
    space_evenly,
    {**SHARED, **CLIPPING, "variance_type": "fixed_small"},
    ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"),
    clips=True,
    fills={"ddpm": {}},
)
DDIM = SchedulerClass(
    choose_ddim,
    space_evenly,
    {**SHARED, **CLIPPING, "set_alpha_to_one": True},
    clips=True,
    num_steps=50,
    fills={"ddim": {"set_alpha_to_one": True}},
)
DPM_SOLVER = SchedulerClass(
    choose_multistep,
    space_without_end,
    {**SHARED, **MULTISTEP, "euler_at_final": False},
    num_steps=50,
    fills={
        "dpmpp_2m": {"solver_order": 2},
        "dpmpp_3m": {"solver_order": 3},
        "dpmpp_2m_sde": {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
    },
)
SINGLESTEP = SchedulerClass(
    choose_singlestep,
    space_without_end,
    {**SHARED, **MULTISTEP, "lower_order_final": False},
    num_steps=50,
)
UNIPC = SchedulerClass(
    choose_unipc,
    space_without_end,
    {
        **SHARED,
        **LINSPACE,
        **NO_OTHER_SIGMAS,
        "solver_order": 2,
        "predict_x0": True,
        "solver_type": "bh2",
        "lower_order_final": True,
        "disable_corrector": [],
        "solver_p": None,
        "final_sigmas_type": "zero",
        "use_dynamic_shifting": False,
    },
    num_steps=50,
)
PNDM = SchedulerClass(
    choose_pndm,
    space_evenly,
    {**SHARED, "skip_prk_steps": False, "set_alpha_to_one": False},
    num_steps=50,
)
EULER = SchedulerClass(
    choose_euler,
    space_finely,
    {
        **SHARED,
        **LINSPACE,
        **NO_OTHER_SIGMAS,
        "interpolation_type": "linear",
        "timestep_type": "discrete",
        "final_sigmas_type": "zero",
        "sigma_min": None,
        "sigma_max": None,
    },
    num_steps=50,
    choose_spacing=choose_levels,
)
EULER_ANCESTRAL = SchedulerClass(
    choose_plainly("euler_ancestral"), space_finely, {**SHARED, **LINSPACE}, num_steps=50
)
HEUN = SchedulerClass(
    choose_plainly("heun", *SIGMAS),
    space_finely,
    {**SHARED, **LINSPACE, **NO_OTHER_SIGMAS, **LATENT_BETAS, **CLIPPING, "clip_sample": False},
    clips=True,
    num_steps=50,
    choose_spacing=choose_levels,
)
LMS = SchedulerClass(
    choose_plainly("lms", *SIGMAS),
    space_finely,
    {**SHARED, **LINSPACE, **NO_OTHER_SIGMAS},
    num_steps=50,
    choose_spacing=choose_levels,
)
KDPM2 = SchedulerClass(
    choose_plainly("kdpm2"),
    space_finely,
    {**SHARED, **LINSPACE, **NO_OTHER_SIGMAS, **LATENT_BETAS},
    num_steps=50,
)
KDPM2_ANCESTRAL = replace(KDPM2, choose_sampler=choose_plainly("kdpm2_ancestral"))
DPM_SDE = replace(
    KDPM2,
    choose_sampler=refuse(
        "the two noises of its steps belong to one Brownian motion; our dpmpp_sde, the nearest, "
        "draws one noise per step"
    ),
)
DEIS = replace(
    UNIPC,
    choose_sampler=refuse(
        "its last step ends at the noise of t = 0; our samplers, such as deis, end at the clean "
        "image"
    ),
)
SA_SOLVER = replace(
    UNIPC,
    choose_sampler=refuse(
        "it draws noise only between t = 200 and 800, and its last step ends at the noise of t = 0;"
        " our sa_solver draws noise in every step and ends at the clean image"
    ),
)
SCHEDULERS: dict[str, SchedulerClass] = {
    "DDPMScheduler": DDPM,
    "DDPMParallelScheduler": DDPM,
    "DDIMScheduler": DDIM,
    "DDIMParallelScheduler": DDIM,
    "DPMSolverMultistepScheduler": DPM_SOLVER,
    "DPMSolverSinglestepScheduler": SINGLESTEP,
    "DPMSolverSDEScheduler": DPM_SDE,
    "UniPCMultistepScheduler": UNIPC,
    "PNDMScheduler": PNDM,
    "EulerDiscreteScheduler": EULER,
    "EulerAncestralDiscreteScheduler": EULER_ANCESTRAL,
    "HeunDiscreteScheduler": HEUN,
    "LMSDiscreteScheduler": LMS,
    "KDPM2DiscreteScheduler": KDPM2,
    "KDPM2AncestralDiscreteScheduler": KDPM2_ANCESTRAL,
    "DEISMultistepScheduler": DEIS,
    "SASolverScheduler": SA_SOLVER,
}
