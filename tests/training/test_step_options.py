"""Accumulated gradients, labels, self-conditioning and offset noise, alone and on eight devices."""

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
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import make_train_step
from jax_ddpm.training.update import make_update

T = 50
KEY = jax.random.key(7)
SCHEDULE = named_schedule("linear", T, dtype=jnp.float64)
OPTIMIZER = optax.sgd(0.5)
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 2), dtype=np.uint8)
LABELS = np.arange(16) % 5


class Batch(NamedTuple):
    pixels: np.ndarray
    labels: np.ndarray | None


def network(params, x_t, t, *, label=None, x_self_cond=None, train=False, dropout_keys=None):
    """One parameter for each thing that a network may be told; masks from the dropout keys."""
    out = params["image"] * x_t
    if label is not None:
        out += params["label"] * label[:, None, None, None]
    if x_self_cond is not None:
        out += params["guess"] * x_self_cond
    if dropout_keys is not None:
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.8, x_t.shape[1:]))(dropout_keys)
        out *= kept
    return out


def first_state():
    params = {"image": jnp.float64(0.3), "label": jnp.float64(0.1), "guess": jnp.float64(0.2)}
    return create_state(params, OPTIMIZER)


@cache
def train(mode="jit", accumulate=1, **options):
    """The parameters and metrics after three steps."""

    def make_step(axis_name):
        loss_fn = make_loss_fn(network, SCHEDULE)
        update = make_update(loss_fn, OPTIMIZER, accumulate=accumulate, axis_name=axis_name)
        return make_train_step(update, T, axis_name=axis_name, **options)

    step, state, rows = parallelize(make_step, mode), first_state(), []
    for _ in range(3):
        state, metrics = step(state, Batch(PIXELS, LABELS), KEY)
        rows.append(jax.device_get(metrics))
    return jax.tree.map(float, to_one_device(state.params)), rows


ALL = {
    "random_flip": True, "offset_noise": 0.3, "self_condition": True, "class_conditional": True,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "accumulate"), [("jit", 4), ("pmap", 1), ("pmap", 2)])
def test_parts_and_devices_change_nothing(mode, accumulate):
    plain, found = train(**ALL), train(mode, accumulate=accumulate, **ALL)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        # Measured: 5e-16; 3e-8 at LLVM's level 1, where the images, float32, may be rounded once more.
        np.testing.assert_allclose(one, other, rtol=1e-7)


def test_the_gradient_of_the_parts_is_that_of_the_batch():
    x_0, noise = np.random.default_rng(0).standard_normal((2, 8, 2, 2, 1))
    args = x_0, np.arange(8) * 6, noise, jax.random.split(KEY, 8)
    given = {"label": np.arange(8) % 3, "self_condition": jnp.array(True)}
    found = []
    for accumulate in (1, 4):
        update = jax.jit(
            make_update(make_loss_fn(network, SCHEDULE), OPTIMIZER, accumulate=accumulate)
        )
        state, metrics = update(first_state(), *args, **given)
        found.append([float(leaf) for leaf in jax.tree.leaves((state.params, metrics))])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)  # measured: 3e-16
    # every parameter has a gradient
    assert set(found[0]).isdisjoint(map(float, first_state().params.values()))


def test_a_batch_must_divide_into_the_parts():
    with pytest.raises(ValueError, match="a batch of 16 does not divide into 3 equal parts"):
        train(accumulate=3)


@pytest.mark.parametrize("batch", [PIXELS, Batch(PIXELS, None), Batch(PIXELS, LABELS)])
@pytest.mark.parametrize("options", [(), ("self_condition",), ("class_conditional",)])
def test_only_what_is_asked_for_is_told_to_the_network(batch, options):
    """Labels are passed over unless they are wanted, so there need not be any."""
    if "class_conditional" in options and getattr(batch, "labels", None) is None:
        return
    told = []

    def update(state, x_0, t, noise, dropout_keys, **args):
        told.append({name: value.shape for name, value in args.items()})
        return state, {}

    step = make_train_step(update, T, **dict.fromkeys(options, True))
    jax.eval_shape(step, first_state(), batch, KEY)
    expected = {"self_condition": {"self_condition": ()}, "class_conditional": {"label": (16,)}}
    assert told == [expected[options[0]] if options else {}]


@pytest.mark.usefixtures("unchecked_types")  # spies in place of parts
def test_a_class_conditional_step_needs_labels():
    step = make_train_step(None, T, class_conditional=True)
    with pytest.raises(ValueError, match="labels"):
        jax.eval_shape(step, first_state(), PIXELS, KEY)


@pytest.mark.usefixtures("unchecked_types")  # spies in place of parts
def test_about_half_of_the_steps_are_self_conditioned():
    seen = []

    def update(state, x_0, t, noise, dropout_keys, *, self_condition):
        return state, self_condition

    step = jax.jit(make_train_step(update, T, self_condition=True))
    state = first_state()
    for i in range(200):
        seen.append(bool(step(state.replace(step=jnp.int32(i)), PIXELS[:1, :1, :1], KEY)[1]))
    # Five standard errors of 200 coin flips. Measured: 1.1 of them.
    assert abs(np.mean(seen) - 0.5) < 5 * 0.5 / 200**0.5


@pytest.mark.usefixtures("unchecked_types")  # spies in place of parts
def test_the_update_takes_any_loss():
    def loss_fn(params, x_0, t, noise, *, train, dropout_keys):
        assert train
        return (params["image"] - x_0.mean((1, 2, 3))) ** 2

    update = make_update(loss_fn, OPTIMIZER)
    x_0 = jnp.arange(4.0).reshape(4, 1, 1, 1)
    state, metrics = update(first_state(), x_0, None, None)
    np.testing.assert_allclose(state.params["image"], 1.5, rtol=1e-12)  # the mean, in one step
    np.testing.assert_allclose(metrics["loss"], ((0.3 - np.arange(4)) ** 2).mean(), rtol=1e-12)
