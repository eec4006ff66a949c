"""The packages that only a comparison with PyTorch needs."""

from importlib.util import find_spec

from jax_ddpm.errors import UserError

NAMES = {"torch": "PyTorch", "diffusers": "diffusers"}


def require_packages(what: str, *packages: str) -> None:
    """Raise UserError, with the command that installs them, if `what` needs missing packages."""
    missing = [NAMES[package] for package in packages if find_spec(package) is None]
    if missing:
        raise UserError(
            f"{what} needs {' and '.join(missing)}, not installed here: "
            "pip install 'jax_ddpm[parity]'"
        )
