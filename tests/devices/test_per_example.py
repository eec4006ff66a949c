"""Programs that treat every image on its own give the same on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jax_ddpm.devices.layout import Layout, place_state
from jax_ddpm.devices.per_example import compile_per_example, find_mesh, replicate_params, round_up
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.generate import generate_images, make_generate_fn
from jax_ddpm.jobs.parameters import load_state
from jax_ddpm.runs.folder import load


def test_sharded_programs_get_no_options_for_cpus(monkeypatch):
    """With them, XLA failed with "unsupported layout in YNN fusion" for one preset."""
    unknown = {"xla_no_such_option": True}
    monkeypatch.setattr("jax_ddpm.devices.per_example.get_compiler_options", lambda: unknown)
    program = compile_per_example(lambda params, x, _: x @ params)
    whole, x = jnp.eye(8), np.ones((16, 8))
    in_parts = Layout("mesh", 8, ((r"", PartitionSpec("fsdp")),))
    np.testing.assert_array_equal(program(place_state(whole, in_parts), x), x)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        program(replicate_params(whole, 16), x)


def test_examples_are_split_over_the_devices_of_the_parameters():
    seen = []

    def fn(params, examples, shared):
        x, label = examples
        seen.append(label)
        return params * x + shared.sum(), x.sum(axis=1)

    program = compile_per_example(fn)
    x = np.arange(48.0).reshape(16, 3)
    whole, shared = jnp.float64(3), np.ones((16, 3))  # as long as the examples, and yet shared
    expected = program(whole, (x, None), shared)
    found = program(replicate_params(whole, 16), (x, None), shared)
    for one, other in zip(found, expected, strict=True):
        assert len(one.sharding.device_set) == 8
        assert len(other.sharding.device_set) == 1
        np.testing.assert_array_equal(one, other)
    assert seen == [None, None]


@pytest.mark.parametrize(
    ("num", "devices", "filled"), [(1, 1, 1), (3, 3, 3), (8, 8, 8), (20, 8, 24)]
)
def test_no_more_devices_than_images_are_used_and_the_number_is_rounded_up(num, devices, filled):
    params = replicate_params({"w": jnp.ones(3)}, num)
    assert len(params["w"].sharding.device_set) == devices
    assert round_up(num, params) == filled
    assert replicate_params(params, 2 * num) is params or find_mesh(params) is None


@pytest.mark.guard
@pytest.mark.slow
def test_eight_devices_draw_the_same_images_as_one(trained_run):
    run = load(trained_run)
    parts = build(run.config, run.image_shape)
    params = load_state(run, parts).ema_params
    generate = make_generate_fn(parts, run.config.sample, run.image_shape)
    one, eight = (
        next(generate_images(generate, p, 12, seed=3, keep_frames=True))
        for p in (params, replicate_params(params, 12))
    )
    assert one.images.shape == eight.images.shape == (12, 8, 8, 1)
    assert len(jax.tree.leaves(replicate_params(params, 12))[0].sharding.device_set) == 8
    # Measured: 0, for the images and for all frames.
    for found, expected in zip(eight[:2], one[:2], strict=True):
        assert np.abs(found.astype(int) - expected).max() <= 1
