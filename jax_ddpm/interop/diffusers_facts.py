"""What the JSON documents of diffusers say about a run, and what they leave out."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jax_ddpm.errors import UserError, check_choice, join_or
from jax_ddpm.interop.diffusers_betas import NAMED_SCHEDULES, Settings, make_betas
from jax_ddpm.interop.diffusers_classes import SCHEDULERS, SIGMAS, SchedulerClass
from jax_ddpm.interop.diffusers_scheduler import (
    PREDICTIONS,
    VARIANCES,
    Scheduler,
    read_scheduler,
)
from jax_ddpm.interop.facts import ASSUMED, Fact, Missing, Question, describe_betas
from jax_ddpm.interop.source import SCHEDULER
from jax_ddpm.process.grids import SPACINGS, timestep_grid

MAX_LISTED = 1000  # characters of a list of timesteps
MAX_SIDE = 65_536
UNLIMITED = 1e9  # from this value on, sample_max_value is no limit


def describe(question: Question) -> list[Fact]:
    """Describe a run from the U-Net's config.json and the scheduler's scheduler_config.json.

    Raises UserError for settings that a run cannot have, by their names.
    """
    source, facts = question.source, list[Fact]()
    if source.arguments is not None:
        facts += describe_network(source.arguments, str(source.arguments_name))
    if found := source.find(SCHEDULER):
        name, settings = found
        facts += describe_scheduler(settings, name, question.typed)
    return facts


def describe_network(arguments: Mapping[str, Any], name: str) -> Iterator[Fact]:
    """Describe the images; refuse networks that a run cannot have."""
    kind = arguments.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise UserError(f"{name} describes a {kind}, but it must be UNet2DModel")
    embed = arguments.get("class_embed_type")
    if embed is not None:
        reason = (
            f"class_embed_type is {embed!r}, but the labels of a run are the numbers of classes: "
            "such a network can only be used from Python, with from_torch"
        )
        yield Fact("model.class_embed_type", Missing(reason), name)
    size = arguments.get("sample_size")
    if size is not None:
        yield Fact("data.image_size", read_size(size, name), name)


def read_size(size: Any, name: str) -> int | tuple[int, int]:
    """Read sample_size: a side, or height and width if they differ."""
    sides = size if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
        raise UserError(f"sample_size in {name} is {size!r}, but it must be a side or two sides")
    height, width = sides
    return height if height == width else (height, width)


def describe_scheduler(
    stated: Mapping[str, Any], name: str, typed: Mapping[str, Any]
) -> Iterator[Fact]:
    """Describe the process, and the sampler unless the user has chosen one."""
    scheduler = read_scheduler(stated, name)
    yield from _describe_process(scheduler)
    yield from _describe_clipping(scheduler)
    kind, settings = scheduler.kind, scheduler.settings
    if kind is not None and settings.get("variance_type") in VARIANCES:
        origin = scheduler.find_origin("variance_type")
        yield Fact("sample.variance", VARIANCES[settings["variance_type"]], origin)
    if "sample.sampler" in typed:
        return
    if kind is None:
        yield Fact("sample.sampler", Missing(f"we have no sampler for {scheduler.called}"), name)
        return
    origin = scheduler.find_origin("_class_name")
    try:
        sampler, _ = kind.choose_sampler(settings), kind.choose_spacing(settings)
    except UserError as error:
        yield Fact("sample.sampler", Missing(str(error)), name)
        return
    yield Fact("sample.sampler", sampler, origin)
    yield from _describe_grid(kind, scheduler, typed)
    if kind is SCHEDULERS["DDIMScheduler"]:  # use_clipped_model_output of its pipeline
        yield Fact("sample.rederive_eps", False, ASSUMED)


def _describe_process(scheduler: Scheduler) -> Iterator[Fact]:
    settings, file = scheduler.settings, scheduler.file
    prediction = check_choice(
        f"prediction_type in {file}", settings["prediction_type"], list(PREDICTIONS)
    )
    if settings["rescale_betas_zero_snr"] and prediction == "epsilon":
        raise UserError(
            f"{file} has rescale_betas_zero_snr with prediction_type epsilon, but in pure noise "
            "the image does not follow from epsilon"
        )
    origin = scheduler.find_origin("num_train_timesteps", "beta_schedule", "trained_betas")
    try:
        yield from describe_betas(make_betas(settings), origin, list(NAMED_SCHEDULES.values()))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    origin = scheduler.find_origin("prediction_type", "predict_epsilon")
    yield Fact("diffusion.prediction_type", PREDICTIONS[prediction], origin)
    yield from _describe_variance(settings.get("variance_type"), scheduler)


def _describe_variance(variance: Any, scheduler: Scheduler) -> Iterator[Fact]:
    if variance == "learned_range":
        yield Fact("diffusion.variance", "learned_range", scheduler.file)
        yield Fact("diffusion.objective", "hybrid", ASSUMED)
        return
    if variance is not None and variance not in VARIANCES:
        known = join_or([*VARIANCES, "learned_range"])
        raise UserError(
            f"variance_type in {scheduler.file} is {variance!r}, but it must be {known}"
        )
    yield Fact("diffusion.variance", "fixed", scheduler.find_origin("variance_type"))


def _describe_clipping(scheduler: Scheduler) -> Iterator[Fact]:
    """Thresholding replaces clipping. With a limit of 1, their default, it is clipping to 1."""
    settings, file = scheduler.settings, scheduler.file
    most = settings["sample_max_value"]
    if settings["thresholding"]:
        if 1 < most < UNLIMITED:
            reason = f"sample_max_value is {most:g}, but our dynamic thresholding has no limit"
            yield Fact("sample.dynamic_threshold", Missing(reason), file)
        elif most > 1:
            ratio, origin = "dynamic_thresholding_ratio", scheduler.find_origin
            yield Fact("sample.dynamic_threshold", settings[ratio], origin(ratio))
        yield Fact("sample.clip_x_0", True, file)
        return
    clips, limit = settings.get("clip_sample", False), settings.get("clip_sample_range", 1.0)
    if clips and limit != 1:
        reason = f"clip_sample_range is {limit:g}, but we clip to 1"
        yield Fact("sample.clip_x_0", Missing(reason), file)
    else:
        yield Fact("sample.clip_x_0", clips, scheduler.find_origin("clip_sample"))


def _describe_grid(
    kind: SchedulerClass, scheduler: Scheduler, typed: Mapping[str, Any]
) -> Iterator[Fact]:
    """Describe the timesteps that are visited, unless the user has chosen them."""
    known, origin = scheduler.settings, scheduler.find_origin("timestep_spacing", "steps_offset")
    timesteps = known["num_train_timesteps"]
    default = choose_num_steps(kind, known)
    num_steps = typed.get("sample.num_steps", default)
    yield Fact("sample.num_steps", default, ASSUMED)
    if {"sample.spacing", "sample.timesteps", "sample.respacing"} & typed.keys():
        return
    spacing = known["timestep_spacing"]
    if not 1 <= num_steps <= timesteps:
        return  # the check of the run says so
    if levels := kind.choose_spacing(known):
        yield Fact("sample.spacing", levels, scheduler.find_origin(*SIGMAS))
        return
    visited = kind.list_timesteps(known, num_steps)
    if reason := find_fault(kind, known, visited):
        yield Fact("sample.spacing", Missing(reason), origin)
    elif found := find_spacing(visited, timesteps, spacing):
        yield Fact("sample.spacing", found, origin)
    else:
        listed = ",".join(str(int(t)) for t in visited)
        reason = f"its {num_steps} timesteps are those of none of our spacings"
        value = listed if len(listed) <= MAX_LISTED else Missing(reason)
        yield Fact("sample.spacing", spacing, origin)
        yield Fact("sample.timesteps", value, origin)


def choose_num_steps(kind: SchedulerClass, known: Settings) -> int:
    """The steps of its pipeline, or the next smaller number whose timesteps are whole."""
    timesteps = known["num_train_timesteps"]
    num_steps = min(kind.num_steps or timesteps, timesteps)
    while num_steps > 2 and not are_whole(kind.list_timesteps(known, num_steps)):
        num_steps -= 1
    return num_steps


def are_whole(timesteps: np.ndarray) -> bool:
    """Whether no timestep lies between two others."""
    return np.array_equal(timesteps, np.round(timesteps))


def find_spacing(visited: np.ndarray, timesteps: int, preferred: str = "leading") -> str | None:
    """Find our spacing that visits the same timesteps; None if there is none."""
    for name in [preferred, *SPACINGS]:
        try:
            ours = timestep_grid(timesteps, len(visited), name)[:-1]
        except UserError:
            continue
        if np.array_equal(ours, visited):
            return name
    return None


def find_fault(kind: SchedulerClass, known: Mapping[str, Any], visited: np.ndarray) -> str | None:
    """Say why a scheduler's steps between the timesteps that it visits are not ours."""
    timesteps, spacing = known["num_train_timesteps"], known["timestep_spacing"]
    if not are_whole(visited):
        between = next(t for t in visited if t != np.round(t))
        return f"with {len(visited)} steps it visits t = {between:.2f}, between two timesteps"
    if np.any(np.diff(visited) >= 0) or visited[0] >= timesteps or visited[-1] < 0:
        return f"its {len(visited)} timesteps do not descend between {timesteps - 1} and 0"
    if "set_alpha_to_one" in known:  # its steps have one length wherever the next timestep is
        ends = visited - timesteps // len(visited)
        if not np.array_equal(ends[:-1], visited[1:]) or ends[-1] >= 0:
            return f"with {spacing} spacing its steps do not end at the next timestep"
    if known.get("skip_prk_steps") is False and (timesteps // len(visited) % 2 or len(visited) < 4):
        return (
            f"the middle of its Runge-Kutta steps lies between timesteps with {len(visited)} steps"
        )
    noisy_end = known.get("variance_type") == "fixed_large" and visited[-1] > 0
    if noisy_end and kind is SCHEDULERS["DDPMScheduler"]:
        return "it adds noise in its last step, because that starts above t = 0"
    return None
