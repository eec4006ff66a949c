"""One compiled program from parameters and keys to images, and the batches it is called for."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt8
from tqdm import tqdm

from jax_ddpm.build import Parts, make_sampler
from jax_ddpm.config import SampleConfig, sampling_timesteps
from jax_ddpm.denoiser import make_denoise_fn
from jax_ddpm.diffusion import Prediction
from jax_ddpm.images import stretch_to_uint8, to_uint8
from jax_ddpm.samplers import SamplerState, draw_noise, sample
from jax_ddpm.schedules import level_at
from jax_ddpm.training.parallel import compiler_options

Labels = Int[Array | np.ndarray, " b"]


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


def collect(batches: Iterable[Samples], num_images: int) -> Samples:
    """All batches as one, with a progress bar."""
    done = []
    with tqdm(total=num_images, unit="img") as bar:
        for batch in batches:
            done.append(batch)
            bar.update(len(batch.images))
    images = np.concatenate([batch.images for batch in done])
    return Samples(images, np.concatenate([batch.frames for batch in done], axis=1))
