"""Messages of a working job: sentences, how long things took, and a progress bar."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
from tqdm.auto import tqdm

from jax_ddpm.devices.processes import is_main_process
from jax_ddpm.errors import escape
from jax_ddpm.jobs.display import Quiet
from jax_ddpm.jobs.interrupt import doing

T = TypeVar("T")

SLOW = 1.0  # seconds after which a wait is worth a sentence


def tell(message: str) -> None:
    """Print `message` immediately, above the progress bar if there is one.

    It may quote names from outside, so characters that a terminal might obey are escaped.
    """
    tqdm.write("\n".join(map(escape, message.split("\n"))), file=Quiet(sys.stdout))
    Quiet(sys.stdout).flush()


@contextmanager
def tell_if_slow(message: str, *, delay: float = SLOW) -> Iterator[None]:
    """Print `message` if the block takes longer than `delay` seconds, and then how long it took."""
    start, told = time.monotonic(), threading.Event()

    def tell_now() -> None:
        told.set()
        tell(message)

    timer = threading.Timer(delay, tell_now)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if told.is_set():
        tell(f"... done in {time.monotonic() - start:.1f} s")


def announce_compilation(program: Callable[..., T], what: str) -> Callable[..., T]:
    """Wrap the compiled function `program` to print a message whenever it compiles.

    It compiles at the first call for each shape of its arguments, except for the first argument,
    the parameters or the state, whose shapes never change.
    """
    seen = set()

    def call(first: Any, *rest: Any) -> T:
        shapes = tuple(getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(rest))
        if shapes in seen:
            return program(first, *rest)
        seen.add(shapes)
        then = ", then cached" if getattr(jax.config, "jax_compilation_cache_dir", None) else ""
        duration = f"{what} (about 20 s the first time{then})"
        with doing(f"compiling {duration}"), tell_if_slow(f"Compiling {duration}"):
            return program(first, *rest)

    return call


def make_bar(total: int, unit: str, *, initial: int = 0) -> Any:
    """Make a progress bar for a terminal or a Jupyter notebook; only process 0 shows it.

    If the output goes elsewhere, such as to a log file, it is printed every ten seconds.
    """
    notebook = "ipykernel" in sys.modules
    try:
        watched = notebook or sys.stderr.isatty()
        sys.stderr.flush()  # tqdm does that too
    except (OSError, ValueError, AttributeError):  # closed, full, or None: nobody sees the bar
        return tqdm(total=total, initial=initial, disable=True)
    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        dynamic_ncols=True,
        mininterval=0.1 if watched else 10,
        disable=not is_main_process(),
        file=None if notebook else Quiet(sys.stderr),
    )
