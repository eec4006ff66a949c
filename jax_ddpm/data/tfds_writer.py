"""Images written as a data set that TensorFlow Datasets reads, without TensorFlow."""

import io
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jax_ddpm.data.pictures import from_array
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.data.tfds_reader import import_tfds
from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import reason

NAME = re.compile(r"[a-z][a-z0-9_]*")
VERSION = "1.0.0"


def prepare(splits: Mapping[str, ImageSource], name: str, out: Path) -> Path:
    """Write `splits` as the data set `name` in the folder `out`, and return its own folder.

    `tfds.data_source(name, data_dir=out, download=False)` reads it, as --data.name does; the order
    of the images stays. It is there at once and whole, or not at all. Raises UserError if there is
    one of that name, or if the name is not in lower case, digits and underscores.
    """
    require_new(name, out)
    tfds = import_tfds("preparing data")
    version = version_of(tfds, name)
    temporary = out / f".{name}.{os.getpid()}.tmp"
    try:
        builder = _builder_class(tfds, splits, name, version)
        builder = builder(data_dir=temporary, file_format="array_record")
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
        os.replace(temporary / name, out / name)
    except OSError:
        raise
    except Exception as error:  # TFDS wraps what goes wrong in errors of many kinds
        raise UserError(f"{name} could not be prepared: {reason(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out / name


def require_new(name: str, out: Path) -> None:
    """Raise UserError if a data set of this name cannot be written to `out`."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"--name {name} is not the name of a data set: take lower-case letters, digits and _"
        )
    if (out / name).exists():
        raise UserError(f"{out / name} exists: choose another --name or --out, or remove it")


def version_of(tfds: Any, name: str) -> str:
    """1.0.0, or where TFDS itself has a data set of this name, the version that it looks for.

    Raises UserError if it looks for one of several configurations.
    """
    try:
        known = tfds.builder_cls(name)
    except tfds.core.DatasetNotFoundError:
        return VERSION
    if known.BUILDER_CONFIGS or known.VERSION is None:
        raise UserError(
            f"--name {name} is a data set of TensorFlow Datasets in several configurations: take "
            "another name"
        )
    return str(known.VERSION)


def _builder_class(tfds: Any, splits: Mapping[str, ImageSource], name: str, version: str) -> Any:
    """A builder of TFDS that writes `splits`."""
    shape = next(iter(splits.values())).image_shape
    num_classes = 1 + max(int(np.asarray(source.labels).max()) for source in splits.values())

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """The images of this program."""

        VERSION = tfds.core.Version(version)

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=shape, encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=num_classes),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> Any:
            return {split: self._generate_examples(source) for split, source in splits.items()}

        def _generate_examples(self, source: ImageSource) -> Iterator[Any]:
            for i in range(len(source.images)):
                image = png(from_array(source.images[i]))
                yield i, {"image": image, "label": int(source.labels[i])}

    Prepared.name = name
    return Prepared


def png(image: Image.Image) -> io.BytesIO:
    """`image` as a PNG file in memory."""
    file = io.BytesIO()
    image.save(file, "PNG")
    file.seek(0)
    return file
