"""How the fuzz tests damage valid files, and what every reader must do with them."""

import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st

from jax_ddpm.errors import MAX_LENGTH, UserError

SECONDS = 30  # a reader that takes longer for a few kilobytes hangs
SMALL = [0, 1, 2, 3, 4, 8, 16, 127, 128, 255, 256, 32767, 65535]
INTERESTING = [*SMALL, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1]
FORMATS = [">B", ">H", "<H", ">I", "<I", ">Q", "<Q"]
JUNK = [b"", b"\0", b"\xff" * 4, b"{", b"}", b"[" * 50, b'"', b"NaN", b"-1", b"../../x", b"9" * 30]
JUNK += [b"\x1f\x8b", b"PK\x03\x04"]  # the beginnings of gzip and ZIP files


@st.composite
def offsets(draw: Any, length: int) -> int:
    """An offset in a file: near its beginning, near its end, or anywhere."""
    near = min(64, length)
    where = draw(st.sampled_from(["head", "any", "tail"]))
    if where == "head":
        return draw(st.integers(0, near))
    if where == "tail":
        return length - draw(st.integers(0, near))
    return draw(st.integers(0, length))


@st.composite
def corruptions(draw: Any, data: bytes, times: int = 4) -> bytes:
    """`data` after up to `times` changes: flipped bits, other numbers, lost or repeated parts."""
    for _ in range(draw(st.integers(1, times))):
        at, other = draw(offsets(len(data))), draw(offsets(len(data)))
        first, last = sorted([at, other])
        match draw(st.sampled_from(["flip", "number", "cut", "end", "repeat", "insert", "swap"])):
            case "flip" if at < len(data):
                flipped = data[at] ^ (1 << draw(st.integers(0, 7)))
                data = data[:at] + bytes([flipped]) + data[at + 1 :]
            case "number":
                form = draw(st.sampled_from(FORMATS))
                size = struct.calcsize(form)
                value = draw(st.sampled_from(INTERESTING)) % 256**size
                data = data[:at] + struct.pack(form, value) + data[at + size :]
            case "cut":
                data = data[:first] + data[last:]
            case "end":
                data = data[:at]
            case "repeat":
                data = data[:last] + data[first:last] + data[last:]
            case "insert":
                data = data[:at] + draw(st.sampled_from(JUNK)) + data[at:]
            case "swap":
                data = data[last:] + data[first:last] + data[:first]
    return data


def valid_or_damaged(valid: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Files from `valid`, damaged ones, and sometimes bytes that never were a file."""
    return st.one_of(
        valid, valid.flatmap(corruptions), valid.flatmap(corruptions), st.binary(max_size=200)
    )


@contextmanager
def limit_time(seconds: float) -> Iterator[None]:
    """Raise TimeoutError if the block takes longer."""

    def stop(signum: int, frame: Any) -> None:
        raise TimeoutError(f"no answer after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read_or_refuse(call: Callable[[], Any]) -> Any:
    """Return what `call` does, or None if it raises a clear UserError without exhausting memory."""
    try:
        with limit_time(SECONDS):
            return call()
    except UserError as error:
        require_clear(error)
        return None


def require_clear(error: UserError) -> None:
    """Require one printable sentence that is not caused by exhausted memory or time."""
    text = str(error)
    assert 10 < len(text) <= MAX_LENGTH + 10, text
    assert text.isprintable(), text
    cause: BaseException | None = error
    while cause is not None:
        assert not isinstance(cause, MemoryError | TimeoutError), repr(cause)
        cause = cause.__cause__ or cause.__context__


EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))
