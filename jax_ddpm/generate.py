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
from jax_ddpm.config import SampleConfig, SamplerName, validate_sample, validate_seed
from jax_ddpm.denoiser import make_denoise_fn
from jax_ddpm.diffusion import ApplyFn, Prediction, PredictionType
from jax_ddpm.errors import UserError
from jax_ddpm.files import write_atomically
from jax_ddpm.images import Pixels, grid, save_gif, save_png, to_uint8
from jax_ddpm.samplers import SamplerState, draw_noise, sample
from jax_ddpm.samplers.ddpm import Variance
from jax_ddpm.schedules import Schedule, Spacing, level_at, timestep_grid
from jax_ddpm.training.checkpoint import open_checkpoints, restore
from jax_ddpm.training.parallel import compiler_options, shapes_on_one_device
from jax_ddpm.training.state import TrainState

GIF_FRAMES = 25
SUFFIXES = (".png", ".gif", ".npz")


class Samples(NamedTuple):
    """Finished images, and the frames that led to them, from noise on."""

    images: UInt8[np.ndarray, "n h w c"]
    frames: UInt8[np.ndarray, "f n h w c"]


GenerateFn = Callable[[Any, Key[Array, " b"]], tuple[Array, Array]]


def make_generate_fn(
    apply_fn: ApplyFn,
    schedule: Schedule,
    prediction_type: PredictionType,
    settings: SampleConfig,
    image_shape: tuple[int, int, int],
) -> GenerateFn:
    """One compiled program (params, keys[b]) -> images [b, h, w, c], frames [f, b, h, w, c]."""
    sampler = make_sampler(settings)
    timesteps = timestep_grid(schedule.num_timesteps, settings.num_steps, settings.spacing)

    def frame(state: SamplerState, prediction: Prediction) -> UInt8[Array, "b h w c"]:
        return to_uint8(state.x_t)

    def generate(params: Any, keys: Key[Array, " b"]) -> tuple[Array, Array]:
        denoise_fn = make_denoise_fn(
            apply_fn, params, prediction_type=prediction_type, clip_x_0=settings.clip_x_0
        )
        x_T, noise_fn = draw_noise(keys, image_shape)
        levels = level_at(schedule, jnp.asarray(timesteps))
        x_0, frames = sample(
            sampler, denoise_fn, levels, x_T, noise_fn, trace=frame, num_frames=GIF_FRAMES
        )
        return to_uint8(x_0), jnp.concatenate([to_uint8(x_T)[None], frames])

    return jax.jit(generate, compiler_options=compiler_options())


def image_keys(seed: int, indices: Int[np.ndarray, " b"]) -> Key[Array, " b"]:
    """One key per image from the seed and the image's number: image 5 is the same in any batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(indices))


def generate_images(
    generate: GenerateFn, params: Any, num_images: int, *, seed: int = 0, batch_size: int = 64
) -> Iterator[Samples]:
    """Images 0..num_images-1 of `seed`, batch by batch; the last batch is filled up and cut."""
    batch_size = min(batch_size, num_images)
    for first in range(0, num_images, batch_size):
        images, frames = generate(params, image_keys(seed, first + np.arange(batch_size)))
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
    variance: Variance | None = None
    """Variance of ddpm."""
    eta: float | None = None
    """Noise of ddim: 0 is deterministic."""
    clip_x_0: bool | None = None
    """Clip each predicted clean image to [-1, 1]."""
    weights: Literal["ema", "raw"] = "ema"
    """The moving average of the parameters, or the parameters themselves."""
    batch_size: int = 64
    """Images per call of the compiled program."""

    def settings(self, of_run: SampleConfig) -> SampleConfig:
        """The run's settings, changed by the flags that were given."""
        given = {f.name: getattr(self, f.name, None) for f in fields(SampleConfig)}
        given["num_steps"] = self.steps
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
    parts = build(run.config, run.image_shape)
    state = load_state(run, parts)
    generate = make_generate_fn(
        parts.network.apply_fn,
        parts.schedule,
        run.config.diffusion.prediction_type,
        settings,
        run.image_shape,
    )
    how = f"{settings.sampler} in {settings.num_steps} steps"
    print(f"{args.num} images by {how}, {args.weights} parameters of step {int(state.step)}")
    params = state.ema_params if args.weights == "ema" else state.params
    batches = generate_images(
        generate, params, args.num, seed=args.seed, batch_size=args.batch_size
    )
    write_samples(out, collect(batches, args.num))
    print(f"Wrote {out}")
    return out


def load_state(run: runs.Run, parts: Parts) -> TrainState:
    """The newest checkpoint of `run` on one device."""
    if not run.checkpoints.is_dir():
        raise UserError(f"{run.folder} has no checkpoint yet: train it first")
    like = shapes_on_one_device(jax.eval_shape(parts.init_state, jax.random.key(0)))
    with open_checkpoints(run.checkpoints) as checkpoints:
        return restore(checkpoints, like)


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
