"""Which timesteps are trained, how their losses weigh, and labels that are left out."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_ddpm.devices.layout import to_one_device
from jax_ddpm.devices.parallel import parallelize
from jax_ddpm.process.losses import make_loss_fn
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.process.timesteps import empty_history, importance, make_timestep_fn
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import drop_labels, example_keys, make_train_step
from jax_ddpm.training.update import gather_in_order, make_update

T = 5
KEY = jax.random.key(7)
SCHEDULE = named_schedule("linear_rescaled", 50, dtype=jnp.float64)
SHORT = named_schedule("cosine", T, dtype=jnp.float64)
OPTIMIZER = optax.sgd(0.5)
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 2, 2, 1), dtype=np.uint8)
LABELS = np.arange(16) % 5


class Batch(NamedTuple):
    pixels: np.ndarray
    labels: np.ndarray | None


def network(params, x_t, t, *, label=None, train=False, dropout_keys=None):
    """An image and a label, each with a weight."""
    out = params["image"] * x_t
    return out if label is None else out + params["label"] * label[:, None, None, None]


def first_state():
    params = {"image": jnp.float64(0.3), "label": jnp.float64(0.1)}
    return create_state(params, OPTIMIZER)


@cache
def drawn(sampling, mode):
    """t and the weights of sixteen examples, seen by every device."""

    def make_step(axis_name):
        def update(state, x_0, t, noise, dropout_keys, *, weight=None):
            return state, gather_in_order((t, weight), axis_name)

        timestep_fn = make_timestep_fn(sampling, SCHEDULE)
        return make_train_step(update, 50, timestep_fn=timestep_fn, axis_name=axis_name)

    losses = jnp.ones((50, 2)) * (1 + jnp.arange(50.0)[:, None])
    history = empty_history(50, 2, jnp.float64).replace(losses=losses, counts=jnp.full(50, 2))
    state = first_state().replace(loss_history=history if sampling == "importance" else None)
    _, values = parallelize(make_step, mode)(state, PIXELS, KEY)
    return to_one_device(values)


@pytest.mark.parametrize(
    "sampling",
    [
        "antithetic",
        pytest.param("stratified", marks=pytest.mark.slow),
        pytest.param("log_normal", marks=pytest.mark.slow),
        pytest.param("importance", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("unchecked_types")  # spies return what they saw
def test_eight_devices_draw_the_timesteps_of_one(sampling):
    one, eight = drawn(sampling, "jit"), drawn(sampling, "pmap")
    assert len(one[0]) == 16
    for a, b in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one[1] is None) == (sampling != "importance")
    assert len(np.unique(one[0])) > 5


def test_the_gradient_is_that_of_the_weighted_mean_and_the_history_has_the_losses_themselves():
    x_0, noise = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 2, 2, 1)))
    t, weight = jnp.arange(8) % T, jnp.linspace(0.5, 2, 8)
    loss_fn = make_loss_fn(network, SHORT)

    def by_hand(params):
        losses = loss_fn(params, x_0, t, noise)
        return (weight * losses).mean(), losses

    (_, losses), gradient = jax.jit(jax.value_and_grad(by_hand, has_aux=True))(first_state().params)
    for accumulate in (1, 4):
        update = jax.jit(make_update(loss_fn, OPTIMIZER, accumulate=accumulate))
        state = first_state().replace(loss_history=empty_history(T, 3, jnp.float64))
        state, metrics = update(state, x_0, t, noise, weight=weight)
        # Measured: at most 3e-16.
        np.testing.assert_allclose(metrics["loss"], (weight * losses).mean(), rtol=1e-12)
        moved = (0.3 - state.params["image"]) / 0.5
        np.testing.assert_allclose(moved, gradient["image"], rtol=1e-12)
        np.testing.assert_array_equal(state.loss_history.counts, np.bincount(t))
        np.testing.assert_allclose(state.loss_history.losses[2, :2], losses[2::5], rtol=1e-12)


@cache
def by_importance(mode, accumulate=1):
    """Parameters, history and losses of nine steps; from the seventh on losses decide."""

    def make_step(axis_name):
        loss_fn = make_loss_fn(network, SHORT)
        update = make_update(loss_fn, OPTIMIZER, accumulate=accumulate, axis_name=axis_name)
        timestep_fn = make_timestep_fn("importance", SHORT)
        return make_train_step(update, T, timestep_fn=timestep_fn, axis_name=axis_name)

    step, rows = parallelize(make_step, mode), []
    state = first_state().replace(loss_history=empty_history(T, 10, jnp.float64))
    for _ in range(9):
        state, metrics = step(state, PIXELS, KEY)
        rows.append(jax.device_get(metrics))
    return to_one_device((state.params, state.loss_history)), rows


@pytest.mark.parametrize(
    ("mode", "accumulate"),
    [("pmap", 2), *(pytest.param(*p, marks=pytest.mark.slow) for p in (("pmap", 1), ("jit", 4)))],
)
def test_parts_and_devices_change_neither_losses_nor_their_history(mode, accumulate):
    plain, found = by_importance("jit"), by_importance(mode, accumulate)
    history = plain[0][1]
    assert history.counts.tolist() == [10] * T
    assert np.ptp(importance(history)) > 0.01  # not uniform any more
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        # measured: 2e-8; compiled without LLVM's optimisations 1.3e-6
        np.testing.assert_allclose(one, other, rtol=5e-6)


def test_labels_are_left_out_with_the_given_probability_by_the_examples_own_key():
    keys = example_keys(KEY, 20_000, None)
    label = jnp.arange(20_000) % 5
    dropped = np.asarray(jax.jit(drop_labels, static_argnums=(2, 3))(keys, label, 0.1, 5))
    assert set(dropped[dropped != label].tolist()) == {5}
    # Five standard errors of 20,000 coin flips. Measured: 1.1 of them.
    assert abs((dropped == 5).mean() - 0.1) < 5 * (0.1 * 0.9 / 20_000) ** 0.5
    np.testing.assert_array_equal(drop_labels(keys[50:60], label[50:60], 0.1, 5), dropped[50:60])
    assert drop_labels(keys, label, 0.0, 5) is label
    assert drop_labels(keys, label, 0.1, None) is label


@pytest.mark.usefixtures("unchecked_types")  # spies return what they saw
def test_the_network_is_told_the_labels_that_are_left():
    def update(state, x_0, t, noise, dropout_keys, *, label):
        return state, (t, noise, label)

    @jax.jit
    def told():
        options = {}, {"label_dropout": 0.4, "null_label": 5}
        steps = [make_train_step(update, T, class_conditional=True, **o) for o in options]
        return [step(first_state(), Batch(PIXELS, LABELS), KEY)[1] for step in steps]

    plain, found = told()
    np.testing.assert_array_equal(plain[2], LABELS)
    assert 0 < (found[2] == 5).sum() < 16
    np.testing.assert_array_equal(found[2][found[2] != 5], LABELS[found[2] != 5])
    for one, other in zip(found[:2], plain[:2], strict=True):
        np.testing.assert_array_equal(one, other)  # what else is drawn stays
