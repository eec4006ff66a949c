"""Data sets that TensorFlow Datasets has prepared as array_record, read without TensorFlow."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from jax_ddpm.data.folder import IN_MEMORY, in_parallel
from jax_ddpm.data.pictures import FittedArrays, Form
from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import reason

Example = dict[str, np.ndarray]


def open_prepared(
    name: str, path: Path | None, split: Literal["train", "test"], form: Form, channels: int | None
) -> tuple[Any, Any]:
    """Images and labels of the data set `name` in the folder `path`, TFDS's own by default.

    `channels`: None for those of the data. If there is no split "test", it is "validation". Without
    a class label, the class is 0. Raises UserError if TFDS is not installed, does not know the data
    set, has not prepared it as array_record, or knows no image in it.
    """
    tfds = import_tfds(f"--data.name {name}")
    with quiet():
        builder = _builder(tfds, name, path)
        features = builder.info.features
        image, label = image_feature(tfds, features, name), label_feature(tfds, features)
        records = Records(_data_source(tfds, builder, name, path, split))
        Field(records, image)[0]  # TFDS says once that it uses Pillow
    form = form._replace(channels=channels or (1 if features[image].shape[-1] == 1 else 3))
    images = FittedArrays(Field(records, image), form)
    labels: Any = np.zeros(len(records), np.int32)
    if label is not None:
        labels = Labels(records, label, features[label].num_classes)
    shape = features[image].shape[:2] if form.size is None else (form.size, form.size)
    if None in shape:
        raise UserError(
            f"the images of {name} differ in size: give the side that all shall have, "
            "--data.image-size"
        )
    if form.crop != "random" and len(records) * int(np.prod(shape)) * form.channels <= IN_MEMORY:
        return read_all(images, labels)
    return images, labels


@contextmanager
def quiet() -> Iterator[None]:
    """Without TFDS's warnings, for what is wrong is said in a sentence."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def image_feature(tfds: Any, features: Any, name: str) -> str:
    """The name of the image in an example: "image", or the only one there is."""
    found = [key for key, kind in features.items() if isinstance(kind, tfds.features.Image)]
    found = ["image"] if "image" in found else found
    if len(found) != 1 or features[found[0]].np_dtype != np.uint8:
        raise UserError(
            f"the examples of {name} have the features {', '.join(features)}, among which there is "
            "not one image of 8 bits: choose another data set with --data.name"
        )
    return found[0]


def label_feature(tfds: Any, features: Any) -> str | None:
    """The name of the class in an example, if it has one."""
    has_one = "label" in features and isinstance(features["label"], tfds.features.ClassLabel)
    return "label" if has_one else None


def read_all(images: Sequence[Any], labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Every image and every label, in memory."""
    pairs = list(in_parallel(lambda i: (images[i], labels[i]), range(len(images))))
    pictures, classes = zip(*pairs, strict=True)
    return np.stack(pictures), np.array(classes, np.int32)


class Records:
    """Examples by number; the last one of each thread is kept, for it is asked for twice."""

    def __init__(self, examples: Any) -> None:
        """`examples`: what TFDS reads from."""
        self.examples, self.last = examples, threading.local()

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        """Example number `index`."""
        if getattr(self.last, "index", None) != index:
            self.last.example, self.last.index = self.examples[index], index
        return self.last.example


class Field(Sequence[np.ndarray]):
    """One feature of every example."""

    def __init__(self, records: Records, name: str) -> None:
        """The feature `name` of `records`."""
        self.records, self.name = records, name

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        """The feature of example number `index`. Raises UserError if it cannot be read."""
        try:
            return self.records[int(index)][self.name]
        except Exception as error:  # a damaged file raises many kinds
            raise UserError(
                f"example {index} of the prepared data cannot be read: {reason(error)}"
            ) from error


class Labels(Field):
    """The classes, read one by one, for to read them all is to read every image."""

    def __init__(self, records: Records, name: str, num_classes: int) -> None:
        """The feature `name` of `records`, less than `num_classes`."""
        super().__init__(records, name)
        self.num_classes = num_classes

    def max(self) -> int:
        """The highest class that there may be."""
        return self.num_classes - 1

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Int[np.ndarray, " n"]:
        """All of them, for which all records are read."""
        return np.array([int(self[i]) for i in range(len(self))], dtype or np.int32)


def import_tfds(what: str) -> Any:
    """TensorFlow Datasets. Raises UserError, that `what` needs it, if it is not installed."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"{what} needs TensorFlow Datasets, which cannot be imported ({reason(error)}): "
            "pip install 'jax_ddpm[tfds]'"
        ) from error
    return tfds


def _builder(tfds: Any, name: str, path: Path | None) -> Any:
    try:
        return tfds.builder(name, data_dir=path)
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"there is no data set {name}: neither one of this program, nor one that TensorFlow "
            f"Datasets knows, nor one prepared in {_place(path)}"
        ) from error
    except Exception as error:  # for instance for a configuration that the data set lacks
        raise UserError(f"--data.name {name} cannot be opened: {reason(error)}") from error


def _data_source(tfds: Any, builder: Any, name: str, path: Path | None, split: str) -> Any:
    known = list(builder.info.splits)
    if split == "test" and "test" not in known and "validation" in known:
        split = "validation"
    if known and split not in known:
        raise UserError(f"{name} has no images of the split {split}, only {', '.join(known)}")
    try:
        return tfds.data_source(name, split=split, data_dir=path, download=False)
    except Exception as error:
        prepared = (Path(builder.data_dir) / "dataset_info.json").is_file()
        raise UserError(_why_not(name, path, builder, prepared, error)) from error


def _why_not(name: str, path: Path | None, builder: Any, prepared: bool, error: Exception) -> str:
    command = f"tfds build {name} --file_format=array_record --data_dir={_place(path)}"
    if not prepared:
        return (
            f"{name} has not been prepared in {_place(path)}: where TensorFlow is installed, "
            f"{command}; your own images are prepared with scripts/prepare_data.py"
        )
    if isinstance(error, NotImplementedError):
        return (
            f"{builder.data_dir} holds {name} in a format that has no random access: prepare it as "
            f"array_record, in another folder, with {command.rpartition('=')[0]}=OTHER_FOLDER"
        )
    return f"{name} in {_place(path)} cannot be read: {reason(error)}"


def _place(path: Path | None) -> str:
    return "~/tensorflow_datasets" if path is None else str(path)
