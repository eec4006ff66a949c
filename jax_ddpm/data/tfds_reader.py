"""Open data sets that TensorFlow Datasets has prepared as array_record, without its code."""

import io
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image, UnidentifiedImageError

from jax_ddpm.data import pictures
from jax_ddpm.data.array_record import Shards, require_room
from jax_ddpm.data.base import ImageSource, Request
from jax_ddpm.data.parallel import map_in_parallel
from jax_ddpm.data.pictures import FittedArrays, Form, Picture, fit_picture
from jax_ddpm.data.tf_example import read_bytes, read_integer
from jax_ddpm.data.tfds_folder import (
    MALFORMED,
    Prepared,
    default_folder,
    find_folder,
    read_classes,
    read_prepared,
    read_shape,
)
from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import explain

# How the pictures that are decoded begin; Pillow runs other programs for some other formats.
MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}


def open_prepared(name: str, request: Request) -> ImageSource:
    """Open the data set `name`, prepared in the requested folder, which defaults to TFDS's own.

    If there is no split "test", opens the split "validation". Without class labels, the class is 0.
    Nothing is fetched, and no code runs that the data set names. Raises UserError if it has not
    been prepared as array_record, is damaged, or has no image.
    """
    folder = _find_folder(name, request.path)
    if folder is None:
        raise UserError(_explain_missing(name, request.path))
    prepared = read_prepared(folder)
    image, label = find_image(prepared, name), find_label(prepared)
    records = _open_records(prepared, name, request, image, label)
    height, width, channels = records.shape
    form = request.form(channels=1 if channels == 1 else 3)
    size: Any = (height, width) if form.size is None else (form.size, form.size)
    if None in size:
        raise UserError(
            f"the images of {name} differ in size: choose one size for all with --data.image-size"
        )
    images = FittedArrays(Field(records, "image"), form)
    labels: Any = np.zeros(len(records), np.int32)
    names: tuple[str, ...] = ()
    if label is not None:
        try:
            names = read_classes(prepared, label)
        except (*MALFORMED, OSError) as error:
            raise UserError(f"{prepared.folder} cannot be read: {explain(error)}") from error
        labels = Labels(records, "label", len(names))
    source = ImageSource(images, labels, names)
    return read_all(source) if form.fits_in_memory(len(records), size) else source


def _find_folder(name: str, path: Path | None) -> Path | None:
    try:
        return find_folder(name, path or default_folder())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {explain(error)}") from error


def find_image(prepared: Prepared, name: str) -> str:
    """The name of the image feature: "image", or the only image. Raises UserError without one."""
    features = prepared.features
    found = [key for key, feature in features.items() if feature.kind == "Image"]
    found = ["image"] if "image" in found else found
    if len(found) != 1:
        raise UserError(
            f"an example of {name} has the features {', '.join(features)}, but not exactly one "
            "8-bit image: choose another data set with --data.name"
        )
    return found[0]


def find_label(prepared: Prepared) -> str | None:
    """The name of the class label feature; None if there is none."""
    found = prepared.features.get("label")
    return "label" if found is not None and found.kind == "ClassLabel" else None


def read_all(source: ImageSource) -> ImageSource:
    """Read every image and label of `source` into memory."""
    images, labels = source.images, source.labels
    pairs = list(map_in_parallel(lambda i: (images[i], labels[i]), range(len(images))))
    pictures, classes = zip(*pairs, strict=True)
    return source._replace(images=np.stack(pictures), labels=np.array(classes, np.int32))


class Example(NamedTuple):
    """The parts of a record that are used."""

    image: Picture
    label: int


class Records:
    """Examples by index. Each thread keeps its last one, for the label after the image."""

    def __init__(
        self,
        records: Sequence[bytes],
        image: str,
        label: str | None,
        shape: tuple[int | None, int | None, int],
    ) -> None:
        """`image` and `label` are the names of features, `shape` is that of every picture."""
        self.records, self.image, self.label, self.shape = records, image, label, shape
        self.last = threading.local()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        if getattr(self.last, "index", None) != index:
            self.last.example, self.last.index = self._read(index), index
        return self.last.example

    def _read(self, index: int) -> Example:
        record = self.records[index]
        picture = decode(read_bytes(record, self.image), self.shape)
        label = 0 if self.label is None else read_integer(record, self.label)
        return Example(picture, label)


def decode(encoded: bytes, shape: tuple[int | None, int | None, int]) -> Picture:
    """Decode a PNG or JPEG picture, whose header must give the announced (height, width).

    Raises errors of many kinds for anything else.
    """
    kind = next((name for start, name in MAGIC.items() if encoded.startswith(start)), None)
    if kind is None:
        raise ValueError(f"it is none of {', '.join(MAGIC.values())}")
    with _open_picture(encoded, kind) as image:
        pictures.require_few_pixels(image)
        found = (image.height, image.width)
        if any(n not in (None, m) for n, m in zip(shape, found, strict=False)):
            raise ValueError(
                f"it is {image.width}x{image.height}, but {shape[1]}x{shape[0]} was announced"
            )
        return fit_picture(image, Form(channels=1 if shape[2] == 1 else 3))


def _open_picture(encoded: bytes, kind: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded), formats=(kind,))
    except UnidentifiedImageError as error:
        raise ValueError(f"it begins as {kind} does, but is damaged") from error


class Field(Sequence[Any]):
    """One part of every example, such as the image."""

    def __init__(self, records: Records, name: str) -> None:
        """`name` is that of a field of Example."""
        self.records, self.name = records, name

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        """Read the part of example `index`. Raises UserError if it cannot be read."""
        try:
            return getattr(self.records[int(index)], self.name)
        except Exception as error:  # a damaged file raises errors of many kinds
            raise UserError(
                f"example {index} of the prepared data cannot be read: {explain(error)}"
            ) from error


class Labels(Field):
    """Labels, read lazily: reading all of them would decode every record."""

    def __init__(self, records: Records, name: str, num_classes: int) -> None:
        """The labels in the field `name` must be less than `num_classes`."""
        super().__init__(records, name)
        self.num_classes = num_classes

    def __getitem__(self, index: Any) -> Any:
        label = super().__getitem__(index)
        if not -1 <= label < self.num_classes:  # TFDS says -1 if there is no label
            raise UserError(
                f"example {index} of the prepared data has the class {label}, but there are "
                f"{self.num_classes} classes"
            )
        return label

    def max(self) -> int:
        """The largest possible label."""
        return self.num_classes - 1

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Int[np.ndarray, " n"]:
        """All labels as an array. Reads every record."""
        return np.array([int(self[i]) for i in range(len(self))], dtype or np.int32)


def import_tfds(what: str) -> Any:
    """Import TensorFlow Datasets. If it is missing, raises UserError: `what` needs it."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"{what} needs TensorFlow Datasets, which cannot be imported ({explain(error)}): "
            "pip install 'jax_ddpm[tfds]'"
        ) from error
    return tfds


@contextmanager
def silence_warnings() -> Iterator[None]:
    """Suppress TFDS's warnings, because our own errors say what is wrong."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _open_records(
    prepared: Prepared, name: str, request: Request, image: str, label: str | None
) -> Records:
    split: str = request.split
    known = list(prepared.splits)
    if split == "test" and "test" not in known and "validation" in known:
        split = "validation"
    if split not in known:
        raise UserError(f"{name} has no split {split}, only {', '.join(known)}")
    try:
        shape = read_shape(prepared.features[image])
    except MALFORMED as error:
        raise UserError(f"{prepared.folder} cannot be read: {explain(error)}") from error
    shards = prepared.splits[split]
    require_room(shards, prepared.folder)
    records = Records(Shards(shards, prepared.folder), image, label, shape)
    if len(records) == 0:
        raise UserError(f"the split {split} of {name} has no examples")
    Field(records, "image")[0]  # what is wrong with all of them is found now
    return records


def _explain_missing(name: str, path: Path | None) -> str:
    """Explain why a data set is not there, and what to do. Asks TFDS only about its own ones."""
    folder = "~/tensorflow_datasets" if path is None else str(path)
    tfds = import_tfds(f"--data.name {name}")
    try:
        with silence_warnings():
            known = tfds.builder_cls(re.split("[/:]", name)[0])
    except Exception:  # there is no such data set, or its module cannot be imported
        return (
            f"there is no data set {name}: neither this program nor TensorFlow Datasets knows it, "
            f"and it has not been prepared in {folder}"
        )
    configs = [config.name for config in known.BUILDER_CONFIGS]
    config = name.partition(":")[0].partition("/")[2]
    if config and config not in configs:
        return f"--data.name {name} cannot be opened: {known.name} has no configuration {config}"
    command = f"tfds build {name} --file_format=array_record --data_dir="
    return (
        f"{name} has not been prepared in {folder}: run {command}{folder} where TensorFlow is "
        "installed; for your own images, see jax-ddpm prepare"
    )
