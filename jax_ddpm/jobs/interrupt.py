"""Answer Ctrl-C, SIGTERM and SIGHUP: end at once if nothing can be lost, otherwise save first.

This module imports nothing but the standard library: signals are answered while the others are
imported.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn

from jax_ddpm.jobs.display import is_stopping, write_last

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
BEFORE = "before the first step: nothing is lost; run the same command again"

_doing: list[str] = []  # what the main thread is at, if it takes long


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Name what takes long inside this context, for the sentence that answers a signal."""
    _doing.append(what)
    try:
        yield
    finally:
        _doing.remove(what)


class StopRequest:
    """Inside this context, the first signal sets `signum`, and a second one ends the job.

    In a command, a signal ends the process at once as long as nothing can be lost (see `protect`
    and `release`), and so does a second one. In other programs, the second one raises
    KeyboardInterrupt; outside the main thread, where Python allows no signal handlers, nothing
    happens there.
    """

    def __init__(self, loss: str | None = BEFORE) -> None:
        """`loss` says what a process that ends at once leaves; None if it may not."""
        self.signum: int | None = None
        self._loss, self._lock = loss, threading.Lock()
        self._before: dict[int, Any] = {}

    def protect(self) -> None:
        """From now on there is something to save: a signal is a request."""
        with self._lock:
            self._loss = None

    def release(self, loss: str) -> int | None:
        """From now on everything is saved: a signal ends a command at once, saying `loss`.

        Returns the signal that has arrived before, if there is one.
        """
        with self._lock:
            self._loss = loss
            return self.signum

    def receive(self, number: int, end: Callable[[int, str, bool], None]) -> None:
        """Note the signal `number` and say so, or call `end(number, sentence, is_forced)`."""
        with self._lock:
            if self.signum is not None:
                end(number, "Stopped without saving the last steps", True)
            elif self._loss is not None:
                end(number, f"Stopped {self._loss}", False)
            self.signum = self.signum or number
        say_stopping()

    def __enter__(self) -> "StopRequest":
        if _commands:
            _commands[-1].request = self
        elif threading.current_thread() is threading.main_thread():
            self._before = install(self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if _commands:
            _commands[-1].request, _commands[-1].loss = None, ""
        restore(self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = number
        say_stopping()


def say_stopping() -> None:
    """Say that the job stops, and what must end first."""
    # The signal may arrive inside a print, which must not be entered twice.
    when = f": {_doing[-1]} must end first" if _doing else " after this step"
    write_last(f"\nStopping{when}. Press Ctrl-C again to stop without saving.")


def install(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Let `handler` handle the signals; return the handlers from before, for `restore`.

    An ignored SIGHUP stays ignored: `nohup` asks for that.
    """
    numbers = [n for n in NAMES if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def restore(handlers: dict[int, Any]) -> None:
    """Undo `install`."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Command:
    """How a command answers signals: `request` decides, or if there is none, the process ends."""

    def __init__(self, *, saves: bool) -> None:
        """A command that `saves` on request ends with 0 after SIGTERM and SIGHUP."""
        self.request: StopRequest | None = None
        self.loss = BEFORE if saves else ""
        self._saves = saves
        self._read, self._write = os.pipe()

    def listen(self) -> None:
        """Answer the signals that arrive in the pipe."""
        while received := os.read(self._read, 1):
            if received[0] in NAMES:
                self.answer(received[0])

    def answer(self, number: int) -> None:
        """Answer the signal `number`."""
        is_stopping.set()
        if self.request is not None:
            self.request.receive(number, self.end)
        else:
            self.end(number, f"Stopped {self.loss}" if self.loss else "Stopped", False)

    def end(self, number: int, sentence: str, is_forced: bool) -> NoReturn:
        """End the process, without leaving half-written files."""
        write_last(f"\n{sentence} ({NAMES[signal.Signals(number)]})")
        atomic = sys.modules.get("jax_ddpm.files.atomic")
        with suppress(Exception):  # whatever happens, the process ends
            if atomic is not None:
                atomic.remove_unfinished()
        is_request = self._saves and not is_forced and number != signal.SIGINT
        os._exit(0 if is_request else 128 + number)

    def start(self) -> None:
        """Answer signals from now on.

        A thread answers, so that calls of compiled code, which Python's own handlers wait for,
        delay nothing.
        """
        os.set_blocking(self._write, False)
        install(lambda number, frame: None)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self.listen, daemon=True).start()


_commands: list[Command] = []  # at most one


def answer_signals(*, saves: bool = False) -> None:
    """Answer signals for the command that this process is, until it ends.

    A command that `saves` uses a StopRequest and ends with 0 after SIGTERM and SIGHUP. All others
    end at once with 128 and the number of the signal.
    """
    if threading.current_thread() is threading.main_thread():
        command = Command(saves=saves)
        _commands.append(command)
        os.register_at_fork(after_in_child=forget)  # a forked process starts afresh
        command.start()


def forget() -> None:
    """Answer no signals in a forked process: the pipe is its parent's."""
    if _commands:
        _commands.clear()
        signal.set_wakeup_fd(-1)
        for number in NAMES:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
