"""Fetch a file once into the user's cache, and check what it is."""

import hashlib
import os
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.untrusted import explain

CHUNK = 2**20
TIMEOUT = 30  # seconds without an answer


class Download(NamedTuple):
    """A published file that a program needs."""

    url: str
    name: str
    sha256: str
    num_bytes: int


def find_cache() -> Path:
    """The folder of this package in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jax_ddpm"


def fetch_once(
    wanted: Download,
    way_out: str,
    *,
    tell: Callable[[str], object] = print,
    cache: Path | None = None,
) -> Path:
    """Return the path of `wanted` in the cache, and download it if it is not there.

    Raises UserError, which ends in `way_out`, if it cannot be downloaded, or is another file.
    """
    path = (cache or find_cache()) / wanted.name
    if path.is_file():
        require_digest(path, wanted.sha256)
        return path
    tell(f"Downloading {wanted.url} ({wanted.num_bytes / 1e6:.0f} MB) to {path}")
    try:
        write_atomically(path, lambda temporary: _download(wanted, temporary))
    except UserError as error:
        raise UserError(f"{error}: {way_out}") from error
    return path


def require_digest(path: Path, sha256: str) -> None:
    """Raise UserError unless the file has this SHA-256."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise UserError(
            f"{path} has the SHA-256 {found}, but {sha256} was expected: remove it, or give the "
            "right file"
        )


def _download(wanted: Download, path: Path) -> None:
    digest, received = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(wanted.url, timeout=TIMEOUT) as answer, path.open("wb") as file:
            while data := answer.read(CHUNK):
                received += len(data)
                if received > wanted.num_bytes:
                    raise UserError(f"{wanted.url} sends more than {wanted.num_bytes:,} bytes")
                digest.update(data)
                file.write(data)
    except OSError as error:  # urllib's errors are OSErrors too
        inner = getattr(error, "reason", error)
        reason = explain(inner) if isinstance(inner, BaseException) else inner
        raise UserError(f"{wanted.url} could not be downloaded ({reason})") from error
    if digest.hexdigest() != wanted.sha256:
        raise UserError(
            f"{wanted.url} sent another file ({received:,} bytes, SHA-256 {digest.hexdigest()})"
        )
