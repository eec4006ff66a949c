"""Two real processes evaluate the images of one training job together."""

import numpy as np
import pytest

from jax_ddpm.runs import metrics
from tests.shared.processes import make_flags, run_together


@pytest.mark.slow
def test_two_processes_measure_the_same_distances_as_one(
    make_config, tmp_path, compile_once, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows, columns = np.mgrid[:28, :28]
    phase = np.arange(40)[:, None, None]
    images = 127.5 * (1 + np.sin(phase + rows / 5) * np.cos(phase / 7 + columns / 4))
    np.save(tmp_path / "images.npy", images.astype(np.uint8))

    def train(name, parallel):
        settings = {"num_steps": 6, "checkpoint_every": 3, "evaluate_every": 3}
        settings |= {"evaluate_images": 64, "keep_best": True, "best_by": "distance"}
        data = {"name": "arrays", "path": tmp_path / "images.npy"}
        config = make_config(tmp_path / name, data=data, train=settings | {"parallel": parallel})
        return ["train", *make_flags(config)]

    run_together([train("two", "pmap")], 2, compile_once)
    run_together([train("one", "jit")], 1, compile_once)
    two, one = (metrics.read(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    assert [row.step for row in two] == [row.step for row in one] == [3, 6]
    for name in ("frechet", "kernel", "score"):
        found, expected = ([getattr(row, name) for row in rows] for rows in (two, one))
        # A pixel that is rounded to its neighbour changes a feature a little.
        np.testing.assert_allclose(found, expected, rtol=1e-3, err_msg=name)  # measured: 3e-6
