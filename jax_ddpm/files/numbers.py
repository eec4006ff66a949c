"""Read a list of numbers from a file."""

from io import BytesIO
from pathlib import Path

import numpy as np

from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import explain, read_bounded

MAX_BYTES = 2**20


def read_numbers(path: Path) -> tuple[float, ...]:
    """Read the numbers in a .npy file, or in a text file with spaces, commas or lines between them.

    Raises UserError if the file cannot be read or holds anything else.
    """
    try:
        data = read_bounded(path, MAX_BYTES)
        if data.startswith(b"\x93NUMPY"):
            values = np.load(BytesIO(data), allow_pickle=False)
        else:
            values = np.array([float(word) for word in data.decode().replace(",", " ").split()])
        numbers = np.asarray(values, np.float64)
    except UserError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read as a list of numbers: {explain(error)}") from error
    if numbers.ndim != 1 or not len(numbers):
        raise UserError(
            f"{path} has numbers of shape {numbers.shape}, but it must hold a list of them"
        )
    return tuple(map(float, numbers))
