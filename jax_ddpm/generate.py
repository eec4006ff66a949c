"""The sampling job: from parameters, or a run folder, to images."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro

from jax_ddpm import runs
from jax_ddpm.averages import chosen_params, require_choice
from jax_ddpm.build import Parts, build
from jax_ddpm.config import (
    SampleConfig,
    SamplerName,
    sampling_timesteps,
    validate_sample,
    validate_seed,
)
from jax_ddpm.drawing import (
    GenerateFn,
    Labels,
    Samples,
    collect,
    generate_images,
    image_keys,
    image_labels,
    make_generate_fn,
)
from jax_ddpm.errors import UserError
from jax_ddpm.files import write_atomically
from jax_ddpm.images import Pixels, grid, save_gif, save_png
from jax_ddpm.schedules import Spacing
from jax_ddpm.training.checkpoint import best_step, latest_step, open_checkpoints, restore
from jax_ddpm.training.parallel import shapes_on_one_device
from jax_ddpm.training.state import TrainState

__all__ = ["GenerateFn", "Labels", "SampleArgs", "Samples", "generate_images",
           "image_keys", "image_labels", "load_state", "make_generate_fn", "sample_run",
           "write_samples"]  # fmt: skip

SUFFIXES = (".png", ".gif", ".npz")


@dataclass(frozen=True)
class SampleArgs:
    """The sampling job; settings left out are those of the run."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    num: int = 64
    """Number of images."""
    out: Path | None = None
    """File to write: .png (a grid), .gif (the grid as it emerges from noise) or .npz (arr_0: uint8
    [n, h, w, c]). Default: samples/seed_SEED.png in the run folder."""
    seed: int = 0
    """Seed of all noise; image i of a seed is the same whatever --num and --batch-size are."""
    sampler: SamplerName | None = None
    steps: int | None = None
    """Network evaluations per image."""
    spacing: Spacing | None = None
    """Which timesteps are visited if there are fewer than T."""
    variance: Literal["fixed_small", "fixed_large"] | None = None
    """Variance of ddpm."""
    eta: float | None = None
    """Noise of ddim: 0 is deterministic."""
    clip_x_0: bool | None = None
    """Clip each predicted clean image to [-1, 1]."""
    respacing: str | None = None
    """Timesteps visited, as OpenAI's programs name them: "250", "10,15,20" or "ddim50"."""
    label: int | None = None
    """Class of all images, for a network that was trained with labels; default: all in turn."""
    weights: str = "ema"
    """ema: the moving average of the parameters; raw: the parameters themselves; or a decay of the
    run, train.ema-decay or one of train.ema-decays."""
    posthoc_ema: float | None = None
    """Relative width of an average that is made of the run's snapshots (see train.posthoc-ema)."""
    posthoc_step: int | None = None
    """The step whose average that is; default: that of the last snapshot."""
    checkpoint: Literal["newest", "best"] = "newest"
    """best: the one of lowest training loss, of a run with train.keep-best."""
    frames: int | None = None
    """Frames of a GIF."""
    stretch: bool | None = None
    """Stretch the contrast of each image to the full range."""
    dtype: Literal["float32", "float64"] = "float32"
    """float64: noise, tables and network in double precision, to compare with PyTorch's images."""
    batch_size: int = 64
    """Images per call of the compiled program."""

    def settings(self, of_run: SampleConfig) -> SampleConfig:
        """The run's settings, changed by the flags that were given."""
        given = {f.name: getattr(self, f.name, None) for f in fields(SampleConfig)}
        given["num_steps"] = self.steps
        if self.steps is not None or self.spacing is not None:
            of_run = replace(of_run, respacing=None)
        return replace(
            of_run, **{name: value for name, value in given.items() if value is not None}
        )


def sample_run(args: SampleArgs) -> Path:
    """Draw images from the newest checkpoint of a run, write them to a file, and return its path.

    Raises UserError for a folder that is no trained run and for settings that cannot work.
    """
    out = args.out or args.run / "samples" / f"seed_{args.seed}.png"
    check_output(out)
    if args.num < 1 or args.batch_size < 1:
        raise UserError(
            f"--num {args.num} and --batch-size {args.batch_size} must both be at least 1"
        )
    validate_seed(args.seed)
    run = runs.load(args.run)
    require_choice(run.config, args.weights, args.posthoc_ema, args.posthoc_step)
    settings = args.settings(run.config.sample)
    validate_sample(settings, run.config.diffusion.num_timesteps)
    with jax.enable_x64(args.dtype == "float64"):
        write_samples(out, draw_samples(args, run, settings))
    print(f"Wrote {out}")
    return out


def draw_samples(args: SampleArgs, run: runs.Run, settings: SampleConfig) -> Samples:
    """The images that `args` asks for."""
    parts = build(run.config, run.image_shape, "float64" if args.dtype == "float64" else None)
    require_label(args.label, parts.num_labels)
    state = load_state(run, parts, best=args.checkpoint == "best")
    generate = make_generate_fn(parts, settings, run.image_shape)
    steps = len(sampling_timesteps(settings, run.config.diffusion.num_timesteps)) - 1
    how = f"{settings.sampler} in {steps} steps"
    params, what = chosen_params(run, state, args.weights, args.posthoc_ema, args.posthoc_step)
    print(f"{args.num} images by {how}, {what}")
    batches = generate_images(
        generate,
        jax.tree.map(lambda leaf: leaf.astype(args.dtype), params),
        args.num,
        seed=args.seed,
        batch_size=args.batch_size,
        num_labels=parts.num_labels,
        label=args.label,
    )
    return collect(batches, args.num)


def require_label(label: int | None, num_labels: int | None) -> None:
    """Raise UserError for a label that the network does not have."""
    if label is None:
        return
    if num_labels is None:
        raise UserError(f"--label {label}: this run was trained without labels")
    if not 0 <= label < num_labels:
        raise UserError(f"--label {label} must be between 0 and {num_labels - 1}")


def load_state(run: runs.Run, parts: Parts, *, best: bool = False) -> TrainState:
    """The newest checkpoint of `run`, or that of lowest loss, on one device."""
    if not run.checkpoints.is_dir():
        raise UserError(f"{run.folder} has no checkpoint yet: train it first")
    like = shapes_on_one_device(jax.eval_shape(parts.init_state, jax.random.key(0)))
    with open_checkpoints(run.checkpoints) as checkpoints:
        step = best_step(checkpoints) if best else latest_step(checkpoints)
        if best and step is None:
            raise UserError(f"{run.folder} was trained without --train.keep-best: there is no best")
        return restore(checkpoints, like, step=step)


def check_output(out: Path) -> None:
    """Raise UserError unless `out` names a PNG, GIF or NPZ file."""
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {out} must end in .png (a grid), .gif or .npz")


def write_samples(out: Path, samples: Samples) -> None:
    """Write `samples` as a grid (PNG), an animated grid (GIF) or an array (NPZ), by suffix."""
    match out.suffix.lower():
        case ".png":
            save_png(out, grid(samples.images))
        case ".gif":
            save_gif(out, [grid(frame) for frame in samples.frames])
        case ".npz":
            write_atomically(out, lambda temporary: _save_npz(temporary, samples.images))


def _save_npz(path: Path, images: Pixels) -> None:
    with path.open("wb") as file:  # given a name, NumPy would append .npz to it
        np.savez_compressed(file, images)
