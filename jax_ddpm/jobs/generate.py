"""The compiled program that draws images from parameters and keys, and the loop over batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt8

from jax_ddpm.config.sample import SampleConfig
from jax_ddpm.devices.per_example import compile_per_example, round_up
from jax_ddpm.files.images import stretch_to_uint8, to_uint8
from jax_ddpm.jobs.build import Parts, list_levels, make_sampler
from jax_ddpm.jobs.messages import make_bar
from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.guidance import guide_network, guide_score
from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import DenoiseFn, GradientFn, Images, Prediction
from jax_ddpm.samplers import SAMPLERS, Sampler, SamplerState, draw_noise, sample

Labels = Int[Array | np.ndarray, " b"]
Indices = Int[np.ndarray, " b"]


class Samples(NamedTuple):
    """Finished images, and the frames of the way from noise to images."""

    images: UInt8[np.ndarray, "n h w c"]
    frames: UInt8[np.ndarray, "f n h w c"]
    """Without any frame unless they were asked for."""
    labels: Int[np.ndarray, " n"] | None = None
    """The class of each image; None for a network without classes."""


GenerateFn = Callable[..., tuple[Array, Array]]  # (params, (keys, labels, positions), pictures)
GradientOf = Callable[[Any], GradientFn]  # labels -> gradient of a classifier


def start_from_noise(
    x_T: Images, levels: Level, denoise_first: Any, pictures: Any, positions: Any
) -> Images:
    """Start from pure noise: the default `start` of EditFns."""
    return x_T


class EditFns(NamedTuple):
    """How the sampling program edits given images; by default, it starts from noise alone.

    The compiled program takes as arguments the arrays `pictures`, which all images share, and
    `positions(indices)`, one number per image. `levels(grid)` returns the levels to visit.
    `wrap(sampler, pictures)` returns the sampler to use. `start(x_T, levels, denoise_first,
    pictures, positions)` returns the first x_t; `denoise_first(n)` denoises n images of the first
    image's class. With `one_noise`, all images share the noise of image 0.
    """

    pictures: tuple[Any, ...] = ()
    positions: Callable[[Indices], Any] = lambda indices: None
    levels: Callable[[Level], Level] = lambda levels: levels
    wrap: Callable[[Sampler, Any], Sampler] = lambda sampler, pictures: sampler
    start: Callable[..., Images] = start_from_noise
    one_noise: bool = False


NO_EDIT = EditFns()


def make_generate_fn(
    parts: Parts,
    settings: SampleConfig,
    image_shape: tuple[int, int, int],
    *,
    edit: EditFns = NO_EDIT,
    gradient_of: GradientOf | None = None,
) -> GenerateFn:
    """Make one compiled program (params, (keys, labels, positions), pictures) -> images, frames.

    It computes in the dtype of the schedule in `parts` and runs on the devices that hold the
    parameters (see `compile_per_example`). Images are uint8 [b, h, w, c]. The frames
    [f, b, h, w, c] begin with the first x_t; there are `settings.frames`, or one more than steps if
    that is fewer. `gradient_of(labels)` returns the gradient of the classifier to guide by (see
    `classifier_gradient`).
    """
    levels = edit.levels(list_levels(parts, settings))
    dtype, num_steps = parts.schedule.betas.dtype, len(levels.t) - 1
    to_pixels = stretch_to_uint8 if settings.stretch else to_uint8

    def frame(state: SamplerState, prediction: Prediction) -> UInt8[Array, "b h w c"]:
        return to_pixels(prediction.x_0 if settings.frames_of == "x_0" else state.x_t)

    def generate(params: Any, examples: Any, pictures: Any) -> tuple[Array, Array]:
        keys, labels, positions = examples

        def denoise_first(n: int) -> DenoiseFn:
            label = None if labels is None else jnp.repeat(jnp.asarray(labels)[:1], n)
            return make_denoiser(parts, settings, params, label, gradient_of)

        x_T, noise_fn = draw_noise(keys, image_shape, dtype)
        pictures, positions = jax.tree.map(
            lambda a: a if a.dtype == bool else a.astype(dtype), (pictures, positions)
        )
        start = edit.start(x_T, levels, denoise_first, pictures, positions)
        gradient_fn = None if gradient_of is None else gradient_of(labels)
        sampler = make_sampler(settings, parts.diffusion, parts.schedule, num_steps, gradient_fn)
        x_0, frames = sample(
            edit.wrap(sampler, pictures),
            make_denoiser(parts, settings, params, labels, gradient_of),
            levels,
            start,
            noise_fn,
            trace=frame,
            num_frames=settings.frames - 1,
            self_condition=parts.self_condition,
        )
        return to_pixels(x_0), jnp.concatenate([to_pixels(start)[None], frames])

    return compile_per_example(generate)


def make_denoiser(
    parts: Parts,
    settings: SampleConfig,
    params: Any,
    labels: Labels | None,
    gradient_of: GradientOf | None = None,
) -> DenoiseFn:
    """Make the denoiser for images of the given classes, clipped and guided as in `settings`."""
    apply_fn = parts.network.apply_fn
    if settings.guidance is not None:
        assert parts.null_label is not None
        apply_fn = guide_network(
            apply_fn,
            parts.null_label,
            settings.guidance,
            interval=settings.guidance_interval,
            rescale=settings.guidance_rescale,
            learned_variance=parts.learned_variance,
        )
    denoise_fn = make_denoise_fn(
        apply_fn,
        params,
        prediction_type=parts.diffusion.prediction_type,
        clip_x_0=settings.clip_x_0,
        rederive_eps=settings.rederive_eps,
        dynamic_threshold=settings.dynamic_threshold,
        learned_variance=parts.learned_variance,
        label=None if parts.num_labels is None else labels,
    )
    if gradient_of is None or SAMPLERS[settings.sampler].guides_mean:
        return denoise_fn
    return guide_score(denoise_fn, gradient_of(labels))


def image_keys(seed: int, indices: Indices) -> Key[Array, " b"]:
    """Make one key per image from the seed and the image's index, whatever the batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(indices))


def image_labels(num_labels: int | None, chosen: Sequence[int], indices: Indices) -> Labels | None:
    """The class of each image: the chosen ones in turn, or all; None for a network without any."""
    if chosen:
        return np.asarray(chosen, indices.dtype)[indices % len(chosen)]
    return None if num_labels is None else indices % num_labels


def generate_images(
    generate: GenerateFn,
    params: Any,
    num_images: int,
    *,
    seed: int = 0,
    batch_size: int = 64,
    num_labels: int | None = None,
    labels: Sequence[int] = (),
    edit: EditFns = NO_EDIT,
    first_image: int = 0,
    keep_frames: bool = False,
) -> Iterator[Samples]:
    """Draw images `first_image` to num_images - 1 of `seed` in batches.

    They are drawn on the devices that hold `params`. Their classes are `labels` in turn, or all.
    A batch that is too small, or does not divide over the devices, is padded and then cut.
    """
    batch_size = min(batch_size, num_images)
    for first in range(first_image, num_images, batch_size):
        indices = first + np.arange(round_up(batch_size, params))
        classes = image_labels(num_labels, labels, indices)
        keys = image_keys(seed, 0 * indices if edit.one_noise else indices)
        examples = keys, classes, edit.positions(indices)
        images, frames = generate(params, examples, edit.pictures)
        n = min(batch_size, num_images - first)
        drawn, way = np.asarray(images)[:n], np.empty((0, n, *images.shape[1:]), np.uint8)
        if keep_frames:
            way = np.asarray(frames)[:, :n]
        yield Samples(drawn, way, None if classes is None else np.asarray(classes)[:n])


def collect(batches: Iterable[Samples]) -> Samples:
    """Concatenate all batches."""
    done = list(batches)
    images = np.concatenate([batch.images for batch in done])
    frames = np.concatenate([batch.frames for batch in done], axis=1)
    labels = [batch.labels for batch in done if batch.labels is not None]
    return Samples(images, frames, np.concatenate(labels) if labels else None)


def show_progress(
    batches: Iterable[Samples], num_images: int, note: str = "", *, leave: bool = True
) -> Iterator[Samples]:
    """Pass on the batches, with a progress bar and a `note` on it; it stays if it is to `leave`."""
    with make_bar(num_images, "img") as bar:
        bar.leave = leave
        if note:
            bar.set_postfix_str(note)
        for batch in batches:
            yield batch
            bar.update(len(batch.images))
