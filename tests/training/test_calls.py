"""What one call of the compiled program does: steps skipped, several at once, images picked there."""

from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_ddpm.config.run import Config, DiffusionConfig, TrainConfig
from jax_ddpm.data.loader import batches
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.devices.layout import replicate, to_one_device
from jax_ddpm.devices.parallel import parallelize
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.memory import measure_step_memory
from jax_ddpm.models import UNetConfig
from jax_ddpm.optim.averages import make_ema
from jax_ddpm.optim.optimizers import make_optimizer
from jax_ddpm.process.losses import make_loss_fn
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.process.timesteps import empty_history
from jax_ddpm.training import feed
from jax_ddpm.training.feed import fits_on_device, load_into_memory, make_feed, plan_calls
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import Indexed, make_train_step, scan_steps
from jax_ddpm.training.update import make_update

T = 8
KEY = jax.random.key(7)
NUMBERS = np.random.default_rng(0)
IMAGES = NUMBERS.integers(0, 255, (24, 2, 2, 1), dtype=np.uint8)
SOURCE = ImageSource(IMAGES, np.arange(24))
BAD = 255  # a pixel of this value makes the network's output infinite
OPTIMIZER = make_optimizer(optax.linear_schedule(0.1, 0.0, 10))


def network(params, x_t, t, *, label=None, train=False, dropout_keys=None):
    spread = jnp.where(label[:, None, None, None] == BAD, jnp.inf, params["w"])
    return spread * x_t + params["b"]


def first_state():
    params = {"w": jnp.float32(0.3), "b": jnp.float32(0.1)}
    state = create_state(params, OPTIMIZER, num_more_ema=1, num_posthoc_ema=1)
    return state.replace(loss_history=empty_history(T))


def make_step(axis_name, several=False):
    update = make_update(
        make_loss_fn(network, named_schedule("linear", T)), OPTIMIZER, ema=make_ema(decay=0.9),
        more_ema=[make_ema(decay=0.5)], posthoc_ema=[make_ema(decay=0.7)], axis_name=axis_name,
    )  # fmt: skip
    step = make_train_step(update, T, class_conditional=True, axis_name=axis_name)
    return scan_steps(step) if several else step


def host(tree):
    return jax.device_get(to_one_device(tree))


def differences(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(np.abs(np.asarray(a, float) - np.asarray(b, float)).max() for a, b in pairs)


def train(mode, batch_list, several=False):
    """The state and the metrics of all steps."""
    step = parallelize(lambda axis: make_step(axis, several), mode, batch_axis=1 if several else 0)
    state, rows = first_state(), []
    for batch in batch_list:
        state, metrics = step(state, batch, KEY)
        rows.append(host(metrics))
    return host(state), jax.tree.map(
        lambda *a: np.concatenate([np.atleast_1d(x) for x in a]), *rows
    )


def sent(count, spoiled=()):
    """Batches as the loader gives them; the labels of the first image in some are bad."""
    found = list(islice(batches(SOURCE, 8, 3), count))
    return [
        batch._replace(labels=np.where(np.arange(8) == 0, BAD, batch.labels))
        if i in spoiled
        else batch
        for i, batch in enumerate(found)
    ]


def stacked(batch_list):
    return jax.tree.map(lambda *a: np.stack(a), *batch_list)


MODES = ["jit", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("pmap", "mesh"))]


@pytest.mark.parametrize("mode", MODES)
def test_a_bad_step_changes_nothing_but_its_number_and_the_count(mode):
    """One bad image on one device is enough."""
    before, _ = train("jit", sent(2))
    state, rows = train(mode, sent(4, spoiled=(2, 3)))
    assert (state.step, state.skipped.total, state.skipped.in_a_row) == (4, 2, 2)
    np.testing.assert_array_equal(rows["skipped"], [0, 0, 1, 1])
    np.testing.assert_array_equal(rows["skipped_in_a_row"], [0, 0, 1, 2])
    assert not np.isfinite(rows["loss"][2:]).any()
    kept = state.replace(step=before.step, skipped=before.skipped)
    # jit: the same bits. Measured: 1e-7 where eight devices add up in another order.
    assert differences(kept, before) <= (0 if mode == "jit" else 1e-6)
    assert int(before.loss_history.counts.sum()) > 0  # it was there to be spoiled


def test_a_gradient_too_large_for_its_norm_is_a_bad_step_though_clipping_makes_it_nothing():
    def loss_fn(params, x_0, **_):
        return jnp.float32(1e30) * params["w"] * jnp.ones(len(x_0), jnp.float32)

    before = create_state({"w": jnp.float32(0.3)}, OPTIMIZER)
    nothing = jnp.zeros((2, 2, 2, 1))
    update = jax.jit(make_update(loss_fn, OPTIMIZER))
    state, metrics = update(before, nothing, jnp.zeros(2, jnp.int32), nothing)
    assert np.isfinite(metrics["loss"])
    assert (metrics["grad_norm"], metrics["skipped"], state.skipped.total) == (np.inf, 1, 1)
    assert differences(state.opt_state, before.opt_state) == 0


def test_the_count_in_a_row_begins_anew_after_a_good_step():
    state, rows = train("jit", sent(4, spoiled=(0, 1, 3)))
    np.testing.assert_array_equal(rows["skipped_in_a_row"], [1, 2, 0, 1])
    assert state.skipped.total == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_a_change_that_is_not_finite_is_a_bad_step_though_loss_and_gradient_are():
    optimizer = optax.sgd(jnp.inf)
    update = make_update(make_loss_fn(network, named_schedule("linear", T)), optimizer)
    params = {"w": jnp.float32(0.3), "b": jnp.float32(0.1)}
    state, metrics = update(
        create_state(params, optimizer), jnp.ones((2, 2, 2, 1)), jnp.array([1, 2]),
        jnp.ones((2, 2, 2, 1)), label=jnp.array([0, 1]),
    )  # fmt: skip
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
    assert metrics["skipped"] == 1 and state.params == params


@pytest.mark.parametrize("mode", MODES)
def test_several_steps_in_a_call_and_images_picked_on_the_device_are_the_plain_steps(mode):
    expected, rows = train("jit", sent(6, spoiled=(1,)))
    several = [stacked(part) for part in (sent(6, spoiled=(1,))[:4], sent(6)[4:])]
    found = {"several": train(mode, several, several=True)}
    data = replicate((IMAGES, np.arange(24, dtype=np.int32)), mode)
    numbers = [batch.labels.astype(np.int32) for batch in sent(6)]  # the labels are the numbers
    plain = train("jit", sent(6))
    picked = train(mode, [Indexed(n, *data) for n in numbers])
    both = [Indexed(np.stack(part), *data) for part in (numbers[:4], numbers[4:])]
    found |= {"picked": picked, "both": train(mode, both, several=True)}
    for name, (state, metrics) in found.items():
        wanted = (expected, rows) if name == "several" else plain
        # Measured on one device: 0; on eight: 1e-7.
        assert differences(state, wanted[0]) < 1e-6, name
        np.testing.assert_allclose(metrics["loss"], wanted[1]["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("first", "last", "each", "expected"),
    [
        (0, 3, 1, [(0, 1), (1, 2), (2, 3)]),
        (0, 7, 3, [(0, 3), (3, 6), (6, 7)]),
        (4, 9, 3, [(4, 6), (6, 9)]),
        (5, 5, 3, []),
    ],
)
def test_calls_begin_at_multiples_and_the_first_and_last_may_be_short(first, last, each, expected):
    assert [(c.start, c.stop) for c in plan_calls(first, last, each)] == expected


@pytest.mark.parametrize("process", [(0, 1), (1, 2)])
def test_the_feed_gives_the_batches_of_the_loader_in_every_form(process):
    settings = {"start_step": 2, "end_step": 7, "process": process}
    rows = [
        tuple(a[process[0] * 8 // process[1] : (process[0] + 1) * 8 // process[1]] for a in batch)
        for batch in sent(7)[2:]
    ]
    plain = list(make_feed(SOURCE, 8, 3, **settings))
    assert [count for _, count in plain] == [1] * 5
    several = list(make_feed(SOURCE, 8, 3, steps_per_call=3, **settings))
    assert [count for _, count in several] == [1, 3, 1]
    data = (IMAGES, np.arange(24))
    numbered = list(make_feed(SOURCE, 8, 3, steps_per_call=3, on_device=data, **settings))
    assert all(batch.pixels is IMAGES for batch, _ in numbered)
    for i, form in enumerate(("pixels", "labels")):
        wanted = np.stack([row[i] for row in rows])
        np.testing.assert_array_equal(np.stack([getattr(b, form) for b, _ in plain]), wanted)
        np.testing.assert_array_equal(
            np.concatenate([getattr(b, form) for b, _ in several]), wanted
        )
        picked = np.concatenate([getattr(b, form)[b.indices] for b, _ in numbered])
        np.testing.assert_array_equal(picked, wanted)


class Decoded(list):
    """Images that are made as they are asked for."""


def test_small_data_in_memory_go_to_the_device_and_others_if_they_must(monkeypatch):
    decoded = ImageSource(Decoded(IMAGES), SOURCE.labels)
    answers = {
        "auto": (True, False), "always": (True, False), "never": (False, False),
    }  # fmt: skip
    for wanted, expected in answers.items():
        assert (fits_on_device(SOURCE, wanted), fits_on_device(decoded, wanted)) == expected
        assert load_into_memory(SOURCE, wanted) is SOURCE
    assert load_into_memory(decoded, "auto") is decoded
    ahead = load_into_memory(decoded, "always")
    np.testing.assert_array_equal(ahead.images, IMAGES)
    assert fits_on_device(ahead, "always")
    monkeypatch.setattr(feed, "AUTO_BYTES", IMAGES.nbytes - 1)
    assert not fits_on_device(SOURCE, "auto") and fits_on_device(SOURCE, "always")


def test_images_that_do_not_fit_into_memory_are_refused_in_a_sentence(monkeypatch):
    def full(*args):
        raise MemoryError

    monkeypatch.setattr(np, "empty", full)
    with pytest.raises(UserError, match=r"data-on-device always: 24 images take 0.0 GiB"):
        load_into_memory(ImageSource(Decoded(IMAGES), SOURCE.labels), "always")


@pytest.mark.slow
def test_the_new_state_takes_the_place_of_the_old_one():
    model = UNetConfig(
        channels=4, channel_mult=(1,), num_res_blocks=1, attn_levels=(), num_groups=2
    )
    config = Config(
        model=model, diffusion=DiffusionConfig(num_timesteps=T), train=TrainConfig(batch_size=8)
    )
    found = measure_step_memory(config, (8, 8, 1))
    batch, key = 8 * 8 * 8, 2 * 4  # the labels are not used, so the program does not take them
    assert found.alias == found.arguments - batch - key  # all but these is the state
    assert found.peak == found.arguments + found.temporaries + found.outputs - found.alias
