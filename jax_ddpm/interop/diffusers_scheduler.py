"""Read the settings of diffusers' schedulers."""

from typing import NamedTuple

from jax_ddpm.errors import UserError, check_choice
from jax_ddpm.interop.diffusers_betas import Settings
from jax_ddpm.interop.diffusers_classes import OTHER, SCHEDULERS, SchedulerClass

# What their settings are called here. `learned` is missing: theirs is a variance, ours a logarithm.
PREDICTIONS = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}
VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
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
    expected = {bool: "true or false", str: "a string", list: "a list"}.get(
        type(default), "a number"
    )
    fits = number if isinstance(default, int | float) and type(default) is not bool else False
    whole = not isinstance(default, int) or isinstance(value, int)
    if not (fits and whole) and type(value) is not type(default):
        raise UserError(f"{name} is {value!r}, but it must be {expected}")
