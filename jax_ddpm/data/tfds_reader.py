"""Read data sets that TensorFlow Datasets has prepared as array_record, without TensorFlow."""

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
    """Open the data set `name`, prepared in the requested folder, which defaults to TFDS's own.

    If there is no split "test", opens the split "validation". Without class labels, the class is 0.
    Raises UserError if TFDS is not installed or does not know the data set, or if the data set has
    not been prepared as array_record or has no image.
    """
    tfds = import_tfds(f"--data.name {name}")
    with silence_warnings():
        builder = _find_builder(tfds, name, request.path)
        features = builder.info.features
        image, label = find_image(tfds, features, name), find_label(tfds, features)
        records = Records(_open_records(tfds, builder, name, request))
        Field(records, image)[0]  # the first access makes TFDS log that it uses Pillow
    height, width, channels = features[image].shape
    form = request.form(channels=1 if channels == 1 else 3)
    size = (height, width) if form.size is None else (form.size, form.size)
    if None in size:
        raise UserError(
            f"the images of {name} differ in size: choose one size for all with --data.image-size"
        )
    images = FittedArrays(Field(records, image), form)
    labels: Any = np.zeros(len(records), np.int32)
    names: tuple[str, ...] = ()
    if label is not None:
        labels = Labels(records, label, features[label].num_classes)
        names = tuple(features[label].names or ())
    source = ImageSource(images, labels, names)
    return read_all(source) if form.fits_in_memory(len(records), size) else source


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


def find_image(tfds: Any, features: Any, name: str) -> str:
    """The name of the image feature: "image", or the only image. Raises UserError without one."""
    found = [key for key, kind in features.items() if isinstance(kind, tfds.features.Image)]
    found = ["image"] if "image" in found else found
    if len(found) != 1 or features[found[0]].np_dtype != np.uint8:
        raise UserError(
            f"an example of {name} has the features {', '.join(features)}, but not exactly one "
            "8-bit image: choose another data set with --data.name"
        )
    return found[0]


def find_label(tfds: Any, features: Any) -> str | None:
    """The name of the class label feature; None if there is none."""
    has_one = "label" in features and isinstance(features["label"], tfds.features.ClassLabel)
    return "label" if has_one else None


def read_all(source: ImageSource) -> ImageSource:
    """Read every image and label of `source` into memory."""
    images, labels = source.images, source.labels
    pairs = list(map_in_parallel(lambda i: (images[i], labels[i]), range(len(images))))
    pictures, classes = zip(*pairs, strict=True)
    return source._replace(images=np.stack(pictures), labels=np.array(classes, np.int32))


class Records:
    """Examples by index. Each thread keeps its last one, for the label after the image."""

    def __init__(self, examples: Any) -> None:
        """`examples` is a data source of TFDS."""
        self.examples, self.last = examples, threading.local()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        if getattr(self.last, "index", None) != index:
            self.last.example, self.last.index = self.examples[index], index
        return self.last.example


class Field(Sequence[Any]):
    """One feature, such as the image, of every example."""

    def __init__(self, records: Records, name: str) -> None:
        self.records, self.name = records, name

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        """Read the feature of example `index`. Raises UserError if it cannot be read."""
        try:
            return self.records[int(index)][self.name]
        except Exception as error:  # a damaged file raises errors of many kinds
            raise UserError(
                f"example {index} of the prepared data cannot be read: {explain(error)}"
            ) from error


class Labels(Field):
    """Labels, read lazily: reading all of them would decode every record."""

    def __init__(self, records: Records, name: str, num_classes: int) -> None:
        """The labels in the feature `name` must be less than `num_classes`."""
        super().__init__(records, name)
        self.num_classes = num_classes

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


def _find_builder(tfds: Any, name: str, path: Path | None) -> Any:
    try:
        return tfds.builder(name, data_dir=path)
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"there is no data set {name}: neither this program nor TensorFlow Datasets knows it, "
            f"and it has not been prepared in {_name_folder(path)}"
        ) from error
    except Exception as error:  # for example, for a configuration that the data set lacks
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
    """Explain why TFDS cannot open a data set, and what to do."""
    folder = _name_folder(path)
    command = f"tfds build {name} --file_format=array_record --data_dir="
    if not (Path(builder.data_dir) / "dataset_info.json").is_file():
        return (
            f"{name} has not been prepared in {folder}: run {command}{folder} where TensorFlow is "
            "installed; for your own images, see jax-ddpm prepare"
        )
    if isinstance(error, NotImplementedError):
        return (
            f"{builder.data_dir} holds {name} in a format without random access: prepare it as "
            f"array_record in another folder with {command}OTHER_FOLDER"
        )
    return f"{name} in {folder} cannot be read: {explain(error)}"


def _name_folder(path: Path | None) -> str:
    return "~/tensorflow_datasets" if path is None else str(path)
