"""What the JSON documents of diffusers say about a run, and what they leave out."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jax_ddpm.errors import UserError, check_choice, join_or
from jax_ddpm.interop.diffusers_scheduler import (
    NAMED_SCHEDULES,
    PREDICTIONS,
    SCHEDULERS,
    UNLIMITED,
    VARIANCES,
    SchedulerClass,
    complete,
    make_betas,
)
from jax_ddpm.interop.facts import ASSUMED, Fact, Missing, Question, describe_betas
from jax_ddpm.interop.source import SCHEDULER
from jax_ddpm.process.grids import SPACINGS, timestep_grid

MAX_LISTED = 1000  # characters of a list of timesteps
MAX_SIDE = 65_536


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
        raise UserError(
            f"class_embed_type in {name} is {embed!r}, but the labels of a run are the numbers of "
            "classes: such a network can only be used from Python, with from_torch"
        )
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
    settings: Mapping[str, Any], name: str, typed: Mapping[str, Any]
) -> Iterator[Fact]:
    """Describe the process, and the sampler unless the user has chosen one."""
    kind, known = complete(settings, name)
    yield from _describe_process(known, name)
    yield from _describe_clipping(kind, known, name)
    if "variance_type" in known and kind is not None and known["variance_type"] in VARIANCES:
        yield Fact("sample.variance", VARIANCES[known["variance_type"]], name)
    if "sample.sampler" in typed:
        return
    if kind is None:
        called = settings["_class_name"]
        yield Fact("sample.sampler", Missing(f"we have no sampler for {called}"), name)
        return
    try:
        yield Fact("sample.sampler", kind.choose_sampler(known), name)
    except UserError as error:
        yield Fact("sample.sampler", Missing(str(error)), name)
        return
    yield from _describe_grid(kind, known, name, typed)
    if kind is SCHEDULERS["DDIMScheduler"]:  # use_clipped_model_output of its pipeline
        yield Fact("sample.rederive_eps", False, ASSUMED)


def _describe_process(known: Mapping[str, Any], name: str) -> Iterator[Fact]:
    prediction = check_choice(
        f"prediction_type in {name}", known["prediction_type"], list(PREDICTIONS)
    )
    if known["rescale_betas_zero_snr"] and prediction == "epsilon":
        raise UserError(
            f"{name} has rescale_betas_zero_snr with prediction_type epsilon, but in pure noise "
            "the image does not follow from epsilon"
        )
    try:
        yield from describe_betas(make_betas(known), name, list(NAMED_SCHEDULES.values()))
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    yield Fact("diffusion.prediction_type", PREDICTIONS[prediction], name)
    yield from _describe_variance(known.get("variance_type"), name)


def _describe_variance(variance: Any, name: str) -> Iterator[Fact]:
    if variance == "learned_range":
        yield Fact("diffusion.variance", "learned_range", name)
        yield Fact("diffusion.objective", "hybrid", ASSUMED)
        return
    if variance is not None and variance not in VARIANCES:
        known = join_or([*VARIANCES, "learned_range"])
        raise UserError(f"variance_type in {name} is {variance!r}, but it must be {known}")
    yield Fact("diffusion.variance", "fixed", name)


def _describe_clipping(
    kind: SchedulerClass | None, known: Mapping[str, Any], name: str
) -> Iterator[Fact]:
    """Thresholding replaces clipping. With a limit of 1, their default, it is clipping to 1."""
    most = known["sample_max_value"]
    if known["thresholding"]:
        if 1 < most < UNLIMITED:
            reason = f"sample_max_value is {most:g}, but our dynamic thresholding has no limit"
            yield Fact("sample.dynamic_threshold", Missing(reason), name)
        elif most > 1:
            yield Fact("sample.dynamic_threshold", known["dynamic_thresholding_ratio"], name)
        yield Fact("sample.clip_x_0", True, name)
        return
    clips = bool(kind is None or kind.clips) and known.get("clip_sample", False)
    limit = known.get("clip_sample_range", 1.0)
    if clips and limit != 1:
        reason = f"clip_sample_range is {limit:g}, but we clip to 1"
        yield Fact("sample.clip_x_0", Missing(reason), name)
    else:
        yield Fact("sample.clip_x_0", clips, name)


def _describe_grid(
    kind: SchedulerClass, known: Mapping[str, Any], name: str, typed: Mapping[str, Any]
) -> Iterator[Fact]:
    """Describe the timesteps that are visited, unless the user has chosen them."""
    timesteps = known["num_train_timesteps"]
    default = min(kind.num_steps or timesteps, timesteps)
    num_steps = typed.get("sample.num_steps", default)
    yield Fact("sample.num_steps", default, ASSUMED)
    if {"sample.spacing", "sample.timesteps", "sample.respacing"} & typed.keys():
        return
    spacing = known["timestep_spacing"]
    if not 1 <= num_steps <= timesteps:
        return  # the check of the run says so
    visited = kind.list_timesteps(known, num_steps)
    if reason := find_fault(kind, known, visited):
        yield Fact("sample.spacing", Missing(reason), name)
    elif found := find_spacing(visited, timesteps, spacing):
        yield Fact("sample.spacing", found, name)
    else:
        listed = ",".join(str(int(t)) for t in visited)
        reason = f"its {num_steps} timesteps are those of none of our spacings"
        value = listed if len(listed) <= MAX_LISTED else Missing(reason)
        yield Fact("sample.spacing", spacing, name)
        yield Fact("sample.timesteps", value, name)


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
    if np.any(np.diff(visited) >= 0) or visited[0] >= timesteps or visited[-1] < 0:
        return f"its {len(visited)} timesteps do not descend between {timesteps - 1} and 0"
    if "set_alpha_to_one" in known:  # its steps have one length wherever the next timestep is
        ends = visited - timesteps // len(visited)
        if not np.array_equal(ends[:-1], visited[1:]) or ends[-1] >= 0:
            return f"with {spacing} spacing its steps do not end at the next timestep"
    noisy_end = known.get("variance_type") == "fixed_large" and visited[-1] > 0
    if noisy_end and kind is SCHEDULERS["DDPMScheduler"]:
        return "it adds noise in its last step, because that starts above t = 0"
    return None
