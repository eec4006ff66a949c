"""What a data set holds, in a few numbers and names: for a table, and to know it again."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jax_ddpm.data.base import ImageSource
from jax_ddpm.data.listing import describe_left_out
from jax_ddpm.data.parallel import map_in_parallel
from jax_ddpm.errors import show_name

LOOKED_AT = 256  # images whose values are looked at, spread evenly over the data
DARK = 64  # a brightest value up to this is taken for 14 bits or fewer in a file of 16, or a mask
MAX_CLASSES = 20  # in the table
MAX_COUNTED = 2**16  # classes


class DataSummary(NamedTuple):
    """What a data set holds."""

    num_images: int
    image_shape: tuple[int, int, int]
    """(height, width, channels)."""
    lowest: int
    """The lowest value, 0 to 255, in the images that were looked at."""
    highest: int
    looked_at: int
    """How many images were looked at."""
    class_names: tuple[str, ...] = ()
    """The name of each class, if they are known."""
    class_counts: tuple[int, ...] = ()
    """How many images each class has; () if reading every label would take long."""
    left_out: tuple[tuple[str, int], ...] = ()
    """Kinds of files that are not read, and how many there are of each."""


def summarize(source: ImageSource) -> DataSummary:
    """Summarise `source`, and look at the values of up to LOOKED_AT of its images."""
    count = len(source.images)
    chosen = spread(count, LOOKED_AT)
    ranges = list(map_in_parallel(lambda i: find_range(source.images[i]), chosen))
    return DataSummary(
        count,
        source.image_shape,
        min(low for low, _ in ranges),
        max(high for _, high in ranges),
        len(chosen),
        source.class_names,
        count_labels(source),
        source.left_out,
    )


def spread(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers 0 to count - 1, spread evenly."""
    most = min(count, most)
    return [i * count // most for i in range(most)]


def find_range(image: UInt8[np.ndarray, "h w c"]) -> tuple[int, int]:
    """The lowest and the highest value of an image."""
    return int(image.min()), int(image.max())


def count_labels(source: ImageSource) -> tuple[int, ...]:
    """How many images each class has; () for labels read on demand, and for very large ones."""
    labels = source.labels
    if not isinstance(labels, np.ndarray) or labels.max() >= MAX_COUNTED:
        return ()
    counts = np.bincount(labels, minlength=len(source.class_names))
    return tuple(counts.tolist())


def to_json(summary: DataSummary) -> dict[str, Any]:
    """Convert `summary` to JSON values."""
    lists = {name: list(value) for name, value in summary._asdict().items() if type(value) is tuple}
    return {**summary._asdict(), **lists, "left_out": [list(pair) for pair in summary.left_out]}


def from_json(values: Mapping[str, Any]) -> DataSummary:
    """Convert what `to_json` returned back. Raises TypeError or ValueError for anything else."""
    known = {name: values[name] for name in DataSummary._fields if name in values}
    lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
    pairs = tuple((str(kind), int(count)) for kind, count in known.get("left_out", ()))
    return DataSummary(**{**known, **lists, "left_out": pairs})


def describe(summary: DataSummary) -> Iterator[tuple[str, str]]:
    """Describe `summary` as (name, text) for each row of a table."""
    height, width, channels = summary.image_shape
    yield "images", f"{summary.num_images:,} of {height}x{width}x{channels}"
    yield "values", f"{summary.lowest} to {summary.highest}{_whose_values(summary)}"
    if warning := warn_of_values(summary):
        yield "careful", warning
    if classes := describe_classes(summary):
        yield "classes", classes
    if summary.left_out:
        yield "left out", describe_left_out(summary.left_out)


def _whose_values(summary: DataSummary) -> str:
    return "" if summary.looked_at == summary.num_images else f", in {summary.looked_at:,} of them"


def warn_of_values(summary: DataSummary) -> str:
    """A sentence if the values cannot be meant like that; otherwise ""."""
    low, high = summary.lowest, summary.highest
    if low == high:
        return f"every pixel that was looked at is {low}, so there is nothing to learn"
    if high > DARK:
        return ""
    return (
        f"the brightest value is {high} where white is 255, so these images train as nearly black. "
        "If the files are masks, or hold fewer bits than their format, say which value in the "
        "files is white with --data.max-value (1 for masks of 0 and 1, 4095 for 12 bits)"
    )


def describe_classes(summary: DataSummary) -> str:
    """The number of classes, and the number, name and images of each; "" for a single class."""
    names, counts = summary.class_names, summary.class_counts
    total = max(len(names), len(counts))
    if total < 2 and not names:
        return ""
    each = [_describe_class(names, counts, i) for i in range(min(total, MAX_CLASSES))]
    more = f", and {total - MAX_CLASSES:,} more" if total > MAX_CLASSES else ""
    return f"{total:,}: {', '.join(each)}{more}"


def name_class(names: tuple[str, ...], number: int) -> str:
    """The name of a class; "" if it is not known. Pictures outside any subfolder have none."""
    if number >= len(names):
        return ""
    return show_name(names[number]) or "(no folder)"


def _describe_class(names: tuple[str, ...], counts: tuple[int, ...], number: int) -> str:
    """A class as "2 = dog (813)", without the parts that are not known."""
    name = name_class(names, number)
    count = counts[number] if number < len(counts) else 0
    return f"{number}{f' = {name}' if name else ''}{f' ({count:,})' if counts else ''}"
