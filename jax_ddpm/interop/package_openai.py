"""What image_sample.py of OpenAI's improved-diffusion and guided-diffusion loads."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_ddpm.errors import UserError, join_or
from jax_ddpm.interop.openai_facts import SCHEDULES
from jax_ddpm.interop.package import Package, Translation, show_code
from jax_ddpm.interop.process import Process
from jax_ddpm.models.architecture import ImageShape
from jax_ddpm.process.grids import space_timesteps

NUM_CLASSES = 1000
# The factors that the scripts choose by the side of the images.
IMPROVED_MULTS: dict[int, tuple[float, ...]] = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
}
GUIDED_MULTS: dict[int, tuple[float, ...]] = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
SHARED = ("num_res_blocks", "num_heads", "num_heads_upsample", "use_scale_shift_norm", "dropout")
GUIDED = ("num_head_channels", "resblock_updown", "use_new_attention_order")


def write_openai(found: Translation, process: Process, image_shape: ImageShape) -> Package:
    """Write the flags of image_sample.py. Raises UserError for what no flag can say."""
    guided = found.source == "guided_diffusion"
    flags = {
        **_write_network(found.arguments, image_shape, guided),
        **_write_process(process, guided),
    }
    line = " ".join(f"--{name} {value}" for name, value in _spell(flags).items())
    how = show_code(
        [f"python scripts/image_sample.py --model_path model.pt {line} --num_samples 64"], "sh"
    )
    return Package(
        weights="model.pt",
        documents={"model.json": flags},
        peer=f"OpenAI's {found.source.replace('_', '-')}",
        how=f"{how}\n\n`model.json` holds the same flags.",
    )


def _spell(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Spell the flags as a shell takes them."""
    return {name: value if value != "" else '""' for name, value in flags.items()}


def _write_network(
    arguments: Mapping[str, Any], image_shape: ImageShape, guided: bool
) -> dict[str, Any]:
    height, width, channels = image_shape
    outputs, classes = arguments["out_channels"], arguments["num_classes"]
    if height != width or channels != 3:
        raise UserError(
            f"its script makes square images of 3 channels only, but the run's are "
            f"{height}x{width}x{channels}"
        )
    if outputs not in (3, 6):
        raise UserError(f"its script has 3 or 6 output channels, but the network has {outputs}")
    if classes not in (None, NUM_CLASSES):
        raise UserError(f"its script has {NUM_CLASSES} classes, but the network has {classes}")
    if not arguments["conv_resample"] and len(arguments["channel_mult"]) > 1:
        raise UserError("its script has no flag for conv_resample, which is off in this network")
    flags = {
        "image_size": height,
        "num_channels": arguments["model_channels"],
        **{name: arguments[name] for name in SHARED},
        "attention_resolutions": _write_sides(arguments["attention_resolutions"], height),
        "class_cond": classes is not None,
        "learn_sigma": outputs == 6,
        **_write_mult(tuple(arguments["channel_mult"]), height, guided),
    }
    return flags | ({name: arguments[name] for name in GUIDED} if guided else {})


def _write_sides(rates: tuple[int, ...], size: int) -> str:
    """Write downsampling rates as sides of feature maps in pixels.

    The script divides the size of the images by each. Without any, a side that no map has is
    written, because the flag cannot be empty.
    """
    for rate in rates:
        if size % rate:
            raise UserError(
                f"its script takes sides of feature maps, but images of {size} pixels have none at "
                f"the downsampling rate {rate}"
            )
    return ",".join(str(size // rate) for rate in rates) or str(2 * size)


def _write_mult(mult: tuple[float, ...], size: int, guided: bool) -> dict[str, str]:
    known = (GUIDED_MULTS if guided else IMPROVED_MULTS).get(size)
    if known == mult:
        return {"channel_mult": ""} if guided else {}
    if guided and all(float(each).is_integer() for each in mult):
        return {"channel_mult": ",".join(str(int(each)) for each in mult)}
    listed = ", ".join(f"{each:g}" for each in mult)
    has = f"has the factors {known} for" if known else "has no"
    raise UserError(
        f"its script {has} images of {size} pixels, but channel_mult is {listed}: export the "
        "network alone with --to torch"
    )


def _write_process(process: Process, guided: bool) -> dict[str, Any]:
    process.require_prediction("eps", "x_0")
    if process.learned_variance == "learned":
        raise UserError(
            "its script takes a learned variance as a part of a range, but the run's network "
            "predicts the logarithm itself"
        )
    schedule = process.find_schedule(*SCHEDULES.values())
    if schedule is None:
        raise process.refuse_schedule(join_or(list(SCHEDULES.values())))
    small = process.sampler == "ddpm" and process.variance == "fixed_small"
    if guided and small and process.learned_variance is None:
        raise UserError("its script draws with the variance fixed_large, the run with fixed_small")
    flags = {
        "diffusion_steps": len(process.betas),
        "noise_schedule": {ours: theirs for theirs, ours in SCHEDULES.items()}[schedule],
        "predict_xstart": process.prediction_type == "x_0",
        "rescale_timesteps": process.rescale_timesteps,
        **_write_sampler(process),
    }
    return flags if guided else flags | {"sigma_small": small}


def _write_sampler(process: Process) -> dict[str, Any]:
    if process.sampler not in ("ddpm", "ddim"):
        raise UserError(
            f"its script has no sampler {process.sampler}: choose ddpm or ddim with --sampler"
        )
    if process.sampler == "ddim" and (process.eta != 0 or not process.rederive_eps):
        raise UserError(
            "its script has ddim with eta = 0 and with eps from the clipped image: choose "
            "--sampler ddpm"
        )
    if process.dynamic_threshold is not None:
        raise UserError("its script has no dynamic threshold")
    return {
        "use_ddim": process.sampler == "ddim",
        "timestep_respacing": _write_respacing(process),
        "clip_denoised": process.clip_x_0,
    }


def _write_respacing(process: Process) -> str:
    timesteps, visited = len(process.betas), process.timesteps
    if len(visited) == timesteps:
        return ""
    for text in (str(len(visited)), f"ddim{len(visited)}"):
        try:
            theirs = space_timesteps(timesteps, text)[:-1]
        except UserError:
            continue
        if np.array_equal(theirs, visited):
            return text
    raise UserError(
        f"its script cannot take these {len(visited)} steps: choose others with --steps and "
        "--spacing"
    )
