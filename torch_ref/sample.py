"""Draws the images of a run as jax-ddpm sample does, in PyTorch from the same random numbers.

`python -m torch_ref.sample RUN --seed 7 --num 16 --out FILE` (.png or .npz) reads RUN/config.json
and the averaged parameters that `jax-ddpm convert RUN --to torch` has written to RUN.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from . import random, schedule
from .pulfer import PulferUNet
from .sampler import sample
from .schedule import Schedule, make_schedule
from .unet import UNet

Settings = dict[str, Any]
Shape = tuple[int, int, int]
FORMATS = 1, 2, 3, 4  # of config.json; they differ only in training settings


def make_unet(model: Settings, channels: int) -> UNet:
    """The U-Net of Ho et al., by default with as many channels as the images have."""
    given = {name: value for name, value in model.items() if value is not None}
    return UNet(**{"in_channels": channels, "out_channels": channels, **given})


# For each architecture: the name of the file of weights, and a function of settings and channels.
NETWORKS: dict[str, tuple[str, Callable[[Settings, int], nn.Module]]] = {
    "unet": ("torch_ref", make_unet),
    "pulfer": ("pulfer", lambda model, channels: PulferUNet(**model)),
}
BETAS: dict[str, Callable[[int], np.ndarray]] = {
    "linear": schedule.linear_betas,
    "linear_rescaled": lambda T: schedule.linear_betas(T, rescale=True),
    "quadratic": schedule.quadratic_betas,
    "quadratic_slip": lambda T: np.linspace(1e-4**2, 0.02**2, T) ** 2,
    "sigmoid": schedule.sigmoid_betas,
    "sigmoid_cumprod": schedule.sigmoid_cumprod_betas,
    "cosine": schedule.cosine_betas,
    "cosine_clipped": lambda T: schedule.cosine_betas(T, clip=(1e-4, 0.9999)),
    "cosine_epita": lambda T: schedule.cosine_betas(T, clip=(1e-4, 0.02)),
    "const": lambda T: schedule.warmup_betas(T, share=0.0),
    "warmup10": lambda T: schedule.warmup_betas(T, share=0.1),
    "warmup50": lambda T: schedule.warmup_betas(T, share=0.5),
    "jsd": schedule.jsd_betas,
}
# S of T timesteps, ascending: Song et al. 2021 (leading, quad), Lin et al. 2024 (trailing).
SPACINGS: dict[str, Callable[[int, int], np.ndarray]] = {
    "leading": lambda T, S: np.arange(S) * (T // S),
    "trailing": lambda T, S: np.round(T * np.arange(1, S + 1) / S) - 1,
    "linspace": lambda T, S: np.round(np.linspace(0, T - 1, S)),
    "quad": lambda T, S: np.floor(np.linspace(0, (0.8 * T) ** 0.5, S) ** 2),
    "lucidrains": lambda T, S: np.trunc(np.linspace(-1, T - 1, S + 1))[1:],
}
# The settings of a run that affect its images, with the values that this program supports. The
# first value is the default of runs that lack the setting.
SUPPORTED: dict[tuple[str, str], Iterable[object]] = {
    ("diffusion", "schedule"): BETAS,
    ("diffusion", "zero_terminal_snr"): (False,),
    ("diffusion", "variance"): ("fixed",),
    ("diffusion", "rescale_timesteps"): (False,),
    ("sample", "sampler"): ("ddpm", "ddim"),
    ("sample", "spacing"): SPACINGS,
    ("sample", "variance"): ("fixed_small", "fixed_large"),
    ("sample", "respacing"): (None,),
    ("sample", "stretch"): (False,),
    ("sample", "guidance"): (None,),
}


@dataclass(frozen=True)
class Noises:
    """The noise [B,C,H,W] of each step, drawn on demand with one key per image.

    As in the library, it is drawn as (H,W,C): number 0 is x_T, number i + 1 is for step i.
    """

    keys: Tensor  # [B,2]
    image_shape: Shape
    dtype: torch.dtype

    def __getitem__(self, i: int) -> Tensor:
        """The noise of step i, or x_T for i = -1."""
        keys = random.fold_in(self.keys, i + 1)
        return random.normal(keys, self.image_shape, self.dtype).permute(0, 3, 1, 2)


def timestep_grid(num_timesteps: int, num_steps: int, spacing: str) -> list[int]:
    """The visited timesteps, descending, followed by -1."""
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(
            f"the number of steps is {num_steps}, not between 1 and T = {num_timesteps}"
        )
    return [*SPACINGS[spacing](num_timesteps, num_steps).astype(int)[::-1].tolist(), -1]


def draw(
    model: Callable[[Tensor, Tensor], Tensor],
    tables: Schedule,
    settings: Settings,
    prediction_type: str,
    keys: Tensor,
    image_shape: Shape,
) -> Tensor:
    """Images uint8[B,H,W,C], one for each key of keys[B,2]; `settings` is a run's "sample"."""
    timesteps = timestep_grid(len(tables.betas), settings["num_steps"], settings["spacing"])
    noises = Noises(keys, image_shape, tables.betas.dtype)
    names = ("sampler", "clip_x_0", "variance", "eta")
    kinds = {name: settings[name] for name in names} | {"prediction_type": prediction_type}
    x_0, _ = sample(model, tables, timesteps, noises[-1], noises, **kinds)
    pixels = ((x_0 + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1)


def load_run(folder: Path) -> tuple[Settings, Shape]:
    """The configuration and the image shape (H,W,C) in RUN/config.json."""
    document = json.loads((folder / "config.json").read_text())
    if document["format"] not in FORMATS:
        known = " or ".join(map(str, FORMATS))
        raise ValueError(f"{folder}/config.json has format {document['format']}, not {known}")
    height, width, channels = document["image_shape"]
    return document["config"], (height, width, channels)


def load_network(folder: Path, model: Settings, channels: int, dtype: torch.dtype) -> nn.Module:
    """The network that a run's "model" describes, with the exported parameters, in `dtype`."""
    settings = dict(model)
    architecture = settings.pop("architecture", "unet")
    compute_dtype = settings.pop("compute_dtype", "float32")
    if architecture not in NETWORKS:
        raise ValueError(
            f"torch_ref has the networks {', '.join(NETWORKS)}, but not {architecture}"
        )
    if compute_dtype != "float32" and dtype == torch.float32:
        raise ValueError(
            f"this run computes in {compute_dtype}: use --dtype float64 in both programs"
        )
    source, make = NETWORKS[architecture]
    path = folder / f"{source}.safetensors"
    if not path.is_file():
        raise ValueError(f"there is no {path}: write it with jax-ddpm convert {folder} --to torch")
    network = make(settings, channels)
    network.load_state_dict(load_file(path))
    return network.to(dtype).eval()


def sample_run(args: argparse.Namespace) -> np.ndarray:
    """The requested images, uint8[N,H,W,C]."""
    config, image_shape = load_run(args.run)
    for name in ("sampler", "spacing", "variance", "eta", "clip_x_0"):
        if getattr(args, name) is not None:
            config["sample"][name] = getattr(args, name)
    config["sample"]["num_steps"] = args.steps or config["sample"]["num_steps"]
    require_supported(config)
    dtype = getattr(torch, args.dtype)
    model = load_network(args.run, config["model"], image_shape[-1], dtype)
    diffusion = config["diffusion"]
    betas = diffusion.get("betas") or BETAS[diffusion["schedule"]](diffusion["num_timesteps"])
    tables = make_schedule(np.array(betas), dtype)
    indices, num_labels = torch.arange(args.num), count_labels(config)
    keys = random.fold_in(random.key(args.seed), indices)
    drawn = []
    for some in indices.split(args.batch_size):
        network = model if num_labels is None else partial(model, label=some % num_labels)
        kinds = config["sample"], diffusion["prediction_type"]
        drawn.append(draw(network, tables, *kinds, keys[some], image_shape))
    return torch.cat(drawn).numpy()


def count_labels(config: Settings) -> int | None:
    """The classes, which are drawn in turn; None for a network without. The last label of a network
    trained with label dropout means "no class"."""
    num_classes: int | None = config["model"].get("num_classes")
    dropped = bool(config["diffusion"].get("label_dropout"))
    return None if num_classes is None else num_classes - dropped


def require_supported(config: Settings) -> None:
    """Raise ValueError for the first setting of a run that this program does not support."""
    for (part, name), values in SUPPORTED.items():
        value = config[part].get(name, next(iter(values)))
        if value not in values:
            raise ValueError(f"torch_ref cannot sample with {part}.{name} {value}")


def make_image_grid(pixels: np.ndarray, padding: int = 2) -> np.ndarray:
    """uint8[N,H,W,C] -> [rows,columns,C]: all images in a square; small ones are enlarged."""
    columns = math.ceil(math.sqrt(len(pixels)))
    scale = max(1, 56 // max(pixels.shape[1:3]))
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    missing = -len(pixels) % columns
    pixels = np.pad(pixels, ((0, missing), (0, padding), (0, padding), (0, 0)))
    rows = [np.concatenate(pixels[i : i + columns], 1) for i in range(0, len(pixels), columns)]
    return np.pad(np.concatenate(rows), ((padding, 0), (padding, 0), (0, 0)))


def write_images(out: Path, pixels: np.ndarray) -> None:
    """Write all images as one picture (PNG) or as one array (NPZ)."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npz":
        np.savez_compressed(out, pixels)
    else:
        picture = make_image_grid(pixels)
        Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(out)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Settings that it omits are those of the run."""
    parser = argparse.ArgumentParser(
        prog="python -m torch_ref.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--out", type=Path, required=True, help="file to write: .png or .npz")
    parser.add_argument("--num", type=int, default=64, help="number of images")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--sampler", choices=("ddpm", "ddim"))
    parser.add_argument("--steps", type=int, help="network evaluations per image")
    parser.add_argument("--spacing", choices=tuple(SPACINGS))
    parser.add_argument("--variance", choices=("fixed_small", "fixed_large"))
    parser.add_argument("--eta", type=float)
    parser.add_argument("--clip-x-0", action=argparse.BooleanOptionalAction)
    parser.add_argument("--batch-size", type=int, default=64, help="images drawn at a time")
    args = parser.parse_args(argv)
    if args.out.suffix not in (".png", ".npz"):
        parser.error(f"--out {args.out} must end in .png or .npz")
    if args.num < 1 or args.batch_size < 1 or not 0 <= args.seed < 2**32:
        parser.error("--num and --batch-size must be at least 1, --seed from 0 to 4294967295")
    return args


def main() -> None:
    """Parse the command line, draw and write; a mistake gives one sentence."""
    args = parse_args()
    try:
        write_images(args.out, sample_run(args))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(f"Wrote {args.out}")


if __name__ == "__main__":
    main()
