"""The deterministic part of a train step: gradient, optimiser, moving averages."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, Num

from jax_ddpm.optim.averages import EmaFn, Params, make_ema
from jax_ddpm.process.losses import Loss, LossFn
from jax_ddpm.process.timesteps import record
from jax_ddpm.process.types import Images, Labels, Losses, Timesteps
from jax_ddpm.training.state import Skipped, TrainState

Metrics = dict[str, Num[Array, "*k"]]
UpdateFn = Callable[..., tuple[TrainState, Metrics]]

DEFAULT_EMA = make_ema()


def make_update(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema: EmaFn = DEFAULT_EMA,
    more_ema: Sequence[EmaFn] = (),
    posthoc_ema: Sequence[EmaFn] = (),
    accumulate: int = 1,
    axis_name: str | None = None,
) -> UpdateFn:
    """Build (state, x_0, t, noise, dropout_keys=None, **options) -> (state, metrics).

    It takes one step of gradient descent on the mean of `loss_fn` (Ho et al. 2020, algorithm 1),
    which returns one loss per example (see `make_loss_fn`). x_0 is in [-1, 1]. The options are
    label [b], self_condition (one boolean for the whole batch) and weight [b], a factor for each
    loss.

    The batch is processed in `accumulate` equal parts, one after the other, to save memory; the
    gradient is averaged over the parts and over the devices of `axis_name`. `ema`, `more_ema` and
    `posthoc_ema` update the moving averages of the state. If the state has a `loss_history`, the
    unweighted losses are added to it.

    The metrics are loss, grad_norm, skipped and skipped_in_a_row, and for a hybrid loss also its
    two terms, mse and vb, as OpenAI's code calls them.

    If the loss, the gradient or the update is not finite, only the state's `step` and `skipped`
    change. Raises ValueError if the batch does not divide into the parts.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> def apply_fn(params, x_t, t, train=False, dropout_keys=None):
        ...     return params["w"] * x_t
        >>> loss_fn = jd.make_loss_fn(apply_fn, jd.named_schedule("linear", 1000))
        >>> optimizer = jd.make_optimizer(2e-4)
        >>> update = jax.jit(jd.make_update(loss_fn, optimizer))
        >>> state = jd.create_state({"w": jax.numpy.ones(())}, optimizer)
        >>> t, noise = jd.draw(jax.random.split(jax.random.key(0), 4), (8, 8, 1), 1000)
        >>> state, metrics = update(state, jax.numpy.zeros((4, 8, 8, 1)), t, noise)
        >>> int(state.step), metrics["loss"].shape
        (1, ())
    """

    def update(
        state: TrainState,
        x_0: Images,
        t: Timesteps,
        noise: Images,
        dropout_keys: Key[Array, " b"] | None = None,
        *,
        label: Labels | None = None,
        self_condition: Bool[Array, ""] | None = None,
        weight: Losses | None = None,
    ) -> tuple[TrainState, Metrics]:
        options = {} if self_condition is None else {"self_condition": self_condition}
        batch: dict[str, Any] = {"x_0": x_0, "t": t, "noise": noise, "dropout_keys": dropout_keys}
        batch |= {} if label is None else {"label": label}
        gradient_fn = average_over_parts(make_gradient(loss_fn, **options), accumulate)
        means, losses = gradient_fn(state.params, (batch, weight))
        loss, grads, terms = average_over_devices(means, axis_name)
        new, updates = apply_gradient(optimizer, state, grads)
        new = new.replace(
            ema_params=ema(state.ema_params, new.params, state.step),
            more_ema=update_averages(more_ema, state.more_ema, new.params, state.step),
            posthoc_ema=update_averages(posthoc_ema, state.posthoc_ema, new.params, state.step),
        )
        if state.loss_history is not None:
            seen = gather_in_order((t, losses), axis_name)
            new = new.replace(loss_history=record(state.loss_history, *seen))
        state, metrics = keep_if_finite(state, new, loss, grads, updates)
        return state, metrics | terms

    return update


def make_gradient(loss_fn: LossFn, **options: Any) -> Callable[[Params, Any], Any]:
    """Build (params, (examples, weight)) -> ((mean loss, gradient, mean terms), losses [b])."""
    compute = split_loss(loss_fn)

    def mean_loss(params: Params, part: Any) -> tuple[Float[Array, ""], Any]:
        examples, weight = part
        losses, terms = compute(params, **examples, train=True, **options)

        def mean(values: Losses) -> Float[Array, ""]:
            return (values if weight is None else weight * values).mean()

        return mean(losses), (losses, {name: mean(term) for name, term in terms.items()})

    def gradient(params: Params, part: Any) -> tuple[Any, Losses]:
        (loss, aux), grads = jax.value_and_grad(mean_loss, has_aux=True)(params, part)
        losses, terms = aux
        return (loss, grads, terms), losses

    return gradient


def split_loss(loss_fn: LossFn) -> Callable[..., tuple[Losses, dict[str, Losses]]]:
    """Make a function with the arguments of `loss_fn` that returns the losses and their terms.

    The terms are the mean squared error and the bound of a hybrid loss; other losses have none.
    """
    if not (isinstance(loss_fn, Loss) and loss_fn.is_sum):
        return lambda *args, **options: (loss_fn(*args, **options), {})

    def compute(*args: Any, **options: Any) -> tuple[Losses, dict[str, Losses]]:
        error, bound = loss_fn.parts(*args, **options)
        return error + bound, {"mse": error, "vb": bound}

    return compute


def apply_gradient(
    optimizer: optax.GradientTransformation, state: TrainState, grads: Params
) -> tuple[TrainState, Params]:
    """Let `optimizer` change the parameters of `state`; return the new state and the change."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(params=params, opt_state=opt_state), updates


def update_averages(
    emas: Sequence[EmaFn], averages: tuple[Params, ...], params: Params, step: Int[Array, ""]
) -> tuple[Params, ...]:
    """Update each of several averages by its own rule."""
    pairs = zip(emas, averages, strict=True)
    return tuple(ema(average, params, step) for ema, average in pairs)


def keep_if_finite(
    old: TrainState, new: TrainState, loss: Float[Array, ""], grads: Params, updates: Params
) -> tuple[TrainState, Metrics]:
    """Return `new` if everything is finite, else `old`, with the metrics of the step.

    The step is counted either way.
    """
    norm = optax.tree.norm(grads)
    good = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
    bad = 1 - good.astype(jnp.int32)
    skipped = Skipped(old.skipped.total + bad, (old.skipped.in_a_row + bad) * bad)
    state = jax.lax.platform_dependent(
        good, new, old, cpu=select_by_branch, default=select_by_element
    )
    metrics = {"loss": loss, "grad_norm": norm, "skipped": bad}
    metrics |= {"skipped_in_a_row": skipped.in_a_row}
    return state.replace(step=old.step + 1, skipped=skipped), metrics


def select_by_element(good: Bool[Array, ""], new: TrainState, old: TrainState) -> TrainState:
    """Select `new` if `good`, else `old`; accelerators do not wait for the host."""
    return jax.tree.map(lambda one, other: jnp.where(good, one, other), new, old)


def select_by_branch(good: Bool[Array, ""], new: TrainState, old: TrainState) -> TrainState:
    """Select as `select_by_element` does, but with lax.cond.

    On CPUs, `where` would fuse with the update and change its rounding.
    """
    return jax.lax.cond(good, lambda one, _: one, lambda _, other: other, new, old)


def average_over_parts(fn: Callable[[Any, Any], Any], num_parts: int) -> Callable[[Any, Any], Any]:
    """Apply `fn(params, batch) -> (means, values per example)` to equal parts of the batch in turn.

    The means are averaged over the parts; the values per example are concatenated. On CPUs, the
    program holds a copy of `fn` for each part, because XLA makes the gradient of a convolution in a
    loop many times slower (of a kernel of 3x3 for 64 channels: 170 ms instead of 2.5 ms).
    """
    if num_parts == 1:
        return fn

    def apply_to_parts(params: Any, batch: Any) -> Any:
        if any(len(leaf) % num_parts for leaf in jax.tree.leaves(batch)):
            size = len(jax.tree.leaves(batch)[0])
            raise ValueError(f"a batch of {size} does not divide into {num_parts} equal parts")
        parts = jax.tree.map(lambda a: a.reshape(num_parts, -1, *a.shape[1:]), batch)

        def add(total: Any, part: Any) -> tuple[Any, Any]:
            means, per_example = fn(params, part)
            return jax.tree.map(jnp.add, total, means), per_example

        like, _ = jax.eval_shape(fn, params, jax.tree.map(lambda a: a[0], parts))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        in_turn = partial(_repeat, add, num_parts)
        total, per_example = jax.lax.platform_dependent(
            zeros, parts, cpu=in_turn, default=partial(jax.lax.scan, add)
        )
        per_example = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), per_example)
        return jax.tree.map(lambda a: a / num_parts, total), per_example

    return apply_to_parts


def _repeat(add: Any, num_parts: int, total: Any, parts: Any) -> tuple[Any, Any]:
    """The same as `lax.scan(add, total, parts)`, without a loop.

    The numbers of each part depend on the total before, or XLA would keep the features of all parts
    at once: adding a product with zero changes none of them, and is not optimised away.
    """
    each = []
    for i in range(num_parts):
        zero = 0 * sum(leaf.reshape(-1)[0] for leaf in jax.tree.leaves(total))
        part = jax.tree.map(lambda a, i=i, zero=zero: _add_to_floats(a[i], zero), parts)
        total, of_part = add(total, part)
        each.append(of_part)
    return total, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def _add_to_floats(a: Array, number: Any) -> Array:
    return a + number.astype(a.dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a


def average_over_devices(tree: Any, axis_name: str | None) -> Any:
    """Average every leaf over the devices of a pmap axis, if there is one."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def gather_in_order(tree: Any, axis_name: str | None) -> Any:
    """Gather per-example arrays from the devices of a pmap axis, in the order of the batch."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda a: jax.lax.all_gather(a, axis_name, tiled=True), tree)
