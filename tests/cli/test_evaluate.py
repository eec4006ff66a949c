"""The command line of evaluate."""

import pytest

from jax_ddpm.cli.evaluate import read
from jax_ddpm.errors import UserError


def test_the_fields_names_of_measures_are_read():
    job = read(["RUN", "--measures", "fid", "prdc", "--num", "40"]).flags.job
    assert job.measures == ("frechet", "precision", "density")
    assert job.num == 40
    assert read(["RUN"]).flags.job.measures == ()


def test_a_misspelt_measure_is_an_error_that_names_the_nearest():
    with pytest.raises(UserError, match=r"--measures is 'inception_scor', .*'inception_score'"):
        read(["RUN", "--measures", "inception_scor"])
