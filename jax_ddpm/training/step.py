"""The train step as pure functions: what is drawn, and what is done with it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, Num, UInt8

from jax_ddpm.files.images import from_uint8
from jax_ddpm.optim.averages import EmaFn, Params, make_ema
from jax_ddpm.process.losses import LossFn, draw_training_noise, make_loss_fn, timestep_keys
from jax_ddpm.process.schedules import Schedule
from jax_ddpm.process.timesteps import Place, TimestepFn, record, uniform_timesteps
from jax_ddpm.process.types import ApplyFn, Images
from jax_ddpm.training.state import Skipped, TrainState

Metrics = dict[str, Num[Array, "*k"]]
UpdateFn = Callable[..., tuple[TrainState, Metrics]]
Pixels = UInt8[Array | np.ndarray, "b h w c"]
Labels = Int[Array | np.ndarray, " b"]


class Indexed(NamedTuple):
    """A batch as numbers of images of a data set that lies on the devices as a whole."""

    indices: Int[Array | np.ndarray, " b"]
    pixels: UInt8[Array | np.ndarray, "n h w c"]
    labels: Int[Array | np.ndarray, " n"]


Batch = Pixels | tuple[Pixels, Labels | None] | Indexed
TrainStep = Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Metrics]]

DEFAULT_EMA = make_ema()
COIN, SHARED = 2**32 - 1, 2**32 - 2  # the numbers of no example


def make_update(
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    ema: EmaFn = DEFAULT_EMA,
    more_ema: Sequence[EmaFn] = (),
    posthoc_ema: Sequence[EmaFn] = (),
    accumulate: int = 1,
    axis_name: str | None = None,
    **loss_settings: Any,
) -> UpdateFn:
    """`make_update_from` the loss of `make_loss_fn(apply_fn, schedule, **loss_settings)`."""
    return make_update_from(
        make_loss_fn(apply_fn, schedule, **loss_settings), optimizer,
        ema=ema, more_ema=more_ema, posthoc_ema=posthoc_ema, accumulate=accumulate,
        axis_name=axis_name,
    )  # fmt: skip


def make_update_from(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema: EmaFn = DEFAULT_EMA,
    more_ema: Sequence[EmaFn] = (),
    posthoc_ema: Sequence[EmaFn] = (),
    accumulate: int = 1,
    axis_name: str | None = None,
) -> UpdateFn:
    """The deterministic part of a step.

    (state, x_0, t, noise, dropout_keys=None, *, label=None, self_condition=None, weight=None) ->
    (state, metrics), with x_0 in [-1, 1]. The gradient of the mean loss (Ho et al. 2020, algorithm
    1), each loss times its `weight`, is taken in `accumulate` equal parts of the batch, one after
    the other to save memory, averaged over them and over the devices of `axis_name`, then clipped
    and applied by `optimizer`. The moving averages follow: `ema`, and those of the state's tuples
    of the same names; the state's `loss_history`, if it has one, takes in the losses themselves.

    Where the loss, the gradient or the change of the parameters is not finite, nothing changes but
    the state's `step` and `skipped`.

    Raises ValueError if the batch does not divide into the parts.
    """

    def update(
        state: TrainState, x_0: Images, t: Int[Array, " b"], noise: Images,
        dropout_keys: Key[Array, " b"] | None = None, *, label: Labels | None = None,
        self_condition: Bool[Array, ""] | None = None, weight: Float[Array, " b"] | None = None,
    ) -> tuple[TrainState, Metrics]:  # fmt: skip
        args = {} if self_condition is None else {"self_condition": self_condition}
        batch: dict[str, Any] = {"x_0": x_0, "t": t, "noise": noise, "dropout_keys": dropout_keys}
        batch |= {} if label is None else {"label": label}
        gradient = make_gradient(loss_fn, **args)
        means, losses = mean_over_parts(gradient, accumulate)(state.params, (batch, weight))
        loss, grads = mean_over_devices(means, axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = state.replace(
            params=params,
            ema_params=ema(state.ema_params, params, state.step),
            opt_state=opt_state,
            more_ema=update_each(more_ema, state.more_ema, params, state.step),
            posthoc_ema=update_each(posthoc_ema, state.posthoc_ema, params, state.step),
        )
        if state.loss_history is not None:
            seen = all_in_order((t, losses), axis_name)
            new = new.replace(loss_history=record(state.loss_history, *seen))
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
        state = taken(state, new, good)
        about = {"skipped": 1 - good.astype(jnp.int32), "skipped_in_a_row": state.skipped.in_a_row}
        return state, {"loss": loss, "grad_norm": norm, **about}

    return update


def make_gradient(loss_fn: LossFn, **args: Any) -> Callable[[Params, Any], Any]:
    """(params, (examples, weight)) -> (mean loss, its gradient), and the loss of each example."""

    def mean_loss(params: Params, part: Any) -> tuple[Float[Array, ""], Float[Array, " b"]]:
        examples, weight = part
        losses = loss_fn(params, **examples, train=True, **args)
        return (losses if weight is None else weight * losses).mean(), losses

    def gradient(params: Params, part: Any) -> tuple[Any, Float[Array, " b"]]:
        (loss, losses), grads = jax.value_and_grad(mean_loss, has_aux=True)(params, part)
        return (loss, grads), losses

    return gradient


def taken(old: TrainState, new: TrainState, good: Bool[Array, ""]) -> TrainState:
    """The state after a step: `new` if it is `good`, else `old` with the step counted."""
    count, bad = old.skipped, 1 - good.astype(jnp.int32)
    skipped = Skipped(count.total + bad, (count.in_a_row + bad) * bad)
    state = jax.lax.platform_dependent(good, new, old, cpu=by_branch, default=by_element)
    return state.replace(step=old.step + 1, skipped=skipped)


def by_element(good: Bool[Array, ""], new: TrainState, old: TrainState) -> TrainState:
    """`new` if it is good, else `old`, without a wait of the host for an accelerator's answer."""
    return jax.tree.map(lambda one, other: jnp.where(good, one, other), new, old)


def by_branch(good: Bool[Array, ""], new: TrainState, old: TrainState) -> TrainState:
    """The same; on a CPU the compiler rounds what comes before it as if this was not there."""
    return jax.lax.cond(good, lambda one, _: one, lambda _, other: other, new, old)


def update_each(
    emas: Sequence[EmaFn], averages: tuple[Params, ...], params: Params, step: Int[Array, ""]
) -> tuple[Params, ...]:
    """Each of several averages after `step`, by its own rule."""
    pairs = zip(emas, averages, strict=True)
    return tuple(ema(average, params, step) for ema, average in pairs)


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
    """The whole step, (state, batch, key) -> (state, metrics): flip, draw, update.

    A batch is uint8 images, a pair of them and labels, or `Indexed`; labels go to the network if
    `class_conditional`, each replaced by `null_label` with probability `label_dropout` (Ho &
    Salimans 2022, algorithm 1). `timestep_fn` (see `make_timestep_fn`) draws t, by default uniform.
    All randomness of an example comes from fold_in(fold_in(key, step), its index in the global
    batch), so the numbers do not depend on how the batch is spread over devices or parts. With
    `self_condition` one coin per step decides for the whole global batch whether the network is
    given its own first guess: every other step pays for one.

    Raises ValueError if labels are wanted and the batch has none.
    """

    def uniform(keys: Key[Array, " b"], *_: Any) -> tuple[Int[Array, " b"], None]:
        return uniform_timesteps(keys, num_timesteps), None

    draw_t = timestep_fn or uniform

    def train_step(
        state: TrainState, batch: Batch, key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        pixels, labels = images_of(batch)
        if class_conditional and labels is None:
            raise ValueError("a class-conditional network needs batches with labels")
        step_key = jax.random.fold_in(key, state.step)
        keys = example_keys(step_key, len(pixels), axis_name)
        flip_keys, draw_keys, dropout_keys = jnp.unstack(
            jax.vmap(lambda k: jax.random.split(k, 3))(keys), axis=1
        )
        x_0 = from_uint8(jnp.asarray(pixels))
        if random_flip:
            x_0 = flip_at_random(flip_keys, x_0)
        place = place_in_batch(step_key, len(pixels), axis_name)
        t, weight = draw_t(timestep_keys(draw_keys), place, state.loss_history)
        noise = draw_training_noise(draw_keys, x_0.shape[1:], offset_noise=offset_noise)
        args: dict[str, Any] = {} if weight is None else {"weight": weight}
        if class_conditional:
            args["label"] = drop_labels(keys, jnp.asarray(labels), label_dropout, null_label)
        if self_condition:
            args["self_condition"] = jax.random.bernoulli(jax.random.fold_in(step_key, COIN))
        return update(state, x_0, t, noise, dropout_keys, **args)

    return train_step


def scan_steps(train_step: TrainStep) -> TrainStep:
    """Several steps as one program: (state, batch, key) -> (state, metrics[k]).

    Every array of the batch has the steps as its first axis, [k, b, ...], but for the data that an
    `Indexed` batch takes its images from.
    """

    def steps(state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        def step(state: TrainState, part: Any) -> tuple[TrainState, Metrics]:
            part = batch._replace(indices=part) if isinstance(batch, Indexed) else part
            return train_step(state, part, key)

        return jax.lax.scan(step, state, batch.indices if isinstance(batch, Indexed) else batch)

    return steps


def images_of(batch: Batch) -> tuple[Pixels, Labels | None]:
    """The images and labels of a batch, labels None if it has none."""
    if isinstance(batch, Indexed):
        pixels, labels = (jnp.take(a, batch.indices, axis=0, mode="clip") for a in batch[1:])
        return pixels, labels
    return batch if isinstance(batch, tuple) else (batch, None)


def example_keys(key: Key[Array, ""], num_local: int, axis_name: str | None) -> Key[Array, " b"]:
    """One key for each example on this device, from its index in the global batch."""
    indices = place_in_batch(key, num_local, axis_name).indices
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


def place_in_batch(key: Key[Array, ""], num_local: int, axis_name: str | None) -> Place:
    """Where the examples on this device are in the global batch; `key` is that of the step."""
    indices, batch_size = jnp.arange(num_local), num_local
    if axis_name is not None:
        indices += jax.lax.axis_index(axis_name) * num_local
        batch_size *= jax.lax.axis_size(axis_name)
    return Place(indices, batch_size, jax.random.fold_in(key, SHARED))


def drop_labels(
    keys: Key[Array, " b"], label: Labels, probability: float, null_label: int | None
) -> Labels:
    """Each label, or `null_label` with `probability`, by the example's own key."""
    if null_label is None or probability == 0:
        return label
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 3)  # 0 to 2 are in use
    dropped = jax.vmap(jax.random.bernoulli, (0, None))(keys, probability)
    return jnp.where(dropped, null_label, label)


def mean_over_parts(fn: Callable[[Any, Any], Any], num_parts: int) -> Callable[[Any, Any], Any]:
    """`fn(params, batch)` of equal parts of the batch, taken one after the other.

    It returns what is averaged over the parts, and what is of each example and is joined.
    """
    if num_parts == 1:
        return fn

    def mean(params: Any, batch: Any) -> Any:
        if any(len(leaf) % num_parts for leaf in jax.tree.leaves(batch)):
            size = len(jax.tree.leaves(batch)[0])
            raise ValueError(f"a batch of {size} does not divide into {num_parts} equal parts")
        parts = jax.tree.map(lambda a: a.reshape(num_parts, -1, *a.shape[1:]), batch)

        def add(total: Any, part: Any) -> tuple[Any, Any]:
            means, of_each = fn(params, part)
            return jax.tree.map(jnp.add, total, means), of_each

        like, _ = jax.eval_shape(fn, params, jax.tree.map(lambda a: a[0], parts))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        total, of_each = jax.lax.scan(add, zeros, parts)
        joined = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), of_each)
        return jax.tree.map(lambda a: a / num_parts, total), joined

    return mean


def mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    """The mean of every leaf over the devices of a pmap axis; without one, `tree` itself."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def all_in_order(tree: Any, axis_name: str | None) -> Any:
    """Arrays of the examples on every device of a pmap axis, in the order of the global batch."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda a: jax.lax.all_gather(a, axis_name, tiled=True), tree)


def flip_at_random(keys: Key[Array, " b"], images: Images) -> Images:
    """Mirror each image left to right with probability 1/2, by its own key."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
