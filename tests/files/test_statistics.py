import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.files.statistics import read_statistics, write_statistics
from jax_ddpm.quality.frechet import fit_gaussian

SAVED = {"mu": np.zeros(3, np.float32), "sigma": np.eye(3)}


def test_statistics_go_out_and_come_back(tmp_path):
    found = fit_gaussian(np.random.default_rng(0).standard_normal((9, 4)))
    write_statistics(tmp_path / "s.npz", found)
    with np.load(tmp_path / "s.npz") as file:
        assert sorted(file) == ["mu", "sigma"]
    back = read_statistics(tmp_path / "s.npz")
    np.testing.assert_array_equal(back.mean, found.mean)
    np.testing.assert_allclose(back.covariance, found.covariance, rtol=1e-15)  # measured: 0


def test_files_of_other_tools_are_read(tmp_path):
    others = SAVED | {"mu_s": np.zeros(2), "arr_0": np.zeros((2, 8, 8, 3), np.uint8)}
    np.savez_compressed(tmp_path / "of_adm.npz", **others)
    assert read_statistics(tmp_path / "of_adm.npz").covariance.dtype == np.float64


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "holds mu, but statistics are called mu and sigma"),
        ({"feats": np.zeros((9, 3))}, "holds feats"),
        (SAVED | {"sigma": np.eye(4)}, "expected real numbers of shapes"),
        (SAVED | {"mu": np.array(["a", "b", "c"])}, "expected real numbers"),
        (SAVED | {"sigma": np.full((3, 3), np.inf)}, "not finite"),
        (SAVED | {"sigma": np.triu(np.ones((3, 3)))}, "not symmetric"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_statistics(tmp_path / "s.npz")


def test_pickles_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"torch-fidelity's cache .* could run code"):
        read_statistics(tmp_path / "cifar10-train-inception-stat-fid-2048.pt")
    with pytest.raises(UserError, match="there is no file"):
        read_statistics(tmp_path / "ref.npz")
