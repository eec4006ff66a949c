"""Check for the packages that only comparisons with PyTorch need."""

from importlib.util import find_spec

from jax_ddpm.errors import UserError

NAMES = {"torch": "PyTorch", "diffusers": "diffusers"}


def require_packages(what: str, *packages: str) -> None:
    """Raise UserError, with the command that installs them, if `what` needs missing packages."""
    missing = [NAMES[package] for package in packages if find_spec(package) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{what} needs {' and '.join(missing)}, which {are} not installed: "
            "pip install 'jax_ddpm[parity]'"
        )
