import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.devices.layout import Layout, choose_mode, make_state, replicate, to_one_device
from jax_ddpm.devices.parallel import get_compiler_options, parallelize
from jax_ddpm.errors import UserError


@pytest.mark.parametrize(
    ("parallel", "devices", "mode"),
    [
        ("auto", 1, "jit"), ("auto", 8, "pmap"), ("jit", 8, "jit"), ("pmap", 8, "pmap"),
        ("pmap", 1, "pmap"), ("mesh", 8, "mesh"),
    ],
)  # fmt: skip
def test_several_devices_are_used_if_there_are_any(monkeypatch, parallel, devices, mode):
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    assert choose_mode(parallel, 16) == mode


@pytest.mark.parametrize("parallel", ["auto", "pmap"])
def test_a_batch_that_does_not_divide_is_refused_and_the_way_out_named(parallel):
    with pytest.raises(
        UserError, match=r"batch-size 12 does not divide over 8 devices.*parallel jit"
    ):
        choose_mode(parallel, 12)
    assert choose_mode("jit", 12) == "jit"


def test_devices_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match=r"fsdp 3 does not divide the number of devices, 8"):
        choose_mode("mesh", 16, fsdp=3)


def test_one_device_of_one_of_several_processes_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"parallel jit runs on one device.*pmap or mesh"):
        choose_mode("jit", 16)
    with pytest.raises(UserError, match=r"batch-size 24 does not divide over 16 devices"):
        choose_mode("auto", 24)


def test_cpu_programs_get_options_and_others_none(monkeypatch):
    assert get_compiler_options()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert get_compiler_options() is None


def make_step(axis_name):
    """Counts images, and returns what each device saw of a batch."""

    def step(state, pixels, key):
        total = pixels.sum()
        total = total if axis_name is None else jax.lax.psum(total, axis_name)
        return state + total, {"total": total}

    return step


@pytest.mark.usefixtures("unchecked_types")  # an array for a state
@pytest.mark.parametrize("mode", ["jit", "pmap", "mesh"])
def test_the_state_has_no_device_axis_and_the_batch_is_spread(mode):
    pixels = np.arange(16).reshape(16, 1, 1, 1)
    step = parallelize(make_step, mode)
    state = jnp.zeros((3,), jnp.int64)
    for _ in range(2):
        state, metrics = step(state, pixels, jax.random.key(0))
    assert state.shape == (3,)
    assert state.tolist() == [240] * 3
    assert metrics["total"] == 120
    assert to_one_device({"state": state})["state"].devices() == {jax.local_devices()[0]}


def test_the_second_step_is_not_compiled_again():
    """A state that is not bound to its device becomes so by a step with data that are."""
    state = make_state(lambda key: jax.random.normal(key, (3,)), jax.random.key(0), Layout("jit"))
    data = replicate(np.ones(2), "jit")
    step = parallelize(lambda _: lambda state, batch, key: (state + batch.sum(), key), "jit")
    for _ in range(3):
        state, _ = step(state, data, jax.random.key(1))
    assert step._cache_size() == 1
