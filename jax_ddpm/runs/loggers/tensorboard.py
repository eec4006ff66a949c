"""TensorBoard, by its own messages and record writer.

Its asynchronous writer is not used: with it, an error would appear in another thread, and later.
"""

import io
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from jax_ddpm.files.atomic import open_new, report_disk_errors

FILE_VERSION = "brain.Event:2"  # from this version on, a session start makes readers forget steps


class Board:
    """An event file in `folder`, created when it begins.

    Every method writes its events before it returns, and raises UserError if it cannot.
    """

    title = "TensorBoard's log"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None

    def begin(self, step: int, settings: Mapping[str, Any]) -> None:
        """Make TensorBoard discard the events after `step` in older files; show the settings."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._write(step + 1, session_log=SessionLog(status=SessionLog.START))
        self._write(step, summary=make_text("settings", format_table(settings)))

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a value to each of several curves."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        entries = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=Summary(value=entries))

    def add_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Show the image `pixels` (uint8 [h, w, c])."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        height, width, channels = pixels.shape
        image = Summary.Image(height=height, width=width, colorspace=channels)
        image.encoded_image_string = encode_png(pixels)
        self._write(step, summary=Summary(value=[Summary.Value(tag=name, image=image)]))

    def close(self) -> None:
        """Close the file; every event has been flushed, or reported."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        def write(**more: Any) -> None:
            event = Event(wall_time=time.time(), step=step, **more)
            RecordWriter(self._file).write(event.SerializeToString())

        with report_disk_errors(self._folder):
            try:
                if self._file is None:
                    self._folder.mkdir(parents=True, exist_ok=True)
                    self._file = open_event_file(self._folder)
                    write(file_version=FILE_VERSION)
                write(**content)
                self._file.flush()
            except OSError:
                self.close()  # after half a record, the next event needs another file
                raise


def open_event_file(folder: Path) -> BinaryIO:
    """Open a new file under a name that TensorBoard recognises and no other process uses."""
    name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
    return open_new(folder / name)


def make_text(name: str, text: str) -> Any:
    """Make a summary that TensorBoard shows as text, in Markdown."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    plugin = SummaryMetadata.PluginData(plugin_name="text")
    tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()])
    metadata = SummaryMetadata(plugin_data=plugin)
    return Summary(value=[Summary.Value(tag=name, metadata=metadata, tensor=tensor)])


def format_table(settings: Mapping[str, Any]) -> str:
    """The settings as a table in Markdown."""
    rows = (f"| {name} | `{value}` |" for name, value in settings.items())
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 pixels [h, w, c], grey or colour, as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()
