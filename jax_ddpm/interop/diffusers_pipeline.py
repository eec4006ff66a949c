"""A run as the folder of a pipeline that diffusers loads: its documents and its model card."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_ddpm.errors import UserError, join_or
from jax_ddpm.interop.diffusers_betas import NAMED_SCHEDULES
from jax_ddpm.interop.diffusers_classes import SCHEDULERS, SchedulerClass
from jax_ddpm.interop.diffusers_facts import find_fault
from jax_ddpm.interop.diffusers_scheduler import PREDICTIONS, SPACINGS
from jax_ddpm.interop.process import Process

VERSION = "0.42.1"  # of diffusers, whose format this is
WEIGHTS = "diffusion_pytorch_model.safetensors"
MAX_VALUE = 1e30  # no limit, as JSON can say it
CARD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags:
- diffusers
- unconditional-image-generation
- ddpm
---

# {title}

A denoising diffusion model for images of {size}, exported from a run of jax_ddpm.

```python
from diffusers import {kind}

pipeline = {kind}.from_pretrained("PATH")
images = pipeline({call}).images
```

| | |
|---|---|
| schedule | {schedule}, {timesteps} timesteps |
| the network predicts | {prediction} |
| sampler of the run | {sampler}, {num_steps} steps |
"""


def list_call(process: Process) -> dict[str, Any]:
    """The arguments with which the pipeline draws the images of the run."""
    arguments: dict[str, Any] = {"num_inference_steps": len(process.timesteps)}
    if process.sampler == "ddim":
        clips = process.clip_x_0 or process.dynamic_threshold is not None
        rederives = process.rederive_eps and clips
        arguments |= {"eta": process.eta, "use_clipped_model_output": rederives}
    return arguments


def name_pipeline(process: Process) -> str:
    """The class of the pipeline."""
    return "DDIMPipeline" if process.sampler == "ddim" else "DDPMPipeline"


def write_scheduler(process: Process) -> dict[str, Any]:
    """Write scheduler_config.json. Raises UserError for what no scheduler of diffusers has."""
    name, kind = _find_class(process.sampler)
    _require_variance(process)
    settings: dict[str, Any] = {
        **kind.defaults,
        **kind.fills[process.sampler],
        "num_train_timesteps": len(process.betas),
        **_write_betas(process, kind),
        "prediction_type": {ours: theirs for theirs, ours in PREDICTIONS.items()}[
            process.prediction_type
        ],
        **_write_clipping(process, kind),
    }
    if "variance_type" in settings:
        fixed = process.variance if process.sampler == "ddpm" else None
        settings["variance_type"] = process.learned_variance or fixed
    kind.choose_sampler(settings)  # it raises UserError where the steps would not be the same
    settings |= _find_spacing(process, kind, settings)
    finite = {n: v for n, v in settings.items() if n != "lambda_min_clipped"}
    return {"_class_name": name, "_diffusers_version": VERSION, **finite}


def _find_class(sampler: str) -> tuple[str, SchedulerClass]:
    for name, kind in SCHEDULERS.items():
        if sampler in kind.fills:
            return name, kind
    known = dict.fromkeys(sampler for kind in SCHEDULERS.values() for sampler in kind.fills)
    raise UserError(
        f"a pipeline of diffusers cannot have the sampler {sampler}: choose {join_or([*known])} "
        "with --sampler"
    )


def _require_variance(process: Process) -> None:
    if process.learned_variance == "learned":
        raise UserError(
            "the network predicts the logarithm of the variance, but diffusers expects the "
            "variance itself"
        )
    if process.learned_variance is not None and process.sampler == "ddim":
        raise UserError(
            "the scheduler of ddim cannot have a learned variance: choose --sampler ddpm"
        )


def _write_betas(process: Process, kind: SchedulerClass) -> dict[str, Any]:
    written: dict[str, Any] = {"rescale_betas_zero_snr": process.zero_terminal_snr}
    for theirs, ours in NAMED_SCHEDULES.items():
        if ours == process.schedule and theirs in kind.beta_schedules:
            return written | {"beta_schedule": theirs}
    return written | {"trained_betas": [float(beta) for beta in process.betas]}


def _write_clipping(process: Process, kind: SchedulerClass) -> dict[str, Any]:
    """Write the clipping. Thresholding with their limit of 1 is clipping to 1."""
    if process.dynamic_threshold is not None:
        ratio = process.dynamic_threshold
        limits = {"dynamic_thresholding_ratio": ratio, "sample_max_value": MAX_VALUE}
        return {"thresholding": True, **limits}
    return {"clip_sample" if kind.clips else "thresholding": process.clip_x_0}


def _find_spacing(
    process: Process, kind: SchedulerClass, settings: Mapping[str, Any]
) -> dict[str, Any]:
    visited, reasons = process.timesteps, list[str]()
    # The first that fits is taken: trailing begins at pure noise with any number of steps.
    order = sorted(SPACINGS, key=lambda spacing: spacing != "trailing")
    choices: list[dict[str, Any]] = [{"timestep_spacing": spacing} for spacing in order]
    choices.append({"timestep_spacing": "leading", "steps_offset": int(visited[-1])})
    for choice in choices:
        known = {**settings, **choice}
        if np.array_equal(kind.list_timesteps(known, len(visited)), visited):
            fault = find_fault(kind, known, visited)
            if fault is None:
                return choice
            reasons.append(fault)
    why = reasons[0] if reasons else "it visits other timesteps with each of its spacings"
    raise UserError(
        f"the scheduler of diffusers for {process.sampler} cannot take these {len(visited)} steps: "
        f"{why}; choose others with --steps and --spacing"
    )


def write_index(process: Process, scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """Write model_index.json."""
    return {
        "_class_name": name_pipeline(process),
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }


def write_network(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Write the U-Net's config.json."""
    return {"_class_name": "UNet2DModel", "_diffusers_version": VERSION, **arguments}


def write_card(process: Process, title: str, image_shape: tuple[int, int, int]) -> str:
    """Write the model card."""
    return CARD.format(
        title=title,
        size="x".join(map(str, image_shape)),
        kind=name_pipeline(process),
        call=", ".join(f"{name}={value}" for name, value in list_call(process).items()),
        schedule=process.schedule or "without a name",
        timesteps=len(process.betas),
        prediction=process.prediction_type,
        sampler=process.sampler,
        num_steps=len(process.timesteps),
    )
