"""The train step as pure functions: what is drawn, and what is done with it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, UInt8

from jax_ddpm.diffusion import ApplyFn, Images, PredictionType
from jax_ddpm.images import from_uint8
from jax_ddpm.losses import LossType, diffusion_loss, draw
from jax_ddpm.schedules import Schedule
from jax_ddpm.training.state import TrainState, ema_decay_at, ema_update

Metrics = dict[str, Float[Array, ""]]
UpdateFn = Callable[..., tuple[TrainState, Metrics]]
Pixels = UInt8[Array | np.ndarray, "b h w c"]
TrainStep = Callable[[TrainState, Pixels, Key[Array, ""]], tuple[TrainState, Metrics]]


def make_update(
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    prediction_type: PredictionType = "eps",
    loss_type: LossType = "l2",
    ema_decay: float = 0.9999,
    ema_warmup: bool = False,
    axis_name: str | None = None,
) -> UpdateFn:
    """The deterministic part: (state, x_0, t, noise, dropout_keys) -> (state, metrics).

    x_0 in [-1, 1]. The gradient of the mean loss (Ho et al. 2020, algorithm 1) is averaged over the
    devices of `axis_name`, clipped and applied by `optimizer`; then the moving average follows.
    """

    def update(
        state: TrainState,
        x_0: Images,
        t: Int[Array, " b"],
        noise: Images,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> tuple[TrainState, Metrics]:
        def mean_loss(params: Any) -> Float[Array, ""]:
            return diffusion_loss(
                apply_fn, params, schedule, x_0, t, noise,
                prediction_type=prediction_type, loss_type=loss_type,
                train=True, dropout_keys=dropout_keys,
            ).mean()  # fmt: skip

        loss, grads = mean_over_devices(jax.value_and_grad(mean_loss)(state.params), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay_at(state.step, ema_decay, ema_warmup)
        ema_params = ema_update(state.ema_params, params, decay)
        state = TrainState(state.step + 1, params, ema_params, opt_state)
        return state, {"loss": loss, "grad_norm": optax.tree.norm(grads)}

    return update


def make_train_step(
    update: UpdateFn, num_timesteps: int, *, random_flip: bool = False, axis_name: str | None = None
) -> TrainStep:
    """The whole step, (state, uint8 images, key) -> (state, metrics): flip, draw, update.

    All randomness of an example comes from fold_in(fold_in(key, step), its index in the global
    batch), so the numbers do not depend on how the batch is spread over devices.
    """

    def train_step(
        state: TrainState, pixels: Pixels, key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        keys = example_keys(jax.random.fold_in(key, state.step), len(pixels), axis_name)
        flip_keys, draw_keys, dropout_keys = jnp.unstack(
            jax.vmap(lambda k: jax.random.split(k, 3))(keys), axis=1
        )
        x_0 = from_uint8(jnp.asarray(pixels))
        if random_flip:
            x_0 = flip_at_random(flip_keys, x_0)
        t, noise = draw(draw_keys, x_0.shape[1:], num_timesteps)
        return update(state, x_0, t, noise, dropout_keys)

    return train_step


def example_keys(key: Key[Array, ""], num_local: int, axis_name: str | None) -> Key[Array, " b"]:
    """One key for each example on this device, from its index in the global batch."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * num_local
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(num_local))


def mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    """The mean of every leaf over the devices of a pmap axis; without one, `tree` itself."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def flip_at_random(keys: Key[Array, " b"], images: Images) -> Images:
    """Mirror each image left to right with probability 1/2, by its own key."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
