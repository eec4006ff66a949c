"""The grids that training draws."""

from types import SimpleNamespace

import jax
import numpy as np

from jax_ddpm.jobs import train_records
from jax_ddpm.jobs.generate import Samples
from jax_ddpm.jobs.train_setup import Job
from jax_ddpm.runs.folder import Run


def test_a_grid_that_does_not_fit_is_drawn_in_smaller_parts(make_config, tmp_path, monkeypatch):
    """The images are the same, up to rounding, and the user learns which flag avoids the search."""
    tried, told = [], []

    def generate_images(generate, params, num, *, batch_size, **settings):
        tried.append(batch_size)
        if batch_size > 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        for first in range(0, num, batch_size):
            n = min(batch_size, num - first)
            yield Samples(np.zeros((n, 8, 8, 1), np.uint8), np.zeros((0, n, 8, 8, 1), np.uint8))

    config = make_config(tmp_path, train={"sample_images": 10, "sample_batch_size": 9})
    run, parts = Run(tmp_path, config, (8, 8, 1)), SimpleNamespace(num_labels=None)
    job = Job(**dict.fromkeys(Job._fields))._replace(run=run, parts=parts)
    monkeypatch.setattr(train_records, "generate_images", generate_images)
    monkeypatch.setattr(train_records, "tell", told.append)
    assert len(train_records.draw_in_parts(job, None, 10, False).images) == 10
    assert tried == [9, 5, 3]
    assert "drawing 3 at a time (--train.sample-batch-size)" in told[-1]
