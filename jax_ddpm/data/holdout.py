"""Hold out a part of the images, the same part whatever the seed, and select images by number."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jax_ddpm.data.base import ImageSource
from jax_ddpm.data.pictures import Form, Position
from jax_ddpm.errors import UserError

IN_MEMORY = 2**30  # arrays of at most 1 GiB are copied; larger ones are indexed on demand


def hold_out(source: ImageSource, fraction: float) -> tuple[ImageSource, ImageSource]:
    """Split `source` into the images to train on and a `fraction` of at least one to hold out.

    The choice depends only on the number of images, and a larger fraction includes a smaller one.
    Both parts keep the order of `source`. Raises UserError if no image would be left to train on.
    """
    order = fixed_order(len(source.images))
    count = max(1, round(fraction * len(order)))
    if count >= len(order):
        raise UserError(
            f"--data.holdout {fraction:g} leaves none of {len(order)} images to train on: choose a "
            "smaller fraction or give more images"
        )
    return select(source, np.sort(order[count:])), select(source, np.sort(order[:count]))


def split_off(source: ImageSource, fraction: float) -> tuple[ImageSource, ImageSource | None]:
    """Split `source` as `hold_out` does; for a fraction of 0, return it whole, and None."""
    return hold_out(source, fraction) if fraction else (source, None)


def fixed_order(count: int) -> Int[np.ndarray, " n"]:
    """The numbers 0 to count - 1 in an order that looks random and never changes.

    They are sorted by a hash, SplitMix64 (Steele et al. 2014), so no library's random numbers
    matter.
    """
    z = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable")


def select(source: ImageSource, indices: Int[np.ndarray, " n"]) -> ImageSource:
    """The images and labels with these numbers, in this order."""
    return source._replace(
        images=_select(source.images, indices), labels=_select(source.labels, indices)
    )


def _select(values: Any, indices: Int[np.ndarray, " n"]) -> Any:
    if isinstance(values, np.ndarray) and values.nbytes <= IN_MEMORY:
        return np.asarray(values[indices])
    return Subset(values, indices)


class Subset(Sequence[Any]):
    """Some images or labels of a source, read on demand."""

    def __init__(self, values: Any, indices: Int[np.ndarray, " n"]) -> None:
        self.values, self.indices = values, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.values[int(self.indices[index])]

    @property
    def form(self) -> Form | None:
        """The form of images that are decoded on demand."""
        return getattr(self.values, "form", None)

    def cut_at(self, index: Any, position: Position | None) -> Any:
        """Return image number `index`, cropped at `position`."""
        return self.values.cut_at(int(self.indices[index]), position)

    def max(self) -> int:
        """The largest label of the whole source."""
        return int(self.values.max())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All values as an array. Reads every one."""
        return np.array([self[i] for i in range(len(self))], dtype)
