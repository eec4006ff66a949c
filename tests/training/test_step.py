"""What a step draws from its key, and what it passes on to the update."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_ddpm.process.losses import make_loss_fn
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import (
    Indexed,
    call_in_turn,
    drop_labels,
    example_keys,
    flip_at_random,
    make_train_step,
    scan_steps,
)
from jax_ddpm.training.update import make_update

T = 50
KEY = jax.random.key(7)
DESCENT = optax.sgd(0.5)
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 2, 2, 1), dtype=np.uint8)
LABELS = np.arange(16) % 5


class Batch(NamedTuple):
    pixels: np.ndarray
    labels: np.ndarray | None


def make_first_state():
    return create_state({"w": jnp.float64(0.3)}, DESCENT)


def return_arguments(state, x_0, t, noise, dropout_keys, **options):
    """Stand in for an update: return its arguments as numbers."""
    options = {name: value.astype(jnp.int32) for name, value in options.items()}
    dropout = jax.random.key_data(dropout_keys)
    return state, {"x_0": x_0, "t": t, "noise": noise, "dropout": dropout, **options}


EVERYTHING = {
    "random_flip": True,
    "offset_noise": 0.3,
    "self_condition": True,
    "class_conditional": True,
    "label_dropout": 0.4,
    "null_label": 5,
}
draw_step = jax.jit(make_train_step(return_arguments, T, **EVERYTHING))


def draw_numbers(step=0, key=KEY):
    state = make_first_state().replace(step=jnp.int32(step))
    return jax.device_get(draw_step(state, Batch(PIXELS, LABELS), key)[1])


def test_the_same_key_draws_the_same_and_another_key_or_step_everything_anew():
    first = draw_numbers()
    for name, array in draw_numbers().items():
        np.testing.assert_array_equal(array, first[name])
    for other in (draw_numbers(key=jax.random.key(8)), draw_numbers(step=1)):
        same = {name for name, array in other.items() if np.array_equal(array, first[name])}
        assert same <= {"self_condition"}  # one coin


RECORDED = {
    "t": [30, 3, 13, 31, 48, 10, 38, 11, 31, 20, 33, 14, 38, 21, 10, 13],
    "label": [5, 1, 2, 3, 5, 5, 5, 5, 3, 5, 5, 5, 2, 3, 4, 0],
    "self_condition": True,
    "dropout": [[3404716430, 4248492602], [2489875016, 2562086461]],
    "noise": [1.4328566789627075, 0.12749819457530975, 0.08052940666675568],
    "flipped": [0, 2, 3, 4, 7, 8, 9, 10, 12, 13, 15],
}


def test_the_random_bits_of_a_seed_never_change():
    """Recorded with an earlier version: old runs must continue with the same bits."""
    found = draw_numbers(step=3)
    assert found["t"].tolist() == RECORDED["t"]
    assert found["label"].tolist() == RECORDED["label"]
    assert bool(found["self_condition"]) == RECORDED["self_condition"]
    assert found["dropout"][:2].tolist() == RECORDED["dropout"]
    np.testing.assert_allclose(found["noise"][:3, 0, 0, 0], RECORDED["noise"], rtol=1e-6)
    flipped = (np.abs(found["x_0"] - (PIXELS / 127.5 - 1)) > 1e-3).any((1, 2, 3))
    assert np.flatnonzero(flipped).tolist() == RECORDED["flipped"]


def test_keys_of_examples_come_from_their_place_in_the_global_batch():
    whole = example_keys(KEY, 16, None)
    parts = jax.vmap(lambda _: example_keys(KEY, 4, "axis"), axis_name="axis")(jnp.arange(4))
    found = jax.random.key_data(parts).reshape(16, 2)
    np.testing.assert_array_equal(found, jax.random.key_data(whole))
    assert len(np.unique(found, axis=0)) == 16


def test_about_half_of_the_images_are_mirrored_left_to_right():
    images = jnp.arange(6.0).reshape(1, 2, 3, 1) * jnp.ones((1000, 1, 1, 1))
    found = jax.jit(flip_at_random)(jax.random.split(KEY, 1000), images)
    flipped = jnp.all(found == images[:, :, ::-1], axis=(1, 2, 3))
    assert jnp.all(flipped | jnp.all(found == images, axis=(1, 2, 3)))
    # Five standard errors of 1000 coin flips. Measured: 0.25 of them.
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / 1000**0.5


def test_about_half_of_the_steps_are_self_conditioned():
    step = make_train_step(return_arguments, T, self_condition=True)

    def coin(i):
        state = make_first_state().replace(step=i)
        return step(state, PIXELS[:1], KEY)[1]["self_condition"]

    coins = jax.jit(jax.vmap(coin))(jnp.arange(200, dtype=jnp.int32))
    # Five standard errors of 200 coin flips. Measured: 1.1 of them.
    assert abs(coins.mean() - 0.5) < 5 * 0.5 / 200**0.5


def test_labels_are_dropped_with_the_given_probability_by_the_examples_own_key():
    keys = jax.jit(example_keys, static_argnums=(1, 2))(KEY, 20_000, None)
    label = jnp.arange(20_000) % 5
    dropped = np.asarray(jax.jit(drop_labels, static_argnums=(2, 3))(keys, label, 0.1, 5))
    assert set(dropped[dropped != label].tolist()) == {5}
    # Five standard errors of 20,000 coin flips. Measured: 1.1 of them.
    assert abs((dropped == 5).mean() - 0.1) < 5 * (0.1 * 0.9 / 20_000) ** 0.5
    np.testing.assert_array_equal(drop_labels(keys[50:60], label[50:60], 0.1, 5), dropped[50:60])
    assert drop_labels(keys, label, 0.0, 5) is label
    assert drop_labels(keys, label, 0.1, None) is label


UNLABELLED, LABELLED = [PIXELS, Batch(PIXELS, None)], Batch(PIXELS, LABELS)


@pytest.mark.parametrize(
    ("batch", "option"),
    [
        *itertools.product([*UNLABELLED, LABELLED], [None, "self_condition"]),
        (LABELLED, "class_conditional"),
    ],
)
def test_the_update_gets_only_what_it_needs(batch, option):
    """Labels are ignored unless they are wanted, so there need not be any."""
    step = make_train_step(return_arguments, T, **{option: True} if option else {})
    _, given = jax.eval_shape(step, make_first_state(), batch, KEY)
    more = {"self_condition": ["self_condition"], "class_conditional": ["label"]}.get(option, [])
    assert sorted(given) == sorted(["x_0", "t", "noise", "dropout", *more])


def test_a_class_conditional_step_needs_labels():
    step = make_train_step(return_arguments, T, class_conditional=True)
    with pytest.raises(ValueError, match="needs batches with labels"):
        jax.eval_shape(step, make_first_state(), PIXELS, KEY)


def network(params, x_t, t, *, label, train=False, dropout_keys=None):
    """Its output is infinite for an image with label 4."""
    return jnp.where(label[:, None, None, None] == 4, jnp.inf, params["w"]) * x_t


def test_several_steps_in_a_call_and_images_picked_on_the_device_equal_plain_steps():
    """With bad steps among them: the third and the fourth of six have a label 4."""
    update = make_update(make_loss_fn(network, named_schedule("linear", T)), DESCENT)
    step = make_train_step(update, T, random_flip=True, class_conditional=True)
    one, three = jax.jit(step), jax.jit(scan_steps(step))
    in_turn = call_in_turn(one)
    labels = np.where(np.arange(16) >= 8, 4, np.arange(16) % 4)
    indices = np.arange(6 * 4).reshape(6, 4) % 8
    indices[2:4, 1] = 9
    states, rows = [make_first_state()], []
    for numbers in indices:
        state, metrics = one(states[-1], Batch(PIXELS[numbers], labels[numbers]), KEY)
        states.append(state)
        rows.append(metrics)
    assert [int(row["skipped"]) for row in rows] == [0, 0, 1, 1, 0, 0]
    assert [int(row["skipped_in_a_row"]) for row in rows] == [0, 0, 1, 2, 0, 0]
    assert states[2].params == states[4].params != states[5].params
    assert (states[6].step, states[6].skipped.total) == (6, 2)

    def compare(state, losses):
        np.testing.assert_array_equal(losses, [row["loss"] for row in rows])
        np.testing.assert_array_equal(state.params["w"], states[6].params["w"])

    picked, several, both, called = (make_first_state() for _ in range(4))
    losses = {"picked": [], "several": [], "both": [], "called": []}
    for numbers in indices:
        picked, metrics = one(picked, Indexed(numbers, PIXELS, labels), KEY)
        losses["picked"].append(metrics["loss"])
    for numbers in (indices[:3], indices[3:]):
        several, metrics = three(several, Batch(PIXELS[numbers], labels[numbers]), KEY)
        losses["several"].extend(metrics["loss"])
        both, metrics = three(both, Indexed(numbers, PIXELS, labels), KEY)
        losses["both"].extend(metrics["loss"])
        called, metrics = in_turn(called, Indexed(numbers, PIXELS, labels), KEY)
        losses["called"].extend(metrics["loss"])
    found = {"picked": picked, "several": several, "both": both, "called": called}
    for name, state in found.items():
        compare(state, losses[name])
