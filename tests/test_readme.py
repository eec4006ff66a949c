"""The examples of the README, and what moved from it to the docs, run as written."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jax_ddpm as jd

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
HOWTO = ROOT / "docs/howto"


def run_block(block):
    names = {}
    with jax.numpy_rank_promotion("allow"):  # as for users
        exec(block, names)
    return names


def find_block(words, page=ROOT / "README.md"):
    """Find the block of a page that has `words` in it."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (found,) = [text for text in blocks if words in text]
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
    names = run_block(find_block("jd.make_loss_fn(", HOWTO / "python.md"))
    assert jnp.isfinite(names["x_0"]).all()
    assert jax.tree.structure(names["grads"]) == jax.tree.structure(names["params"])


def test_the_sampler_of_the_recipe_solves_a_problem_with_a_known_answer():
    """If the data is a single point, every first-order solver of the ODE ends at that point."""
    recipe, _, _ = find_block("def my_euler", HOWTO / "extend.md").partition("diffusion = ")
    sampler = run_block(recipe)["my_euler"]()
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
    quoted = re.findall(r"`error: (.*?)`", (HOWTO / "troubleshooting.md").read_text())
    assert len(quoted) > 5
    for error in quoted:
        # Names and numbers are placeholders in the source.
        for part in re.split(r"\.\.\.|\d+x\d+x\d+|\b\d+\b|RUN|--[\w.-]+", error):
            assert part.strip() in source, (error, part)


def test_every_file_that_the_readme_names_exists():
    names = re.findall(r"(?:\]\(|`)((?:docs|tests|parity_tests|jax_ddpm)/[\w./-]+)", README)
    assert len(names) > 5
    for name in names:
        assert (ROOT / name).exists(), name


def test_every_anchor_that_the_readme_links_to_exists():
    links = re.findall(r"\]\((docs/[\w./-]+)#([\w-]+)\)", README)
    assert len(links) > 2
    for name, anchor in links:
        titles = re.findall(r"^#+ (.*)$", (ROOT / name).read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert anchor in anchors, (name, anchor)


def test_the_readme_is_short():
    assert README.count("\n") < 250
