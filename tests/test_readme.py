"""The README's examples run as written."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jax_ddpm as jd

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run_block(block):
    names = {}
    with jax.numpy_rank_promotion("allow"):  # as for users
        exec(block, names)
    return names


def find_block(words):
    """Find the block of the README that has `words` in it."""
    (found,) = [text for text in BLOCKS if words in text]
    return found


@pytest.mark.slow
@pytest.mark.guard
def test_the_example_with_an_array_runs(one_device):
    assert run_block(find_block("jd.fit("))["pictures"].shape == (4, 8, 8, 1)


@pytest.mark.slow
@pytest.mark.guard
def test_the_example_with_your_own_network_runs():
    names = run_block(find_block("jd.Diffusion("))
    assert names["loss"].shape == (4,)
    assert names["x_0"].shape == (4, 8, 8, 1)


@pytest.mark.slow
@pytest.mark.guard
def test_the_example_with_pure_functions_runs():
    names = run_block(find_block("jd.make_loss_fn("))
    assert jnp.isfinite(names["x_0"]).all()
    assert jax.tree.structure(names["grads"]) == jax.tree.structure(names["params"])


def test_the_sampler_of_the_readme_solves_a_problem_with_a_known_answer():
    """If the data is a single point, every first-order solver of the ODE ends at that point."""
    sampler = run_block(find_block("def my_euler"))["my_euler"]()
    schedule = jd.make_schedule(jd.linear_betas(1000), dtype=jnp.float64)
    levels = jd.level_at(schedule, jnp.asarray(jd.timestep_grid(1000, 20, "leading")))
    point, x_T = jnp.full((1, 2, 2, 1), 0.5), jnp.ones((1, 2, 2, 1))

    def denoise(x_t, level):
        return jd.Prediction(point, (x_t - level.signal * point) / level.sigma)

    x_0, _ = jd.sample(sampler, denoise, levels, x_T, lambda i: x_T)
    assert jnp.abs(x_0 - point).max() < 1e-12  # measured: 0


def test_errors_are_quoted_as_they_read():
    root = Path(jd.__file__).parent
    source = " ".join(file.read_text() for file in root.rglob("*.py"))
    source = re.sub(r'"\s+f?"', "", source)  # strings that continue on the next line
    quoted = re.findall(r"`error: (.*?)`", README)
    assert len(quoted) > 5
    for error in quoted:
        # Names and numbers are placeholders in the source.
        for part in re.split(r"\.\.\.|\d+x\d+x\d+|\b\d+\b|RUN|--[\w.-]+", error):
            assert part.strip() in source, (error, part)


def test_every_file_that_the_readme_names_exists():
    root = Path(__file__).parents[1]
    names = re.findall(r"(?:\]\(|`)((?:docs|tests|parity_tests|jax_ddpm)/[\w./-]+)", README)
    assert len(names) > 5
    for name in names:
        assert (root / name).exists(), name
