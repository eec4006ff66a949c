"""The programs of a run: each is compiled once, and in bfloat16 no product is wide."""

import logging
import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.train import train
from jax_ddpm.jobs.train_setup import compile_step

ATTENTION = {"channels": 8, "attn_levels": (0,)}


def lower_step(config):
    """The training step of `config`, as XLA gets it."""
    parts, key = build(config, (8, 8, 1)), jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(parts.init_state, key)
    pixels = jax.ShapeDtypeStruct((config.train.batch_size, 8, 8, 1), jnp.uint8)
    return compile_step(config, parts).lower(state, pixels, key)


def test_the_bfloat16_step_has_no_float32_convolution_or_product(make_config, tmp_path):
    def list_products(dtype):
        """The operands of all convolutions and products of the step, as XLA gets it."""
        model = {**ATTENTION, "compute_dtype": dtype}
        text = lower_step(make_config(tmp_path / "run", model=model)).as_text()
        lines = re.findall(r"stablehlo\.(?:convolution|dot|dot_general)\b.* : (.*) ->", text)
        assert len(lines) > 20
        return lines

    assert all(
        re.findall(r"x(f\d+|bf16)>", line) == ["bf16"] * 2 for line in list_products("bfloat16")
    )
    assert any("xf32>" in line for line in list_products("float32"))


def test_on_cpus_an_accumulated_step_does_not_loop_over_gradients(make_config, tmp_path):
    """In a loop, XLA's gradient of a convolution is many times slower."""

    def count(accumulate):
        train = {"accumulate": accumulate, "batch_size": 8}
        text = lower_step(make_config(tmp_path / "run", train=train)).as_text()
        return text.count("stablehlo.convolution")

    assert count(2) == 2 * count(1) > 0


@pytest.mark.slow
def test_the_parts_of_an_accumulated_step_share_their_memory(make_config, tmp_path):
    """XLA's scheduler would keep the features of all parts at once."""

    def measure(accumulate):
        model = {"channels": 16, "channel_mult": (1, 2)}
        train = {"accumulate": accumulate, "batch_size": 64}
        config = make_config(tmp_path / "run", model=model, train=train)
        return lower_step(config).compile().memory_analysis().temp_size_in_bytes

    assert measure(4) < 0.5 * measure(1)  # measured: 0.37


@pytest.mark.slow
def test_a_run_compiles_its_step_and_its_sampler_once(make_config, tmp_path, caplog):
    """Over twelve steps, two checkpoints, the grids on the way and the final pictures."""
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        train(make_config(tmp_path / "run"))
    compiled = [r.args[0] for r in caplog.records if str(r.msg).startswith("Compiling %s with")]
    counts = Counter(re.sub(r"^jit[(_]|\)$", "", str(name)) for name in compiled)
    assert (counts["train_step"], counts["generate"]) == (1, 1)
