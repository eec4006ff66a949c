"""What every kind of data becomes, and what can be asked of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jax_ddpm.data.pictures import Crop, Form, Resize

Split = Literal["train", "test"]


class ImageSource(NamedTuple):
    """Images by number with their class labels, in memory or decoded on demand."""

    images: Any
    """`len(images)` and `images[i]`, uint8 [h, w, c]."""
    labels: Any
    """`labels[i]`, an integer; also `labels.max()`."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.images[0].shape
        return height, width, channels


class Request(NamedTuple):
    """What a caller of `open_source` asks for."""

    path: Path | None = None
    split: Split = "train"
    size: int | None = None
    """Side of the images; None: as they are."""
    channels: int | None = None
    """1: grey, 3: colour; None: as they are."""
    crop: Crop = "center"
    resize: Resize = "bicubic"
    skip_bad: bool = False
    """Leave out unreadable files of a folder."""
    tell: Callable[[str], object] = print
    """Receives the sentence that says what was left out."""

    def form(self, channels: int) -> Form:
        """The form of the images, if those of the data have `channels`."""
        return Form(self.size, self.channels or channels, self.crop, self.resize)
