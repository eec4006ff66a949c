"""Treat Ctrl-C and SIGTERM as a request to stop when the current step is done."""

import os
import signal
import threading
from types import FrameType, TracebackType


class StopRequest:
    """Inside this context, the first SIGINT or SIGTERM sets `signum`; a second one interrupts.

    Outside the main thread, where Python allows no signal handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, signal.SIGTERM)
            self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = number
        # The signal may arrive inside a print, which must not be entered twice.
        os.write(2, b"\nStopping after this step; press Ctrl-C again to stop without saving.\n")
