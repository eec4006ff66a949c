"""Data sets that TensorFlow Datasets has prepared as array_record, read without TensorFlow."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jax_ddpm.data.base import ImageSource, Request
from jax_ddpm.data.parallel import map_in_parallel
from jax_ddpm.data.pictures import FittedArrays
from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import explain


def open_prepared(name: str, request: Request) -> ImageSource:
    """The data set `name`, prepared in the requested folder, by default the one that TFDS uses.

    If there is no split "test", the split "validation" is read. Without a class label, the class is
    0. Raises UserError if TFDS is not installed, does not know the data set, has not prepared it as
    array_record, or finds no image in it.
    """
    tfds = import_tfds(f"--data.name {name}")
    with silence_warnings():
        builder = _find_builder(tfds, name, request.path)
        features = builder.info.features
        image, label = find_image(tfds, features, name), find_label(tfds, features)
        records = Records(_open_records(tfds, builder, name, request))
        Field(records, image)[0]  # TFDS says once that it uses Pillow
    height, width, channels = features[image].shape
    form = request.form(channels=1 if channels == 1 else 3)
    size = (height, width) if form.size is None else (form.size, form.size)
    if None in size:
        raise UserError(
            f"the images of {name} differ in size: choose one size for all, --data.image-size"
        )
    images = FittedArrays(Field(records, image), form)
    labels: Any = np.zeros(len(records), np.int32)
    if label is not None:
        labels = Labels(records, label, features[label].num_classes)
    source = ImageSource(images, labels)
    return read_all(source) if form.fits_in_memory(len(records), size) else source


@contextmanager
def silence_warnings() -> Iterator[None]:
    """Suppress TFDS's warnings: our own errors say in one sentence what is wrong."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def find_image(tfds: Any, features: Any, name: str) -> str:
    """The name of an example's image: "image", or the only image there is."""
    found = [key for key, kind in features.items() if isinstance(kind, tfds.features.Image)]
    found = ["image"] if "image" in found else found
    if len(found) != 1 or features[found[0]].np_dtype != np.uint8:
        raise UserError(
            f"an example of {name} has the features {', '.join(features)}, but not exactly one "
            "8-bit image: choose another data set with --data.name"
        )
    return found[0]


def find_label(tfds: Any, features: Any) -> str | None:
    """The name of an example's class, if it has one."""
    has_one = "label" in features and isinstance(features["label"], tfds.features.ClassLabel)
    return "label" if has_one else None


def read_all(source: ImageSource) -> ImageSource:
    """`source` with every image and every label in memory."""
    images, labels = source
    pairs = list(map_in_parallel(lambda i: (images[i], labels[i]), range(len(images))))
    pictures, classes = zip(*pairs, strict=True)
    return ImageSource(np.stack(pictures), np.array(classes, np.int32))


class Records:
    """Examples by number. Each thread keeps its last one, because it is asked for twice."""

    def __init__(self, examples: Any) -> None:
        """`examples`: the data source of TFDS."""
        self.examples, self.last = examples, threading.local()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        if getattr(self.last, "index", None) != index:
            self.last.example, self.last.index = self.examples[index], index
        return self.last.example


class Field(Sequence[Any]):
    """One feature of every example."""

    def __init__(self, records: Records, name: str) -> None:
        self.records, self.name = records, name

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        """The feature of example number `index`. Raises UserError if it cannot be read."""
        try:
            return self.records[int(index)][self.name]
        except Exception as error:  # a damaged file raises errors of many kinds
            raise UserError(
                f"example {index} of the prepared data cannot be read: {explain(error)}"
            ) from error


class Labels(Field):
    """Labels, read lazily: reading all of them would decode every record."""

    def __init__(self, records: Records, name: str, num_classes: int) -> None:
        """All labels of the feature `name` are less than `num_classes`."""
        super().__init__(records, name)
        self.num_classes = num_classes

    def max(self) -> int:
        """The highest class that is possible."""
        return self.num_classes - 1

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Int[np.ndarray, " n"]:
        """Every label; this reads every record."""
        return np.array([int(self[i]) for i in range(len(self))], dtype or np.int32)


def import_tfds(what: str) -> Any:
    """TensorFlow Datasets. Raises UserError, saying that `what` needs it, if it is missing."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"{what} needs TensorFlow Datasets, which cannot be imported ({explain(error)}): "
            "pip install 'jax_ddpm[tfds]'"
        ) from error
    return tfds


def _find_builder(tfds: Any, name: str, path: Path | None) -> Any:
    try:
        return tfds.builder(name, data_dir=path)
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"there is no data set {name}: neither this program nor TensorFlow Datasets knows it, "
            f"and it has not been prepared in {_name_folder(path)}"
        ) from error
    except Exception as error:  # for instance for a configuration that the data set lacks
        raise UserError(f"--data.name {name} cannot be opened: {explain(error)}") from error


def _open_records(tfds: Any, builder: Any, name: str, request: Request) -> Any:
    split: str = request.split
    known = list(builder.info.splits)
    if split == "test" and "test" not in known and "validation" in known:
        split = "validation"
    if known and split not in known:
        raise UserError(f"{name} has no split {split}, only {', '.join(known)}")
    try:
        return tfds.data_source(name, split=split, data_dir=request.path, download=False)
    except Exception as error:
        raise UserError(_explain_missing(name, request.path, builder, error)) from error


def _explain_missing(name: str, path: Path | None, builder: Any, error: Exception) -> str:
    """Why TFDS cannot open a data set, and what to do."""
    folder = _name_folder(path)
    command = f"tfds build {name} --file_format=array_record --data_dir="
    if not (Path(builder.data_dir) / "dataset_info.json").is_file():
        return (
            f"{name} has not been prepared in {folder}: run {command}{folder} where TensorFlow is "
            "installed; for images of your own, see jax-ddpm prepare"
        )
    if isinstance(error, NotImplementedError):
        return (
            f"{builder.data_dir} holds {name} in a format without random access: prepare it as "
            f"array_record in another folder, {command}OTHER_FOLDER"
        )
    return f"{name} in {folder} cannot be read: {explain(error)}"


def _name_folder(path: Path | None) -> str:
    return "~/tensorflow_datasets" if path is None else str(path)
