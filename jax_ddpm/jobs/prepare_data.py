"""The job that writes images as a data set of TensorFlow Datasets."""

from pathlib import Path

from jax_ddpm.config.run import SourceConfig
from jax_ddpm.data.sources import ImageSource, Split, has_test_part
from jax_ddpm.data.tfds_writer import require_new, write_prepared
from jax_ddpm.errors import require
from jax_ddpm.jobs.build import open_data


def prepare_dataset(name: str, out: Path, data: SourceConfig) -> Path:
    """Write `data` as the data set `name` in the folder `out`, and return the data set's folder.

    Raises UserError if the data set exists, and for data that cannot be read or written.
    """
    fixed = data.crop != "random"
    require(fixed, "--data.crop", "random", "center or none: each image is written only once")
    require_new(name, out)
    has_tests = has_test_part(data.name, data.path)
    splits: tuple[Split, ...] = ("train", "test") if has_tests else ("train",)
    sources: dict[str, ImageSource] = {split: open_data(data, split) for split in splits}
    folder = write_prepared(sources, name, out)
    counts = ", ".join(f"{len(source.images):,} {split}" for split, source in sources.items())
    print(f"Wrote {folder}: {counts} images")
    return folder
