"""The train step: draw timesteps, noise and other random choices, then update the state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt8

from jax_ddpm.files.images import from_uint8
from jax_ddpm.process.drawing import draw_training_noise, timestep_keys
from jax_ddpm.process.timesteps import BatchPart, TimestepFn, uniform_timesteps
from jax_ddpm.process.types import Images, Labels, Timesteps
from jax_ddpm.training.state import TrainState
from jax_ddpm.training.update import Metrics, UpdateFn

# A batch, or the batches of several steps along a first axis (see `scan_steps`).
BatchImages = UInt8[Array | np.ndarray, "*steps b h w c"]
BatchLabels = Int[Array | np.ndarray, "*steps b"]

# What an example's key is folded with for each use.
FLIP, NOISE, DROPOUT, LABEL = range(4)
# What a step's key is folded with for uses other than the examples, which take 0, 1, ...
SELF_CONDITION, SHARED = 2**32 - 1, 2**32 - 2


class Indexed(NamedTuple):
    """A batch given as indices into a data set that is on the devices."""

    indices: Int[Array | np.ndarray, "*steps b"]
    pixels: UInt8[Array | np.ndarray, "n h w c"]
    labels: Int[Array | np.ndarray, " n"]


StepInput = BatchImages | tuple[BatchImages, BatchLabels | None] | Indexed
TrainStep = Callable[[TrainState, StepInput, Key[Array, ""]], tuple[TrainState, Metrics]]


def make_train_step(
    update: UpdateFn,
    num_timesteps: int,
    *,
    random_flip: bool = False,
    offset_noise: float = 0.0,
    self_condition: bool = False,
    class_conditional: bool = False,
    timestep_fn: TimestepFn | None = None,
    label_dropout: float = 0.0,
    null_label: int | None = None,
    axis_name: str | None = None,
) -> TrainStep:
    """Build the whole step, (state, batch, key) -> (state, metrics): flip, draw, `update`.

    A batch is uint8 images, a pair of images and labels, or `Indexed`. If `class_conditional`, the
    network is given the labels; each is replaced by `null_label` with probability `label_dropout`
    (Ho & Salimans 2022, algorithm 1). `timestep_fn` draws t (see `make_timestep_fn`; default:
    uniform). With `self_condition`, one coin flip per step decides for the whole global batch
    whether the network is given its own first guess, so half of the steps skip making the guess.

    All random numbers for an example come from fold_in(fold_in(key, step), its index in the global
    batch), so they do not depend on how the batch is split over devices or parts.

    Raises ValueError if `class_conditional` and the batch has no labels.

    Examples:
        >>> import jax, jax_ddpm as jd, numpy as np
        >>> def apply_fn(params, x_t, t, train=False, dropout_keys=None):
        ...     return params["w"] * x_t
        >>> loss_fn = jd.make_loss_fn(apply_fn, jd.named_schedule("linear", 1000))
        >>> optimizer = jd.make_optimizer(2e-4)
        >>> train_step = jax.jit(jd.make_train_step(jd.make_update(loss_fn, optimizer), 1000))
        >>> state = jd.create_state({"w": jax.numpy.ones(())}, optimizer)
        >>> state, metrics = train_step(state, np.zeros((4, 8, 8, 1), np.uint8), jax.random.key(0))
        >>> int(state.step)
        1
    """

    def draw_uniform(keys: Key[Array, " b"], *_: Any) -> tuple[Timesteps, None]:
        return uniform_timesteps(keys, num_timesteps), None

    draw_t = timestep_fn or draw_uniform

    def train_step(
        state: TrainState, batch: StepInput, key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        pixels, labels = unpack_batch(batch)
        if class_conditional and labels is None:
            raise ValueError("a class-conditional network needs batches with labels")
        step_key = jax.random.fold_in(key, state.step)
        keys = example_keys(step_key, len(pixels), axis_name)
        noise_keys = fold_each(keys, NOISE)
        x_0 = scale_and_flip(keys, pixels, random_flip=random_flip)
        place = locate_in_batch(step_key, len(pixels), axis_name)
        t, weight = draw_t(timestep_keys(noise_keys), place, state.loss_history)
        noise = draw_training_noise(noise_keys, x_0.shape[1:], offset_noise=offset_noise)
        options: dict[str, Any] = {} if weight is None else {"weight": weight}
        if class_conditional:
            options["label"] = drop_labels(keys, jnp.asarray(labels), label_dropout, null_label)
        if self_condition:
            coin_key = jax.random.fold_in(step_key, SELF_CONDITION)
            options["self_condition"] = jax.random.bernoulli(coin_key)
        return update(state, x_0, t, noise, fold_each(keys, DROPOUT), **options)

    return train_step


def scan_steps(train_step: TrainStep) -> TrainStep:
    """Build several steps as one program: (state, batch, key) -> (state, metrics [k]).

    The arrays of the batch are [k, b, ...], except for the data set of an `Indexed` batch.
    """

    def steps(state: TrainState, batch: Any, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        def step(state: TrainState, part: Any) -> tuple[TrainState, Metrics]:
            part = batch._replace(indices=part) if isinstance(batch, Indexed) else part
            return train_step(state, part, key)

        return jax.lax.scan(step, state, batch.indices if isinstance(batch, Indexed) else batch)

    return steps


def call_in_turn(train_step: TrainStep) -> TrainStep:
    """Build the same as `scan_steps`, but each step is a call of `train_step`."""

    def steps(state: TrainState, batch: Any, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        is_indexed = isinstance(batch, Indexed)
        parts = batch.indices if is_indexed else batch
        rows = list[Metrics]()
        for i in range(len(jax.tree.leaves(parts)[0])):
            part = jax.tree.map(lambda a, i=i: a[i], parts)
            part = batch._replace(indices=part) if is_indexed else part
            state, metrics = train_step(state, part, key)
            rows.append(metrics)
        return state, jax.tree.map(lambda *each: jnp.asarray(np.stack(each)), *rows)

    return steps


def unpack_batch(batch: StepInput) -> tuple[BatchImages, BatchLabels | None]:
    """Return the images and labels of a batch; the labels are None if it has none."""
    if isinstance(batch, Indexed):
        pixels, labels = (jnp.take(a, batch.indices, axis=0, mode="clip") for a in batch[1:])
        return pixels, labels
    return batch if isinstance(batch, tuple) else (batch, None)


def example_keys(key: Key[Array, ""], num_local: int, axis_name: str | None) -> Key[Array, " b"]:
    """Make one key for each example on this device from its index in the global batch."""
    indices = locate_in_batch(key, num_local, axis_name).indices
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


def fold_each(keys: Key[Array, " b"], use: int) -> Key[Array, " b"]:
    """Make the keys for one use, such as NOISE, from the keys of the examples."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, use)


def locate_in_batch(key: Key[Array, ""], num_local: int, axis_name: str | None) -> BatchPart:
    """Return where the examples on this device are in the global batch; `key` is the step's key."""
    indices, batch_size = jnp.arange(num_local), num_local
    if axis_name is not None:
        indices += jax.lax.axis_index(axis_name) * num_local
        batch_size *= jax.lax.axis_size(axis_name)
    return BatchPart(indices, batch_size, jax.random.fold_in(key, SHARED))


def drop_labels(
    keys: Key[Array, " b"], label: Labels, probability: float, null_label: int | None
) -> Labels:
    """Replace each label by `null_label` with `probability`, using the example's own key."""
    if null_label is None or probability == 0:
        return label
    dropped = jax.vmap(jax.random.bernoulli, (0, None))(fold_each(keys, LABEL), probability)
    return jnp.where(dropped, null_label, label)


def scale_and_flip(keys: Key[Array, " b"], pixels: BatchImages, *, random_flip: bool) -> Images:
    """Scale pixels to [-1, 1], and mirror some images, each by its own key."""
    x_0 = from_uint8(jnp.asarray(pixels))
    return flip_at_random(fold_each(keys, FLIP), x_0) if random_flip else x_0


def prepare_images(step_key: Key[Array, ""], pixels: BatchImages, *, random_flip: bool) -> Images:
    """Make x_0 from a batch of images as the train step does whose key is `step_key`."""
    keys = example_keys(step_key, len(pixels), None)
    return scale_and_flip(keys, pixels, random_flip=random_flip)


def flip_at_random(keys: Key[Array, " b"], images: Images) -> Images:
    """Mirror each image left to right with probability 1/2, using its own key."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
