"""Make the images that ship with the package from Fashion-MNIST's IDX files.

    apt-get install dataset-fashion-mnist
    python scripts/make_embedded_data.py FOLDER_OF_IDX_FILES jax_ddpm/data/fashion_mnist_extract

Debian installs the files in /usr/share/datasets/fashion-mnist. The first 1,000 training and 200
test images of each of the ten classes are kept, in their original order.
"""

import sys
from pathlib import Path

import numpy as np

from jax_ddpm.cli.ending import exit_after
from jax_ddpm.data.idx import write_idx
from jax_ddpm.data.sources import IDX_PREFIX, Split, read_idx_folder
from jax_ddpm.errors import UserError

PER_CLASS: dict[Split, int] = {"train": 1000, "test": 200}


def extract(source: Path, target: Path, split: Split) -> None:
    """Write the class-balanced extract of one split, byte for byte the same every time."""
    images, labels = read_idx_folder(source, split)[:2]
    chosen = np.sort(
        np.concatenate([np.flatnonzero(labels == c)[: PER_CLASS[split]] for c in range(10)])
    )
    write_idx(target / f"{IDX_PREFIX[split]}-images-idx3-ubyte.gz", images[chosen, ..., 0])
    write_idx(target / f"{IDX_PREFIX[split]}-labels-idx1-ubyte.gz", labels[chosen])


def main() -> None:
    """Make both splits."""
    if len(sys.argv) != 3:
        raise UserError("usage: make_embedded_data.py FOLDER_OF_IDX_FILES TARGET_FOLDER")
    source, target = map(Path, sys.argv[1:])
    target.mkdir(parents=True, exist_ok=True)
    for split in PER_CLASS:
        extract(source, target, split)


if __name__ == "__main__":
    exit_after(main)
