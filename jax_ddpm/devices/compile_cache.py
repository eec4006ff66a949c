"""Keep compiled programs on disk, so that a command compiles them only the first time."""

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
MIN_SECONDS = 0.0  # a start needs dozens of programs that take a few hundredths of a second each
MAX_BYTES = 2 * 2**30
STAMP = ".checked"


def enable_compilation_cache(where: str | Path | None = None) -> Path | str | None:
    """Keep compiled programs in the folder `where`, and return it; None if they are not kept.

    The default is the folder in the environment variable JAX_COMPILATION_CACHE_DIR, or else a
    private one in the user's cache. "off" turns the cache off. Whoever can write to the folder can
    run code in this process. So a folder that others can write to is refused: a message on stderr
    says why, and the cache stays off. Several processes may share a folder.
    """
    given = str(where or os.environ.get(VARIABLE, ""))
    if given == OFF:
        jax.config.update("jax_compilation_cache_dir", None)
        return None
    if "://" in given:  # a storage bucket, which JAX itself reads and writes
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
    """The folder in the user's cache for programs compiled for this kind of machine."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "jax_ddpm" / "xla" / hash_processor()


def hash_processor() -> str:
    """Hash the processor's features; a program may use instructions that another one lacks."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        features = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:8]


def prepare_folder(folder: Path, *, private: bool) -> None:
    """Make `folder` if it does not exist, check who can write to it, and tidy it up.

    A `private` folder must belong to this user alone; any other must not be writable by everybody.
    Raises OSError whose text completes a sentence that begins with the folder.
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

    JAX would warn about them at every start and never replace them.
    """
    stamp = folder / STAMP
    checked = stamp.stat().st_mtime if stamp.exists() else 0.0
    for entry in list_entries(folder):
        if entry.stat().st_mtime >= checked and not is_readable(entry):
            entry.unlink(missing_ok=True)
    stamp.touch()


def is_readable(entry: Path) -> bool:
    """Whether an entry is complete, as far as can be told: zlib data can be checked, others not."""
    data = entry.read_bytes()
    if data[:1] != b"\x78":
        return len(data) > 0
    try:
        zlib.decompress(data)
    except zlib.error:
        return False
    return True


def remove_oldest_entries(folder: Path, limit: int = MAX_BYTES) -> None:
    """Remove the least recently used entries until the rest takes at most `limit` bytes.

    JAX's own limit would need another package, and file locks that some disks lack.
    """
    found = [(entry, entry.stat()) for entry in list_entries(folder)]
    total = sum(about.st_size for _, about in found)
    for entry, about in sorted(found, key=lambda pair: max(pair[1].st_atime, pair[1].st_mtime)):
        if total <= limit:
            return
        entry.unlink(missing_ok=True)
        total -= about.st_size


def list_entries(folder: Path) -> list[Path]:
    """List the files of compiled programs in `folder`."""
    return sorted(folder.glob("*-cache"))


def configure_jax(folder: Path) -> None:
    """Make JAX use `folder`, also for fast compilations; its errors cost only a compilation."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
    # Another process may be writing the entry that this one reads; JAX then compiles again.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
