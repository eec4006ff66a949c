"""The tutorials run from top to bottom, and the notebooks hold what their text does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "docs/tutorial").glob("*.py"))
every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


def read_cells(script):
    """The cells of a script in jupytext's percent format, as (is_markdown, text)."""
    _, *parts = re.split(r"^# %%", script.read_text(), flags=re.MULTILINE)
    for part in parts:
        first, _, body = part.partition("\n")
        is_markdown = first.strip() == "[markdown]"
        yield is_markdown, re.sub(r"^# ?", "", body, flags=re.M) if is_markdown else body


def run(script, folder):
    """Run a script as a user does, without windows."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "Agg",
        "JAX_ENABLE_X64": "0",
        "JAX_PLATFORMS": "cpu",
    }
    environment.pop("XLA_FLAGS", None)  # the tests compile with fewer passes
    return subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_there_are_the_tutorial_and_one_for_each_text():
    names = {script.stem for script in SCRIPTS}
    assert names == {"ddpm", "experiments", "epita", "annotated", "pulfer", "lucidrains"}


@every_script
def test_the_notebook_holds_the_cells_of_the_script(script):
    notebook = json.loads(script.with_suffix(".ipynb").read_text())
    theirs = [
        (cell["cell_type"] == "markdown", "".join(cell["source"]).strip())
        for cell in notebook["cells"]
    ]
    assert theirs == [(is_markdown, text.strip()) for is_markdown, text in read_cells(script)], (
        "jupytext --update --to ipynb docs/tutorial/*.py brings the notebooks up to date"
    )
    assert not any(cell.get("outputs") for cell in notebook["cells"])


@every_script
def test_each_notebook_opens_in_colab(script):
    address = f"https://colab.research.google.com/github/jax-ddpm/jax_ddpm/blob/main/docs/tutorial/{script.stem}.ipynb"
    assert f"]({address})" in next(read_cells(script))[1]
    assert address in (script.parent / "README.md").read_text()


def test_a_cell_that_fails_fails_the_run(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("# %%\nx = 1\n\n# %%\nassert x == 2, 'this cell is wrong'\n")
    done = run(broken, tmp_path)
    assert done.returncode == 1
    assert "this cell is wrong" in done.stderr


@pytest.mark.slow
@every_script
def test_the_tutorial_runs_from_top_to_bottom(script, tmp_path):
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
