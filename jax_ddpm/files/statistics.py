"""Statistics of features as .npz files, as pytorch-fid, clean-fid, EDM and others share them."""

from pathlib import Path

import numpy as np

from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.untrusted import read_npz
from jax_ddpm.quality.frechet import Gaussian

PICKLES = (".pt", ".pth", ".pkl", ".pickle")


def read_statistics(path: Path) -> Gaussian:
    """Read `mu` and `sigma`, the mean and covariance of features, from an .npz file.

    pytorch-fid (--save-stats), clean-fid, EDM (ref.npz) and guided-diffusion write such files.
    Raises UserError for other files, and for pickles such as torch-fidelity's cache, which could
    run code.
    """
    if path.suffix.lower() in PICKLES:
        raise UserError(
            f"{path} is a pickle, such as torch-fidelity's cache or EDM2's references, and is "
            "refused because reading it could run code: give an .npz file with mu and sigma"
        )
    if not path.is_file():
        raise UserError(f"there is no file {path}: give an .npz file of statistics")
    arrays = read_npz(path)
    if not {"mu", "sigma"} <= arrays.keys():
        held = ", ".join(arrays) or "nothing"
        raise UserError(
            f"{path} holds {held}, but statistics are called mu and sigma, the mean and the "
            "covariance of features"
        )
    return _check(arrays["mu"], arrays["sigma"], path)


def _check(mu: np.ndarray, sigma: np.ndarray, path: Path) -> Gaussian:
    numbers = np.issubdtype(mu.dtype, np.floating) and np.issubdtype(sigma.dtype, np.floating)
    mu = mu.reshape(-1) if mu.ndim == 2 and len(mu) == 1 else mu
    if not numbers or mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(
            f"{path} holds mu {mu.dtype}{mu.shape} and sigma {sigma.dtype}{sigma.shape}: expected "
            "real numbers of shapes (d,) and (d, d)"
        )
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path} holds numbers that are not finite")
    largest = np.abs(sigma).max()
    if np.abs(sigma - sigma.T).max() > 1e-5 * largest or (np.diag(sigma) < -1e-9 * largest).any():
        raise UserError(f"{path}: sigma is not a covariance, because it is not symmetric")
    return Gaussian(mu, (sigma + sigma.T) / 2)


def write_statistics(path: Path, statistics: Gaussian) -> None:
    """Write `mu` and `sigma` as the tools that `read_statistics` names read them."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # NumPy would append .npz to a file name
            np.savez(file, mu=statistics.mean, sigma=statistics.covariance)

    write_atomically(path, write)
