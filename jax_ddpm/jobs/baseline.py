"""Real images as a yardstick: the figures that they would get in place of the drawn ones."""

from dataclasses import replace

import numpy as np

from jax_ddpm.config.run import DataConfig
from jax_ddpm.data.holdout import hold_out, select
from jax_ddpm.data.sources import ImageSource, Split
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.build import open_data
from jax_ddpm.jobs.features import Extracted, Extractor, FeatureNetwork
from jax_ddpm.jobs.reference import load_features

HELD_OUT = "held-out"


def load_baseline(
    network: FeatureNetwork,
    extractor: Extractor,
    data: DataConfig,
    split: Split,
    num: int,
    shape: tuple[int, int, int],
) -> tuple[str, Extracted] | None:
    """Load the features of at most `num` real images that the reference does not hold.

    `split` is the part of the data that the reference is made of, and `shape` that of its images.
    Also says which images these are. They are spread evenly over their part of the data, and their
    features are kept in the user's cache. None if the data has no other part.
    """
    found = open_other_part(data, split)
    if found is None or found[1].image_shape != shape:
        return None
    part, source = found
    total = len(source.images)
    count = min(num, total)
    chosen = select(source, np.arange(count) * total // count)
    kind = {"train": "training"}.get(part, part)
    about = f"{count:,} real images, {kind} images of {data.name}"
    return about, load_features(network, extractor, data, part, chosen)


def open_other_part(data: DataConfig, split: Split) -> tuple[str, ImageSource] | None:
    """Open the test images, or else those held out; with test images in use, the training images.

    None if the data has no other part.
    """
    other: Split = "train" if split == "test" else "test"
    try:
        return other, open_data(data, other)
    except UserError:  # no image is set aside for tests
        if split == "test" or not data.holdout:
            return None
    return HELD_OUT, hold_out(open_data(replace(data, holdout=0.0)), data.holdout)[1]
