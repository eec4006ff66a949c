"""The job that writes images as a data set of TensorFlow Datasets."""

from dataclasses import dataclass, field
from pathlib import Path

from jax_ddpm.config.run import SourceConfig
from jax_ddpm.data.sources import SOURCES, ImageSource, Split
from jax_ddpm.data.tfds_writer import require_new, write_prepared
from jax_ddpm.errors import require
from jax_ddpm.jobs.build import open_data


@dataclass(frozen=True)
class PrepareArgs:
    """Write images as a data set that TensorFlow Datasets reads (array_record)."""

    name: str
    """Name of the new data set: lower-case letters, digits and _."""
    out: Path = Path.home() / "tensorflow_datasets"
    """Folder of all prepared data sets, which is --data.path in training."""
    data: SourceConfig = field(default_factory=SourceConfig)
    """The images, as in training."""


def run(args: PrepareArgs) -> Path:
    """Write the data set and say how to use it. Raises UserError for anything in the way."""
    require(args.data.crop != "random", "--data.crop", "random", "center or none here: each image "
            "is written once")  # fmt: skip
    require_new(args.name, args.out)
    source = SOURCES.get(args.data.name)
    has_tests = source is not None and source.has_test_split
    names: tuple[Split, ...] = ("train", "test") if has_tests else ("train",)
    splits: dict[str, ImageSource] = {name: open_data(args.data, name) for name in names}
    folder = write_prepared(splits, args.name, args.out)
    counts = ", ".join(f"{len(source.images):,} {name}" for name, source in splits.items())
    print(f"Wrote {folder}: {counts} images")
    print(f"Use it with --data.name {args.name} --data.path {args.out}")
    return folder
