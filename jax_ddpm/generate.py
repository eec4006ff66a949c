"""The sampling job: from parameters, or a run folder, to images."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Int, Key, UInt8
from tqdm import tqdm

from jax_ddpm import runs
from jax_ddpm.build import Parts, build, make_sampler
from jax_ddpm.config import (
    SampleConfig,
    SamplerName,
    sampling_timesteps,
    validate_sample,
    validate_seed,
)
from jax_ddpm.denoiser import make_denoise_fn
from jax_ddpm.diffusion import Prediction
from jax_ddpm.errors import UserError
from jax_ddpm.files import write_atomically
from jax_ddpm.images import Pixels, grid, save_gif, save_png, stretch_to_uint8, to_uint8
from jax_ddpm.samplers import SamplerState, draw_noise, sample
from jax_ddpm.schedules import Spacing, level_at
from jax_ddpm.training.checkpoint import best_step, latest_step, open_checkpoints, restore
from jax_ddpm.training.parallel import compiler_options, shapes_on_one_device
from jax_ddpm.training.state import TrainState

Labels = Int[Array | np.ndarray, " b"]
SUFFIXES = (".png", ".gif", ".npz")


class Samples(NamedTuple):
    """Finished images, and the frames that led to them, from noise on."""

    images: UInt8[np.ndarray, "n h w c"]
    frames: UInt8[np.ndarray, "f n h w c"]


GenerateFn = Callable[[Any, Key[Array, " b"], Labels | None], tuple[Array, Array]]


def make_generate_fn(
    parts: Parts, settings: SampleConfig, image_shape: tuple[int, int, int]
) -> GenerateFn:
    """One compiled program (params, keys[b], labels[b] or None) -> images [b, h, w, c], frames.

    It computes in the dtype of the schedule in `parts`. The frames [f, b, h, w, c] begin with x_T.
    """
    schedule = parts.schedule
    sampler = make_sampler(settings, parts.diffusion)
    timesteps = sampling_timesteps(settings, schedule.num_timesteps)
    pixels = stretch_to_uint8 if settings.stretch else to_uint8

    def frame(state: SamplerState, prediction: Prediction) -> UInt8[Array, "b h w c"]:
        return pixels(state.x_t)

    def generate(
        params: Any, keys: Key[Array, " b"], labels: Labels | None = None
    ) -> tuple[Array, Array]:
        denoise_fn = make_denoise_fn(
            parts.network.apply_fn,
            params,
            prediction_type=parts.diffusion.prediction_type,
            clip_x_0=settings.clip_x_0,
            learned_variance=parts.learned_variance,
            label=labels,
        )
        x_T, noise_fn = draw_noise(keys, image_shape, schedule.betas.dtype)
        levels = level_at(schedule, jnp.asarray(timesteps))
        x_0, frames = sample(
            sampler,
            denoise_fn,
            levels,
            x_T,
            noise_fn,
            trace=frame,
            num_frames=settings.frames,
            self_condition=parts.self_condition,
        )
        return pixels(x_0), jnp.concatenate([pixels(x_T)[None], frames])

    return jax.jit(generate, compiler_options=compiler_options())


def image_keys(seed: int, indices: Int[np.ndarray, " b"]) -> Key[Array, " b"]:
    """One key per image from the seed and the image's number: image 5 is the same in any batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(indices))


def image_labels(
    num_labels: int | None, label: int | None, indices: Int[np.ndarray, " b"]
) -> Labels | None:
    """The class of each image: `label`, or all in turn; None if the network takes no label."""
    if num_labels is None:
        return None
    return indices % num_labels if label is None else np.full_like(indices, label)


def generate_images(
    generate: GenerateFn,
    params: Any,
    num_images: int,
    *,
    seed: int = 0,
    batch_size: int = 64,
    num_labels: int | None = None,
    label: int | None = None,
) -> Iterator[Samples]:
    """Images 0..num_images-1 of `seed`, batch by batch; the last batch is filled up and cut."""
    batch_size = min(batch_size, num_images)
    for first in range(0, num_images, batch_size):
        indices = first + np.arange(batch_size)
        labels = image_labels(num_labels, label, indices)
        images, frames = generate(params, image_keys(seed, indices), labels)
        n = min(batch_size, num_images - first)
        yield Samples(np.asarray(images)[:n], np.asarray(frames)[:, :n])


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
    weights: Literal["ema", "raw"] = "ema"
    """The moving average of the parameters, or the parameters themselves."""
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
    print(f"{args.num} images by {how}, {args.weights} parameters of step {int(state.step)}")
    params = state.ema_params if args.weights == "ema" else state.params
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


def collect(batches: Iterable[Samples], num_images: int) -> Samples:
    """All batches as one, with a progress bar."""
    done = []
    with tqdm(total=num_images, unit="img") as bar:
        for batch in batches:
            done.append(batch)
            bar.update(len(batch.images))
    images = np.concatenate([batch.images for batch in done])
    return Samples(images, np.concatenate([batch.frames for batch in done], axis=1))


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
