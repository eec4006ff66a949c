"""What libraries warn of, as one line each: once, without a path, and not at all if harmless."""

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jax_ddpm.errors import one_line

# The library does the right thing anyway, or our own messages say it.
HARMLESS = (
    "Some donated buffers were not usable",  # jax: they are copied
    "os.fork() was called",  # jax: our forks run no JAX
    "Sharding info not provided when restoring",  # orbax: we restore to one device on purpose
    "Glyph .* missing from",  # matplotlib: a name in a script that its font lacks
    "An NVIDIA GPU may be present",  # jax: the summary of every run names the device
)


@contextmanager
def short_library_messages() -> Iterator[None]:
    """Show warnings and log messages of libraries on stderr as lines that begin with "note"."""
    seen: set[str] = set()

    def tell(library: str, message: object) -> None:
        line = one_line(f"note from {library}: {message}")
        if line in seen or any(re.search(harmless, line) for harmless in HARMLESS):
            return
        seen.add(line)
        from tqdm.auto import tqdm

        tqdm.write(line, file=sys.stderr)  # above a progress bar

    def show(message: Any, category: Any, filename: str, *rest: Any) -> None:
        tell(name_library(filename), message)

    handler, before = Handler(tell), warnings.showwarning
    warnings.showwarning = show  # type: ignore[assignment]
    logging.getLogger().addHandler(handler)  # so that no library adds one of its own
    try:
        yield
    finally:
        warnings.showwarning = before
        logging.getLogger().removeHandler(handler)


class Handler(logging.Handler):
    """Pass on what is logged as a warning or worse."""

    def __init__(self, tell: Any) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Tell the message and the library that logged it."""
        self._tell(record.name.partition(".")[0], record.getMessage())


def name_library(filename: str) -> str:
    """The package that a source file belongs to: the folder below site-packages, or its own."""
    parts = Path(filename).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1].removesuffix(".py")
    return Path(filename).stem
