"""The types that all kinds of data share: the image source, and the request for one."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jax_ddpm.data.pictures import Crop, Form, Resize
from jax_ddpm.files.untrusted import follow_inside

Split = Literal["train", "test"]


class ImageSource(NamedTuple):
    """Images and their class labels, by index, in memory or decoded on demand."""

    images: Any
    """Supports `len(images)`, and `images[i]`, uint8 [h, w, c]."""
    labels: Any
    """Supports `labels[i]`, an integer, and `labels.max()`."""
    class_names: tuple[str, ...] = ()
    """The name of each class, if they are known."""
    left_out: tuple[tuple[str, int], ...] = ()
    """Kinds of files that are not read, and how many there are of each."""

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
    """Side of the images; None: keep their size."""
    channels: int | None = None
    """1: grey, 3: colour; None: keep their channels."""
    crop: Crop = "center"
    resize: Resize = "bicubic"
    skip_bad: bool = False
    """Leave out unreadable files of a folder."""
    follow_links: bool = False
    """Allow links that lead out of a folder."""
    max_value: int | None = None
    """The value in the files that means white; None: the largest that their format can hold."""
    tell: Callable[[str], object] = print
    """Called with a sentence that says what was left out."""

    def form(self, channels: int) -> Form:
        """The form of the images, given that the data has `channels` channels."""
        return Form(self.size, self.channels or channels, self.crop, self.resize, self.max_value)


def require_links_inside(files: Iterable[Path], request: Request) -> None:
    """Raise UserError for links out of the requested folder, unless the request allows them."""
    folder = request.path
    if folder is None or request.follow_links or not folder.is_dir():
        return
    for file in files:
        with suppress(OSError):  # a link to nothing is of no use, and does no harm
            if file.is_symlink():
                follow_inside(file, folder, "copy the file into it, or add --data.follow-links")
