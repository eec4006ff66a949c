"""Write images as a data set that TensorFlow Datasets can read, without TensorFlow."""

import io
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jax_ddpm.data.base import ImageSource
from jax_ddpm.data.pictures import from_array
from jax_ddpm.data.tfds_reader import import_tfds
from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import name_temporary
from jax_ddpm.files.untrusted import explain

NAME = re.compile(r"[a-z][a-z0-9_]*")
VERSION = "1.0.0"


def write_prepared(splits: Mapping[str, ImageSource], name: str, out: Path) -> Path:
    """Write `splits` as the data set `name` in the folder `out`; return the data set's own folder.

    `tfds.data_source(name, data_dir=out, download=False)` and --data.name read it, with the images
    in the same order. The data set appears completely or not at all. Raises UserError if `out` has
    a data set of that name already, or for a name with characters other than lower-case letters,
    digits and _.
    """
    require_new(name, out)
    tfds = import_tfds("preparing data")
    version = find_version(tfds, name)
    temporary = name_temporary(out / name)
    try:
        builder_class = _make_builder_class(tfds, splits, name, version)
        builder = builder_class(data_dir=temporary, file_format="array_record")
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
        os.replace(temporary / name, out / name)
    except OSError:
        raise
    except Exception as error:  # TFDS wraps errors in many kinds of its own
        raise UserError(f"{name} could not be prepared: {explain(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out / name


def require_new(name: str, out: Path) -> None:
    """Raise UserError if `out` has a data set `name` already, or if `name` is not valid."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"--name {name} is not the name of a data set: use lower-case letters, digits and _"
        )
    if (out / name).exists():
        raise UserError(f"{out / name} exists: choose another --name or --out, or remove it")


def find_version(tfds: Any, name: str) -> str:
    """Find the version to write: TFDS's own, if it knows a data set of this name; else 1.0.0.

    Raises UserError if TFDS's data set has several configurations.
    """
    try:
        known = tfds.builder_cls(name)
    except tfds.core.DatasetNotFoundError:
        return VERSION
    if known.BUILDER_CONFIGS or known.VERSION is None:
        raise UserError(
            f"--name {name} is a data set of TensorFlow Datasets with several configurations: "
            "choose another name"
        )
    return str(known.VERSION)


def _make_builder_class(
    tfds: Any, splits: Mapping[str, ImageSource], name: str, version: str
) -> Any:
    """Make a TFDS builder that writes `splits`."""
    shape = next(iter(splits.values())).image_shape
    num_classes = 1 + max(int(np.asarray(source.labels).max()) for source in splits.values())

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Images from one of our sources."""

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
                image = encode_png(from_array(source.images[i]))
                yield i, {"image": image, "label": int(source.labels[i])}

    Prepared.name = name
    return Prepared


def encode_png(image: Image.Image) -> io.BytesIO:
    """Encode `image` as a PNG file in memory."""
    file = io.BytesIO()
    image.save(file, "PNG")
    file.seek(0)
    return file
