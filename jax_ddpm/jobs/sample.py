"""The sampling job: from a run folder to images in a file."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax

from jax_ddpm import runs
from jax_ddpm.config.effects import require_no_frames
from jax_ddpm.config.jobs import EMA, SampleJob, Weights
from jax_ddpm.config.run import validate_sampling, validate_seed
from jax_ddpm.config.sample import SampleConfig, change_settings, describe_low_start
from jax_ddpm.devices.per_example import replicate_params
from jax_ddpm.devices.processes import is_main_process
from jax_ddpm.errors import UserError, flag_name, require
from jax_ddpm.files.atomic import require_writable
from jax_ddpm.jobs.build import build, check_effects, count_classes, list_levels
from jax_ddpm.jobs.classifier import check_guidance, make_gradient, without_guidance
from jax_ddpm.jobs.edit import (
    Edit,
    Inpaint,
    Interpolation,
    adapt_settings,
    check_edit,
    make_edit_fns,
)
from jax_ddpm.jobs.edit_pictures import choose_columns, read_beside
from jax_ddpm.jobs.generate import Samples, generate_images, make_generate_fn
from jax_ddpm.jobs.labels import describe_drawn, find_labels, is_number, list_class_names
from jax_ddpm.jobs.messages import announce_compilation, tell, tell_if_slow
from jax_ddpm.jobs.parameters import check_weights, choose_step, load_params
from jax_ddpm.jobs.sample_files import (
    check_suffix,
    list_files,
    make_name,
    require_possible_size,
    write_files,
)
from jax_ddpm.jobs.sample_folder import is_folder, open_folder, tell_next, write_images


def sample_run(
    folder: Path,
    job: SampleJob,
    changes: Mapping[str, Any] | None = None,
    *,
    weights: Weights = EMA,
    edit: Edit | None = None,
) -> Path:
    """Draw images from a run, write them to a file, and return its path.

    `changes` are sampling settings that differ from the run's; see `change_settings`. Raises
    UserError for a folder that is not a trained run, and for settings that cannot work.
    """
    changes, run = changes or {}, runs.load(folder)
    if not draws_gif(job):
        require_no_frames(changes, "give --trajectory, or an --out that ends in .gif")
    settings = choose_settings(run, job, changes, weights, edit)
    name = make_name(job, run.config.sample, changes, weights=weights, edit=edit)
    out = job.out or folder / "samples" / name
    if is_folder(out):
        return sample_to_folder(run, job, settings, out, weights=weights, edit=edit)
    check_suffix(out)
    files = list_files(out, job.trajectory)
    require_possible_size(files, job.num, run.image_shape, settings.frames)
    if is_main_process():
        require_writable(out)
    write_files(
        files,
        draw_batches(run, job, settings, weights=weights, edit=edit, frames=draws_gif(job)),
        job.num,
        columns=choose_columns(edit, job.num),
        class_names=list_class_names(run),
        beside=read_beside(edit, run.image_shape, run.config.data),
    )
    for path in files:
        tell(f"Wrote {path}")
    return out


def sample_to_folder(
    run: runs.Run,
    job: SampleJob,
    settings: SampleConfig,
    out: Path,
    *,
    weights: Weights,
    edit: Edit | None,
) -> Path:
    """Draw images and write each to a file of its own in the folder `out`, as they come."""
    if job.trajectory:
        raise UserError(f"--trajectory needs --out FILE, not the folder {out}")
    facts: dict[str, Any] = {
        "run": str(run.folder.resolve()),
        "step": choose_step(run, weights.checkpoint),
        "settings": asdict(settings),
    }
    facts |= {"seed": job.seed, "label": list(job.label) or None, "weights": asdict(weights)}
    facts |= {"edit": None if edit is None else edit.name, "classifier": job.classifier}
    if is_main_process():
        open_folder(out, facts)
    size = min(job.batch_size, job.num)

    def batches(first: int) -> Iterator[Samples]:
        return draw_batches(run, job, settings, weights=weights, edit=edit, first_image=first)

    write_images(out, batches, job.num, size)
    tell_next(out, job.num)
    return out


def choose_settings(
    run: runs.Run,
    job: SampleJob,
    changes: Mapping[str, Any],
    weights: Weights = EMA,
    edit: Edit | None = None,
) -> SampleConfig:
    """The run's settings with `changes`, adapted to the edit and the classifier, if any.

    Raises UserError for anything that cannot work, before any work is done.
    """
    for name in ("num", "batch_size"):
        value = getattr(job, name)
        require(value >= 1, flag_name(name), value, "at least 1")
    validate_seed(job.seed)
    check_weights(run.config, weights)
    check_edit(edit, job.num)
    settings = adapt_settings(edit, change_settings(run.config.sample, changes), changes)
    if job.classifier is None:
        validate_sampling(settings, run.config)
    else:
        check_guidance(run.config, job.label, changes)
        settings = replace(settings, guidance=changes.get("guidance"))
        validate_sampling(without_guidance(settings), run.config)
    check_effects(run.config, settings, changes)
    choose_labels(run, job, edit)
    _check_guidance(settings, job)
    return settings


def _check_guidance(settings: SampleConfig, job: SampleJob) -> None:
    """Raise UserError for classes or a classifier that guidance of scale 0 ignores."""
    if settings.guidance != 0 or settings.guidance_interval is not None:
        return
    given = {"classifier": job.classifier, "label": " ".join(job.label)}
    for name, value in given.items():
        if value:
            raise UserError(f"--{name} {value} has no effect with --guidance 0, which ignores it")


def draws_gif(job: SampleJob) -> bool:
    """Whether the job writes the frames on the way from noise to images."""
    return job.trajectory or (job.out is not None and job.out.suffix.lower() == ".gif")


def choose_labels(run: runs.Run, job: SampleJob, edit: Edit | None = None) -> tuple[int, ...]:
    """The numbers of the classes to draw in turn; () for all of them, or for a run without any.

    Raises UserError for a class that does not exist or that the run's images did not have.
    """
    if job.classifier is not None and count_classes(run.config) is None:
        require(all(map(is_number, job.label)), "--label", " ".join(job.label), "a whole number")
        return tuple(map(int, job.label))
    labels = find_labels(job.label, run)
    without = not labels and run.config.diffusion.label_dropout > 0
    if isinstance(edit, Interpolation) and count_classes(run.config) and not without:
        require_one_label(labels)
    return labels


def require_one_label(labels: tuple[int, ...]) -> None:
    """Raise UserError unless there is one class for all images between two."""
    if len(labels) != 1:
        raise UserError("--interpolate needs one --label for a network trained with labels")


def draw_batches(
    run: runs.Run,
    job: SampleJob,
    settings: SampleConfig,
    *,
    weights: Weights = EMA,
    edit: Edit | None = None,
    first_image: int = 0,
    frames: bool = False,
) -> Iterator[Samples]:
    """Draw images `first_image` to job.num - 1 in batches, with the `frames` of a GIF or without.

    `settings` come from `choose_settings`.
    """
    labels = choose_labels(run, job, edit)
    with jax.enable_x64(job.dtype == "float64"):
        parts = build(run.config, run.image_shape, "float64" if job.dtype == "float64" else None)
        edit_fns = make_edit_fns(edit, parts, settings, run.image_shape, job.num, run.config.data)
        gradient_of = None
        if job.classifier is not None:
            scale = 1.0 if settings.guidance is None else settings.guidance
            gradient_of = make_gradient(job.classifier, run.image_shape, job.dtype, scale)
            settings = without_guidance(settings)
        with tell_if_slow("Loading the checkpoint"):
            params, description = load_params(run, parts, weights)
        generate = make_generate_fn(
            parts, settings, run.image_shape, edit=edit_fns, gradient_of=gradient_of
        )
        num_steps = len(edit_fns.levels(list_levels(parts, settings)).t) - 1
        drawn = describe_drawn(labels, run)
        if edit is not None and not labels and settings.guidance is None and parts.null_label:
            # Label dropout has taught the network to draw without a class, which suits any picture.
            labels, drawn = (parts.null_label,), ", without a class"
        if frames:
            drawn += f"; {min(settings.frames, num_steps + 1)} frames"
        tell(f"{job.num} images with {settings.sampler} in {num_steps} steps, {description}{drawn}")
        starts_from_noise = edit is None or isinstance(edit, Inpaint)
        low = describe_low_start(settings, parts.schedule.num_timesteps)
        if low is not None and starts_from_noise:
            tell(f"Note: {low}")
        params = jax.tree.map(lambda leaf: leaf.astype(job.dtype), params)
        yield from generate_images(
            announce_compilation(generate, "the sampler"),
            replicate_params(params, min(job.batch_size, job.num)),
            job.num,
            seed=job.seed,
            batch_size=job.batch_size,
            num_labels=parts.num_labels,
            labels=labels,
            edit=edit_fns,
            first_image=first_image,
            keep_frames=frames,
        )
