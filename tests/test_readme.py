"""What the README shows works as it stands there."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jax_ddpm import Prediction, level_at, linear_betas, make_schedule, sample, timestep_grid

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(block):
    names = {}
    exec(block, names)
    return names


def block(words):
    """The block of the README that has `words` in it."""
    (found,) = [text for text in BLOCKS if words in text]
    return found


@pytest.mark.slow
def test_the_example_draws_images():
    with jax.numpy_rank_promotion("allow"):
        x_0 = run(block("UNet(out_channels=1"))["x_0"]
    assert x_0.shape == (16, 28, 28, 1)
    assert jnp.isfinite(x_0).all()


@pytest.mark.slow
def test_the_usage_of_lucidrains_package_in_a_smaller_size():
    text = block("LucidrainsConfig(dim=64")
    for large, small in {"dim=64": "dim=8", "128": "16", "1000, 1000": "1000, 3"}.items():
        text = text.replace(large, small)
    names = run(text)
    assert names["x_0"].shape == (4, 16, 16, 3)
    assert jnp.isfinite(names["loss"])
    assert jax.tree.structure(names["grads"]) == jax.tree.structure(names["params"])


@pytest.mark.slow
@pytest.mark.long
def test_the_usage_of_the_tutorials():
    assert run(block("AnnotatedConfig(dim=28"))["loss"].shape == (2,)


def test_the_sampler_of_the_readme_solves_a_problem_with_a_known_answer():
    """For data that is one point, every first-order solver of the ODE ends at that point."""
    sampler = run(block("def euler"))["euler"]()
    schedule = make_schedule(linear_betas(1000), dtype=jnp.float64)
    levels = level_at(schedule, jnp.asarray(timestep_grid(1000, 20)))
    point, x_T = jnp.full((1, 2, 2, 1), 0.5), jnp.ones((1, 2, 2, 1))

    def denoise(x_t, level):
        return Prediction(point, (x_t - level.signal * point) / level.sigma)

    x_0, _ = sample(sampler, denoise, levels, x_T, lambda i: x_T)
    assert jnp.abs(x_0 - point).max() < 1e-12  # measured: 0


def test_every_file_that_the_readme_names_exists():
    root = Path(__file__).parents[1]
    names = re.findall(r"(?:\]\(|`)((?:docs|tests|parity_tests|jax_ddpm)/[\w./-]+)", README)
    assert len(names) > 5
    for name in names:
        assert (root / name).exists(), name
