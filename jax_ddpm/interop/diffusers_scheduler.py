"""The settings of diffusers' schedulers: what each class takes, and the timesteps it visits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jax_ddpm.errors import UserError, check_choice, join_or
from jax_ddpm.process.schedules import (
    Betas,
    betas_from_alphas_cumprod,
    linear_betas,
    named_betas,
    quadratic_betas,
    rescale_zero_terminal_snr,
    sigmoid_betas,
)

Settings = Mapping[str, Any]

# From this value on, sample_max_value is no limit.
UNLIMITED = 1e9
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
MULTISTEP = {
    "timestep_spacing": "linspace",
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    "final_sigmas_type": "zero",
    "lambda_min_clipped": float("-inf"),
    "variance_type": None,
    **dict.fromkeys(OTHER_SIGMAS, False),
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
    """The timesteps of DPMSolverMultistepScheduler, which by default leaves out t = 0."""
    timesteps, spacing = settings["num_train_timesteps"], settings["timestep_spacing"]
    last = timesteps - count_clipped(settings)
    match spacing:
        case "linspace":
            return np.linspace(0, last - 1, num_steps + 1).round()[:0:-1]
        case "leading":
            ascending = np.arange(num_steps + 1) * (last // (num_steps + 1))
            return ascending[:0:-1] + settings["steps_offset"]
    return np.arange(last, 0, -timesteps / num_steps).round() - 1


def count_clipped(settings: Settings) -> int:
    """Count the noisiest timesteps that are left out because of lambda_min_clipped."""
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


def choose_multistep(settings: Settings) -> str:
    """The variant of DPM-Solver++ with these settings."""
    order, algorithm = settings["solver_order"], settings["algorithm_type"]
    for name in OTHER_SIGMAS:
        if settings[name]:
            raise UserError(f"{name} is true, which visits other levels than ours")
    expected = {"solver_type": "midpoint", "final_sigmas_type": "zero"}
    if order == 3:
        expected["lower_order_final"] = True  # type: ignore[assignment]
    for name, value in expected.items():
        if settings[name] != value:
            raise UserError(f"{name} is {settings[name]}, but only {value} can be converted")
    samplers = {1: "ddim", 2: "dpmpp_2m", 3: "dpmpp_3m"}
    if algorithm == "sde-dpmsolver++":
        samplers = {2: "dpmpp_2m_sde"}
    elif algorithm not in ("dpmsolver++", "deis"):  # the class reads deis as dpmsolver++
        raise UserError(f"algorithm_type is {algorithm}, which is not one of our samplers")
    if order not in samplers:
        raise UserError(f"{algorithm} of order {order} is not one of our samplers")
    return samplers[order]


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
    {**SHARED, **MULTISTEP},
    num_steps=50,
    fills={
        "dpmpp_2m": {"solver_order": 2},
        "dpmpp_3m": {"solver_order": 3},
        "dpmpp_2m_sde": {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
    },
)
SCHEDULERS: dict[str, SchedulerClass] = {
    "DDPMScheduler": DDPM,
    "DDPMParallelScheduler": DDPM,
    "DDIMScheduler": DDIM,
    "DDIMParallelScheduler": DDIM,
    "DPMSolverMultistepScheduler": DPM_SOLVER,
}
# What their settings are called here. `learned` is missing: theirs is a variance, ours a logarithm.
PREDICTIONS = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}
VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
}
NAMED_SCHEDULES = {  # those with the default ends
    "linear": "linear",
    "scaled_linear": "quadratic",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
SPACINGS = ("leading", "trailing", "linspace")


class Scheduler(NamedTuple):
    """A scheduler's settings, with the defaults of its class where the file is silent."""

    kind: SchedulerClass | None
    """None: a class without a sampler of ours."""
    settings: Settings
    stated: Settings
    """The settings that are in the file."""
    called: str
    file: str

    def find_origin(self, *settings: str) -> str:
        """Where the values of `settings` come from: the file if it states any of them."""
        stated = any(setting in self.stated for setting in settings)
        return self.file if stated else f"default of {self.called}"


def read_scheduler(stated: Settings, file: str) -> Scheduler:
    """Read the settings of a scheduler.

    Raises UserError for values of another type than the defaults' or outside their choices, and for
    a class that we do not have unless the file states its betas and its prediction.
    """
    called = str(stated.get("_class_name", "DDPMScheduler"))
    kind = SCHEDULERS.get(called)
    if kind is None:
        _require_process(stated, called, file)
    defaults = OTHER if kind is None else kind.defaults
    known = {**defaults, **{n: v for n, v in stated.items() if n in defaults}}
    if stated.get("predict_epsilon") is False and "prediction_type" not in stated:
        known["prediction_type"] = "sample"  # how diffusers said it before 0.10
    for setting, default in defaults.items():
        _require_kind(f"{setting} in {file}", known[setting], default)
    check_choice(f"timestep_spacing in {file}", known["timestep_spacing"], SPACINGS)
    return Scheduler(kind, known, stated, called, file)


def _require_process(stated: Settings, called: str, file: str) -> None:
    """Raise UserError unless the file states the process: other classes may have another one."""
    betas = "beta_schedule" in stated or stated.get("trained_betas") is not None
    if not betas or not stated.keys() & {"prediction_type", "predict_epsilon"}:
        missing = "prediction_type" if betas else "beta_schedule"
        raise UserError(
            f"{file} describes a {called} without {missing}: its process is not one of betas that "
            "can be converted"
        )


def _require_kind(name: str, value: object, default: object) -> None:
    if default is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    expected = {bool: "true or false", str: "a string"}.get(type(default), "a number")
    fits = number if isinstance(default, int | float) and type(default) is not bool else False
    whole = not isinstance(default, int) or isinstance(value, int)
    if not (fits and whole) and type(value) is not type(default):
        raise UserError(f"{name} is {value!r}, but it must be {expected}")


def make_betas(settings: Settings) -> Betas:
    """The betas of a scheduler, in float64, with zero terminal SNR where it is asked for.

    Raises UserError for betas that cannot be.
    """
    timesteps = settings["num_train_timesteps"]
    if not 1 <= timesteps <= 1_000_000:
        raise UserError(f"num_train_timesteps is {timesteps}, but it must be 1 to 1,000,000")
    if settings["trained_betas"] is not None:
        betas = _read_trained(settings["trained_betas"], timesteps)
    else:
        betas = _make_named(settings["beta_schedule"], timesteps, settings)
    return rescale_zero_terminal_snr(betas) if settings["rescale_betas_zero_snr"] else betas


def _read_trained(values: Any, timesteps: int) -> Betas:
    try:
        betas = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError("trained_betas are not numbers") from error
    if betas.shape != (timesteps,):
        raise UserError(
            f"trained_betas have shape {betas.shape}, but num_train_timesteps is {timesteps}"
        )
    return betas


def _make_named(name: object, timesteps: int, settings: Settings) -> Betas:
    start, end = float(settings["beta_start"]), float(settings["beta_end"])
    match name:
        case "linear":
            return linear_betas(timesteps, start=start, end=end)
        case "scaled_linear":
            return quadratic_betas(timesteps, start=start, end=end)
        case "sigmoid":
            return sigmoid_betas(timesteps, start=start, end=end)
        case "squaredcos_cap_v2":
            return named_betas("cosine", timesteps)
        case "laplace":
            return laplace_betas(timesteps)
    known = [*NAMED_SCHEDULES, "laplace"]
    raise UserError(f"beta_schedule is {name!r}, but it must be {join_or(known)}")


def laplace_betas(timesteps: int) -> Betas:
    """Betas whose log-SNR has a Laplace distribution, as diffusers writes it.

    It takes the square root of sigmoid(log-SNR) for alphas_cumprod.
    """
    u = np.linspace(0, 1, timesteps + 1)
    log_snr = -0.5 * np.copysign(1, 0.5 - u) * np.log(1 - 2 * np.abs(0.5 - u) + 1e-6)
    return betas_from_alphas_cumprod(np.sqrt(1 / (1 + np.exp(-log_snr))), clip=(-1.0, 0.999))
