"""TensorBoard's files, written at once: an error shows where it happens, not in a thread."""

import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import image, scalar

from jax_ddpm.files.atomic import report_disk_errors


class Board:
    """An event file in `folder`, made with the first event. Raises UserError if the disk does."""

    def __init__(self, folder: Path) -> None:
        """`folder`: where TensorBoard looks; its older files stay as they are."""
        self._folder = folder
        self._writer: EventsWriter | None = None

    def start_after(self, step: int) -> None:
        """Have TensorBoard forget what older files say of the steps after `step`."""
        started = SessionLog(status=SessionLog.START)
        self._write(Event(step=step + 1, file_version="brain.Event:2"))
        self._write(Event(step=step + 1, session_log=started))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Show `value` at `step` of the curve `name`."""
        self._write(Event(step=step, summary=scalar(name, value)))

    def add_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Show the image `pixels` (uint8 [h, w, c]) at `step`."""
        self._write(Event(step=step, summary=image(name, pixels, dataformats="HWC")))

    def __enter__(self) -> "Board":
        """The board itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file; every event is in it already."""
        if self._writer is not None:
            with report_disk_errors(self._folder) if error is None else suppress(OSError):
                self._writer.close()

    def _write(self, event: Any) -> None:
        with report_disk_errors(self._folder):
            if self._writer is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                suffix = f".{os.getpid()}"  # two starts within a second write two files
                self._writer = EventsWriter(str(self._folder / "events"), suffix)
            event.wall_time = time.time()
            self._writer.write_event(event)
            self._writer.flush()
