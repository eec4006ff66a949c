"""Every way of running a step on devices gives the same numbers as one device."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jax_ddpm.devices.layout import (
    Layout,
    assign_shardings,
    choose_mode,
    make_state,
    replicate,
    to_one_device,
)
from jax_ddpm.devices.parallel import get_compiler_options, parallelize
from jax_ddpm.devices.sharding import split_largest_dimension
from jax_ddpm.errors import UserError
from jax_ddpm.optim.averages import make_ema
from jax_ddpm.process.losses import make_loss_fn
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.process.timesteps import empty_history, make_timestep_fn
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import Indexed, make_train_step, scan_steps
from jax_ddpm.training.update import gather_in_order, make_update


@pytest.mark.parametrize(
    ("parallel", "devices", "mode"),
    [
        ("auto", 1, "jit"),
        ("auto", 8, "pmap"),
        ("jit", 8, "jit"),
        ("pmap", 8, "pmap"),
        ("pmap", 1, "pmap"),
        ("mesh", 8, "mesh"),
    ],
)
def test_several_devices_are_used_if_there_are_any(monkeypatch, parallel, devices, mode):
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    assert choose_mode(parallel, 16) == mode


@pytest.mark.parametrize("parallel", ["auto", "pmap"])
def test_a_batch_that_does_not_divide_is_refused_with_advice(parallel):
    message = r"batch-size 12 does not divide over 8 devices.*parallel jit"
    with pytest.raises(UserError, match=message):
        choose_mode(parallel, 12)
    assert choose_mode("jit", 12) == "jit"


def test_devices_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match=r"fsdp 3 does not divide the number of devices, 8"):
        choose_mode("mesh", 16, fsdp=3)


def test_jit_on_one_device_is_refused_for_several_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"parallel jit runs on one device.*pmap or mesh"):
        choose_mode("jit", 16)
    with pytest.raises(UserError, match=r"batch-size 24 does not divide over 16 devices"):
        choose_mode("auto", 24)


def test_cpu_programs_get_options_and_others_none(monkeypatch):
    assert get_compiler_options()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert get_compiler_options() is None


def test_the_second_step_is_not_compiled_again():
    """A step with data that are committed to a device commits the state to it as well."""
    state = make_state(lambda key: jax.random.normal(key, (3,)), jax.random.key(0), Layout("jit"))
    data = replicate(np.ones(2), "jit")
    step = parallelize(lambda _: lambda state, batch, key: (state + batch.sum(), key), "jit")
    for _ in range(3):
        state, _ = step(state, data, jax.random.key(1))
    assert step._cache_size() == 1


# A network that compiles quickly, with every input that a network can have, and matrices that can
# be sharded. With two losses per timestep, importance sampling starts at the third step.
T, CLASSES = 4, 5
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 1), dtype=np.uint8)
LABELS = np.arange(64) % CLASSES
SPLIT = (
    (r"^(step|skipped|loss_history)\b", P()),
    (r"", partial(split_largest_dimension, min_size=64)),
)
OPTIMIZER = optax.adam(1e-2)
SCHEDULE = named_schedule("linear", T, dtype=jnp.float64)
SHAPES = {
    "in": (16, 32),
    "guess": (16, 32),
    "time": (T, 32),
    "label": (CLASSES + 1, 32),
    "out": (32, 16),
}


def init(key):
    numbers = np.random.default_rng(0)
    params = {name: jnp.asarray(numbers.normal(0, 0.3, shape)) for name, shape in SHAPES.items()}
    state = create_state(params, OPTIMIZER, num_more_ema=1, num_posthoc_ema=1)
    return state.replace(loss_history=empty_history(T, 2, jnp.float64))


def apply_fn(params, x_t, t, *, label, x_self_cond, train=False, dropout_keys=None):
    def flat(images):
        return images.reshape(len(images), -1)

    hidden = flat(x_t) @ params["in"] + flat(x_self_cond) @ params["guess"]
    hidden = jnp.tanh(hidden + params["time"][t] + params["label"][label])
    if dropout_keys is not None:
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.8, hidden.shape[1:]))(dropout_keys)
        hidden *= kept
    return (hidden @ params["out"]).reshape(x_t.shape)


def make_step(axis_name, accumulate=1, per_call=1):
    update = make_update(
        make_loss_fn(apply_fn, SCHEDULE),
        OPTIMIZER,
        ema=make_ema(decay=0.9),
        more_ema=[make_ema(decay=0.5)],
        posthoc_ema=[make_ema(decay=0.7)],
        accumulate=accumulate,
        axis_name=axis_name,
    )
    step = make_train_step(
        update,
        T,
        random_flip=True,
        offset_noise=0.3,
        self_condition=True,
        class_conditional=True,
        timestep_fn=make_timestep_fn("importance", SCHEDULE),
        label_dropout=0.3,
        null_label=CLASSES,
        axis_name=axis_name,
    )
    return step if per_call == 1 else scan_steps(step)


@cache
def train_from_scratch(mode="jit", fsdp=1, *, accumulate=1, per_call=1, indexed=False):
    """Train a fresh state for four steps; return the state and the losses."""
    return train(
        make_state(init, jax.random.key(3), Layout(mode, fsdp, SPLIT)),
        mode,
        fsdp,
        accumulate=accumulate,
        per_call=per_call,
        indexed=indexed,
    )


def train(state, mode="jit", fsdp=1, *, accumulate=1, per_call=1, indexed=False):
    step = parallelize(
        lambda axis_name: make_step(axis_name, accumulate, per_call),
        mode,
        fsdp=fsdp,
        rules=SPLIT,
        batch_axis=0 if per_call == 1 else 1,
    )
    data = replicate((PIXELS, LABELS.astype(np.int32)), mode) if indexed else None
    losses = []
    for first in range(0, 4, per_call):
        indices = np.arange(64, dtype=np.int32).reshape(4, 16)[first : first + per_call]
        indices = indices[0] if per_call == 1 else indices
        batch = Indexed(indices, *data) if indexed else (PIXELS[indices], LABELS[indices])
        state, metrics = step(state, batch, jax.random.key(3))
        losses.append(np.atleast_1d(np.asarray(metrics["loss"])))
    return state, np.concatenate(losses)


def measure_difference(one, other):
    def largest(a, b):
        return np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()

    return max(jax.tree.leaves(jax.tree.map(largest, to_one_device(one), to_one_device(other))))


WAYS = {
    "pmap, parts": ("pmap", 1, {"accumulate": 2}),
    "pmap, scan, data on devices": ("pmap", 1, {"per_call": 2, "indexed": True}),
    "jit, parts": ("jit", 1, {"accumulate": 4}),
    "mesh": ("mesh", 1, {}),
    "fsdp 2": ("mesh", 2, {}),
    "fsdp 8": ("mesh", 8, {}),
    "fsdp 2, parts": ("mesh", 2, {"accumulate": 2}),
    "fsdp 4, scan, data on devices": ("mesh", 4, {"per_call": 2, "indexed": True}),
}
QUICK = ("pmap, parts", "fsdp 4, scan, data on devices")


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize(
    "way", [way if way in QUICK else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]
)
def test_every_way_to_run_a_step_gives_the_same_numbers_as_one_device(way):
    mode, fsdp, options = WAYS[way]
    state, losses = train_from_scratch(mode, fsdp, **options)
    plain, expected = train_from_scratch()
    assert (
        jax.tree.leaves(to_one_device(plain.loss_history.counts))[0].min() == 2
    )  # full, so it decides t
    # Measured: 3e-16. If a batch is cut into parts, the losses behind the weights of importance
    # sampling are rounded to float32 once more: 3e-7 in the history, 2e-8 elsewhere. A wrong mask,
    # flip, label or noise of one image changes more than 1e-4.
    tolerance = 1e-6 if "accumulate" in options else 1e-13
    assert np.abs(losses - expected).max() < tolerance
    assert measure_difference(state, plain) < tolerance
    for leaf in jax.tree.leaves((state.params, state.ema_params, state.opt_state[0].mu)):
        assert leaf.addressable_data(0).size == leaf.size // fsdp
        assert len(leaf.addressable_shards) == (1 if mode == "jit" else 8)


def test_eight_devices_draw_the_same_timesteps_as_one():
    """With every way of sampling them, all in one program."""
    schedule = named_schedule("linear_rescaled", 50, dtype=jnp.float64)

    def make_drawing(axis_name):
        def return_timesteps(state, x_0, t, noise, dropout_keys):
            return state, {"t": gather_in_order(t, axis_name)}

        def draw(state, pixels, key):
            steps = {
                sampling: make_train_step(
                    return_timesteps,
                    50,
                    timestep_fn=make_timestep_fn(sampling, schedule),
                    axis_name=axis_name,
                )
                for sampling in ("uniform", "antithetic", "stratified", "log_normal")
            }
            return state, {name: step(state, pixels, key)[1]["t"] for name, step in steps.items()}

        return draw

    state = create_state({"w": jnp.zeros(())}, OPTIMIZER)
    one, eight = (
        to_one_device(
            parallelize(make_drawing, mode)(state_of_its_own, PIXELS[:16], jax.random.key(7))[1]
        )
        for mode, state_of_its_own in (("jit", jax.tree.map(jnp.copy, state)), ("pmap", state))
    )
    for name, t in one.items():
        np.testing.assert_array_equal(eight[name], t, err_msg=name)
        assert len(np.unique(t)) > 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [(("mesh", 4), ("pmap", 1)), (("pmap", 1), ("mesh", 8)), (("mesh", 2), ("jit", 1))],
)
def test_a_state_goes_from_one_way_to_another_unchanged(before, after):
    state, _ = train_from_scratch(*before)
    whole = jax.tree.map(np.array, to_one_device(state))  # a copy, because the state is donated
    wanted = assign_shardings(after[0], jax.eval_shape(lambda: whole), after[1])
    moved = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), whole, wanted)
    alone = jax.tree.map(jnp.asarray, whole)
    assert measure_difference(moved, alone) == 0
    further, _ = train(moved, *after)
    expected, _ = train(alone)
    assert further.step == 8
    assert measure_difference(further, expected) < 1e-13  # measured: 3e-16


def test_a_sharded_state_is_never_whole_on_a_device_and_a_step_donates_it():
    layout = Layout("mesh", 8, SPLIT)
    state = make_state(init, jax.random.key(0), layout)
    assert measure_difference(state, init(None)) == 0
    sizes = {leaf.addressable_data(0).size for leaf in jax.tree.leaves(state.params)}
    assert sizes == {64, 16, 24}
    step = parallelize(lambda _: lambda state, batch, key: (state, {}), "mesh", fsdp=8, rules=SPLIT)
    new, _ = step(state, PIXELS, jax.random.key(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert measure_difference(new, init(None)) == 0
