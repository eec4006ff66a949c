"""Compiled programs kept on disk, so that a command compiles them only the first time."""

import hashlib
import os
import platform
import stat
import sys
import warnings
import zlib
from pathlib import Path

import jax

VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own
OFF = "off"
MIN_SECONDS = 0.1  # compilation that takes less is not worth a file
MAX_BYTES = 2 * 2**30
STAMP = ".checked"


def enable_compilation_cache(where: str | Path | None = None) -> Path | str | None:
    """Keep compiled programs in the folder `where`, and return it; None if they are not kept.

    By default, the environment variable JAX_COMPILATION_CACHE_DIR names the folder; without it, it
    is a private one in the user's cache. "off" turns the cache off. Whoever can write to the folder
    can run code in this process, so a folder that others can write to is refused with a sentence on
    stderr, and programs are compiled as without a cache. Several processes may share a folder.
    """
    given = str(where or os.environ.get(VARIABLE, ""))
    if given == OFF:
        jax.config.update("jax_compilation_cache_dir", None)
        return None
    if "://" in given:  # a bucket, which JAX reads and writes
        jax.config.update("jax_compilation_cache_dir", given)
        return given
    folder = Path(given).expanduser() if given else find_default_folder()
    try:
        prepare_folder(folder, private=not given)
    except OSError as error:
        reason = error.strerror or str(error)
        print(f"Compiled programs are not cached: {folder} {reason}", file=sys.stderr, flush=True)
        jax.config.update("jax_compilation_cache_dir", None)
        return None
    configure_jax(folder)
    return folder


def find_default_folder() -> Path:
    """The folder for programs compiled for this kind of machine, in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "jax_ddpm" / "xla" / hash_processor()


def hash_processor() -> str:
    """A short name for what the processor can do: on another one, a program may be illegal."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        features = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:8]


def prepare_folder(folder: Path, *, private: bool) -> None:
    """Make `folder` if it does not exist, check who can write to it, and tidy it up.

    A `private` one must belong to this user alone; any other must not be writable by everybody.
    Raises OSError, its text the end of a sentence that begins with the folder.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if private and found.st_uid != os.getuid():
        raise OSError("belongs to another user")
    others = stat.S_IWOTH | (stat.S_IWGRP if private else 0)
    if found.st_mode & others:
        raise OSError(f"can be written to by others: chmod go-w {folder}, or choose another")
    remove_broken_entries(folder)
    remove_oldest_entries(folder)


def remove_broken_entries(folder: Path) -> None:
    """Remove entries that a killed process left half-written since the last check.

    JAX would complain about them at every start and never replace them.
    """
    stamp = folder / STAMP
    checked = stamp.stat().st_mtime if stamp.exists() else 0.0
    for entry in list_entries(folder):
        if entry.stat().st_mtime >= checked and not is_readable(entry):
            entry.unlink(missing_ok=True)
    stamp.touch()


def is_readable(entry: Path) -> bool:
    """Whether an entry that JAX compressed with zlib is whole; of any other kind, True."""
    data = entry.read_bytes()
    if data[:1] != b"\x78":
        return len(data) > 0
    try:
        zlib.decompress(data)
    except zlib.error:
        return False
    return True


def remove_oldest_entries(folder: Path, limit: int = MAX_BYTES) -> None:
    """Remove the entries that were used longest ago until the rest takes at most `limit` bytes.

    JAX's own limit needs a package that this one does not, and locks that some disks lack.
    """
    found = [(entry, entry.stat()) for entry in list_entries(folder)]
    total = sum(about.st_size for _, about in found)
    for entry, about in sorted(found, key=lambda pair: max(pair[1].st_atime, pair[1].st_mtime)):
        if total <= limit:
            return
        entry.unlink(missing_ok=True)
        total -= about.st_size


def list_entries(folder: Path) -> list[Path]:
    """The files of compiled programs in `folder`."""
    return sorted(folder.glob("*-cache"))


def configure_jax(folder: Path) -> None:
    """Have JAX use `folder`, also for programs that compile fast, and never stop at an error."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
    # Another process may be writing the entry that this one reads: it compiles for itself then.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
