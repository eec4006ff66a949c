"""What a command prints, so that no error of a terminal, pipe or log file ends its work.

This module imports nothing but the standard library: it is in use while the others are imported.
"""

import errno
import io
import os
import select
import sys
import threading
from contextlib import suppress
from typing import Any

CHUNK = 4096  # bytes that a pipe takes without blocking if it takes any
WAIT = 0.5  # seconds between two looks at a reader that is stuck
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN)  # the next write may succeed
NAMES = {1: "stdout", 2: "stderr"}

is_stopping = threading.Event()  # from then on, nothing waits for a reader
_broken: set[int] = set()  # descriptors that nobody reads any more


class Output(io.RawIOBase):
    """Descriptor 1 or 2 as a stream. What cannot be written is dropped, and said once.

    If the output `is_the_job`, as a table or a help text is, the first error is raised instead.
    """

    def __init__(self, descriptor: int, *, is_the_job: bool = False) -> None:
        super().__init__()
        self._descriptor, self._is_the_job, self._has_failed = descriptor, is_the_job, False

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Write all of `data` if possible; count it as written in any case."""
        try:
            write_all(self._descriptor, data)
        except OSError as error:
            self._handle(error)
        return len(data)

    def _handle(self, error: OSError) -> None:
        """Stop writing for ever, unless the error may pass; raise it or say it once."""
        first, self._has_failed = not self._has_failed, True
        if self._is_the_job or error.errno not in PASSING:
            _broken.add(self._descriptor)
            open_null(self._descriptor)  # compiled code writes there too
        if self._is_the_job:
            raise OSError(error.errno, error.strerror, NAMES[self._descriptor])
        if first:
            name = NAMES[self._descriptor]
            note = f"{name} cannot be written ({error.strerror}): the command goes on without it\n"
            with suppress(OSError):
                write_all(3 - self._descriptor, note.encode())


def write_all(descriptor: int, data: Any) -> None:
    """Write `data`. Waits for a slow reader, but not once the command is stopping."""
    rest = memoryview(data)
    while rest:
        while not select.select([], [descriptor], [], WAIT)[1]:
            if is_stopping.is_set():
                return
        rest = rest[os.write(descriptor, rest[:CHUNK]) :]


def write_last(sentence: str) -> None:
    """Write one of the last sentences of a command on stderr.

    If what read our output is gone, as `tee` is after Ctrl-C, it is written on the terminal.
    """
    line = f"{sentence}\n".encode(errors="backslashreplace")
    if not _broken:
        try:
            return write_all(2, line)
        except OSError:
            pass
    with suppress(OSError):
        terminal = os.open("/dev/tty", os.O_WRONLY | os.O_NOCTTY)
        write_all(terminal, line)
        os.close(terminal)


def tell_last(sentence: str) -> None:
    """Print the last sentence of a command, and if nobody reads that, write it on the terminal."""
    print(sentence, flush=True)
    if _broken:
        write_last(sentence)


def protect_streams(*, is_the_job: bool = False) -> None:
    """From now on, no error of stdout or stderr reaches the program; if it `is_the_job`, of stderr.

    Streams that somebody has replaced, such as a test, are left alone.
    """
    if sys.stdout is sys.__stdout__:
        sys.stdout = _make_stream(sys.stdout, Output(1, is_the_job=is_the_job))
    if sys.stderr is sys.__stderr__:
        sys.stderr = _make_stream(sys.stderr, Output(2))


def open_closed_streams() -> None:
    """Open descriptors 0, 1 and 2 where the caller has closed them.

    Otherwise files of a run would get these numbers, and what is printed would end up in them.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            open_null(descriptor)


def _make_stream(stream: Any, output: Output) -> io.TextIOWrapper:
    """Make a text stream on `output` that writes each line at once, and any text."""
    if stream is not None:
        with suppress(OSError):
            stream.flush()
    encoding = getattr(stream, "encoding", None) or "utf-8"
    buffer = io.BufferedWriter(output)
    return io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=True)


def open_null(descriptor: int) -> None:
    """Let what is written to `descriptor` vanish."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)


class Quiet:
    """A stream that drops what `stream` cannot take; otherwise the same."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` if possible."""
        with suppress(OSError, ValueError, AttributeError):  # closed, or None
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if possible."""
        with suppress(OSError, ValueError, AttributeError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:  # tqdm compares its streams with stdout and stderr
        return bool(self._stream == getattr(other, "_stream", other))

    def __hash__(self) -> int:
        return hash(self._stream)
