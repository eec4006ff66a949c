"""Run folders of every earlier format, written by the versions that used it.

For each format, `old_runs.zip` holds a run of twelve steps on the images of `tiny_folder`, cut off
after its checkpoint at step 6, with the metrics of all twelve steps and with four images that the
same version drew from that checkpoint.
"""

import shutil
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_ddpm.config.jobs import SampleJob
from jax_ddpm.jobs.sample import sample_run
from jax_ddpm.jobs.train import train
from jax_ddpm.runs import load, metrics

OLD = Path(__file__).with_name("old_runs.zip")
FORMATS = (1, 2, 3)


@pytest.fixture
def old_runs(tmp_path, tiny_folder, monkeypatch):
    """Make a folder with the old runs and their data the current one."""
    zipfile.ZipFile(OLD).extractall(tmp_path)
    shutil.copytree(tiny_folder, tmp_path / "data")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize(
    "number",
    [
        FORMATS[0],
        *(pytest.param(n, marks=(pytest.mark.slow, pytest.mark.guard)) for n in FORMATS[1:]),
    ],
)
def test_an_old_run_draws_the_same_images(old_runs, number):
    run = Path(f"format_{number}")
    out = sample_run(run, SampleJob(num=4, seed=2, out=Path("found.npz")))
    found, expected = (np.load(path)["arr_0"].astype(int) for path in (out, run / "expected.npz"))
    assert found.shape == expected.shape == (4, 8, 8, 1)
    assert np.ptp(expected) > 20
    assert np.abs(found - expected).max() <= 1  # measured: 0


@pytest.mark.guard
@pytest.mark.slow
@pytest.mark.parametrize("number", FORMATS)
def test_an_old_run_continues_with_the_same_metrics(old_runs, number):
    run = Path(f"format_{number}")
    expected = metrics.read(run / "metrics.jsonl")
    assert all(row.validation_loss is None for row in expected)
    with jax.enable_x64(False):  # as on the command line: with 64 bits, other timesteps are drawn
        found = metrics.read(train(load(run).config).metrics)
    assert [row.step for row in found] == [3, 6, 9, 12]
    # Measured: 1.2e-7 on eight devices; the old version had one.
    found, expected = (np.array(rows, float) for rows in (found, expected))  # None is NaN
    np.testing.assert_allclose(found, expected, rtol=1e-5)
