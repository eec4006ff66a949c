"""Ctrl-C and SIGTERM as a request to stop at the next good moment."""

import os
import signal
from types import FrameType, TracebackType


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets `signum`; a second one interrupts at once."""

    def __init__(self) -> None:
        """Nothing is asked for yet."""
        self.signum: int | None = None

    def __enter__(self) -> "StopRequest":
        """Take over both signals."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give both signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = number
        # Not print: the signal may come in the middle of another one.
        os.write(2, b"\nStopping and saving after this step; once more stops without.\n")
