"""The train step as pure functions: what is drawn, and what is done with it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from jax_ddpm.diffusion import ApplyFn, Images
from jax_ddpm.images import from_uint8
from jax_ddpm.losses import LossFn, draw, make_loss_fn
from jax_ddpm.schedules import Schedule
from jax_ddpm.training.state import EmaFn, TrainState, make_ema

Metrics = dict[str, Float[Array, ""]]
UpdateFn = Callable[..., tuple[TrainState, Metrics]]
Pixels = UInt8[Array | np.ndarray, "b h w c"]
Labels = Int[Array | np.ndarray, " b"]
Batch = Pixels | tuple[Pixels, Labels | None]
TrainStep = Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Metrics]]

DEFAULT_EMA = make_ema()
COIN = 2**32 - 1  # the number of no example


def make_update(
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    ema: EmaFn = DEFAULT_EMA,
    accumulate: int = 1,
    axis_name: str | None = None,
    **loss_settings: Any,
) -> UpdateFn:
    """`make_update_from` the loss of `make_loss_fn(apply_fn, schedule, **loss_settings)`."""
    return make_update_from(
        make_loss_fn(apply_fn, schedule, **loss_settings), optimizer,
        ema=ema, accumulate=accumulate, axis_name=axis_name,
    )  # fmt: skip


def make_update_from(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema: EmaFn = DEFAULT_EMA,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> UpdateFn:
    """The deterministic part of a step.

    (state, x_0, t, noise, dropout_keys=None, *, label=None, self_condition=None) -> (state,
    metrics), with x_0 in [-1, 1]. The gradient of the mean loss (Ho et al. 2020, algorithm 1) is
    taken in `accumulate` equal parts of the batch, one after the other to save memory, averaged
    over them and over the devices of `axis_name`, then clipped and applied by `optimizer`; the
    moving average `ema` follows. Raises ValueError if the batch does not divide into the parts.
    """

    def update(
        state: TrainState, x_0: Images, t: Int[Array, " b"], noise: Images,
        dropout_keys: Key[Array, " b"] | None = None, *, label: Labels | None = None,
        self_condition: Bool[Array, ""] | None = None,
    ) -> tuple[TrainState, Metrics]:  # fmt: skip
        args = {} if self_condition is None else {"self_condition": self_condition}
        batch: dict[str, Any] = {"x_0": x_0, "t": t, "noise": noise, "dropout_keys": dropout_keys}
        batch |= {} if label is None else {"label": label}

        def mean_loss(params: Any, part: dict[str, Any]) -> Float[Array, ""]:
            return loss_fn(params, **part, train=True, **args).mean()

        gradient = mean_over_parts(jax.value_and_grad(mean_loss), accumulate)
        loss, grads = mean_over_devices(gradient(state.params, batch), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = ema(state.ema_params, params, state.step)
        state = TrainState(state.step + 1, params, ema_params, opt_state)
        return state, {"loss": loss, "grad_norm": optax.tree.norm(grads)}

    return update


def make_train_step(
    update: UpdateFn,
    num_timesteps: int,
    *,
    random_flip: bool = False,
    offset_noise: float = 0.0,
    self_condition: bool = False,
    class_conditional: bool = False,
    axis_name: str | None = None,
) -> TrainStep:
    """The whole step, (state, batch, key) -> (state, metrics): flip, draw, update.

    A batch is uint8 images, or a pair of them and labels; these go to the network if
    `class_conditional`. All randomness of an example comes from fold_in(fold_in(key, step), its
    index in the global batch), so the numbers do not depend on how the batch is spread over
    devices or parts. With `self_condition` one coin per step decides for the whole global batch
    whether the network is given its own first guess: every other step pays for one.

    Raises ValueError if labels are wanted and the batch has none.
    """

    def train_step(
        state: TrainState, batch: Batch, key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        pixels, labels = batch if isinstance(batch, tuple) else (batch, None)
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
        t, noise = draw(draw_keys, x_0.shape[1:], num_timesteps, offset_noise=offset_noise)
        args: dict[str, Any] = {"label": jnp.asarray(labels)} if class_conditional else {}
        if self_condition:
            args["self_condition"] = jax.random.bernoulli(jax.random.fold_in(step_key, COIN))
        return update(state, x_0, t, noise, dropout_keys, **args)

    return train_step


def example_keys(key: Key[Array, ""], num_local: int, axis_name: str | None) -> Key[Array, " b"]:
    """One key for each example on this device, from its index in the global batch."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * num_local
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(num_local))


def mean_over_parts(fn: Callable[[Any, Any], Any], num_parts: int) -> Callable[[Any, Any], Any]:
    """`fn(params, batch)` as the mean over equal parts of the batch, taken one after the other."""
    if num_parts == 1:
        return fn

    def mean(params: Any, batch: Any) -> Any:
        if any(len(leaf) % num_parts for leaf in jax.tree.leaves(batch)):
            size = len(jax.tree.leaves(batch)[0])
            raise ValueError(f"a batch of {size} does not divide into {num_parts} equal parts")
        parts = jax.tree.map(lambda a: a.reshape(num_parts, -1, *a.shape[1:]), batch)

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, fn(params, part)), None

        like = jax.eval_shape(fn, params, jax.tree.map(lambda a: a[0], parts))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda a: a / num_parts, total)

    return mean


def mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    """The mean of every leaf over the devices of a pmap axis; without one, `tree` itself."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def flip_at_random(keys: Key[Array, " b"], images: Images) -> Images:
    """Mirror each image left to right with probability 1/2, by its own key."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
