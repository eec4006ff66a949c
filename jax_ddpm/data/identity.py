"""Tell whether a run is continued with the images that it was begun with."""

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jax_ddpm.data.base import ImageSource
from jax_ddpm.data.summary import DataSummary, from_json, spread, to_json
from jax_ddpm.errors import one_line

ALL_BYTES = 2**28  # images in memory of at most 256 MiB are all in the checksum
SAMPLED, DECODED = 4096, 32  # else so many are, spread evenly; fewer if each must be decoded


class Identity(NamedTuple):
    """What a run remembers of its images."""

    summary: DataSummary
    labels: int
    """Checksum of the labels of the images that are compared."""
    pixels: int
    """Checksum of their pixels."""
    compared: int
    """How many images are compared, spread evenly over all."""


def identify(source: ImageSource, summary: DataSummary) -> Identity:
    """Identify the images of `source`. Large data are sampled: see `choose_sample`."""
    chosen = choose_sample(source)
    pixels = labels = 0
    for i in chosen:
        pixels = zlib.crc32(np.asarray(source.images[i]).tobytes(), pixels)
        labels = zlib.crc32(np.int32(source.labels[i]).tobytes(), labels)
    return Identity(summary, labels, pixels, len(chosen))


def choose_sample(source: ImageSource) -> list[int]:
    """Choose the images that are compared: all of a few, else some that are spread evenly."""
    count, images = len(source.images), source.images
    in_memory = isinstance(images, np.ndarray) and not isinstance(images, np.memmap)
    if in_memory and images.nbytes <= ALL_BYTES:
        return list(range(count))
    return spread(count, SAMPLED if isinstance(images, np.ndarray) else DECODED)


def list_differences(known: Identity, found: Identity) -> Iterator[str]:
    """Say in what way the images `found` are not those `known`, one clause per difference."""
    one, other = known.summary, found.summary
    if one.num_images != other.num_images:
        yield f"{other.num_images:,} images instead of {one.num_images:,}"
    if one.image_shape != other.image_shape:
        yield f"images of shape {other.image_shape} instead of {one.image_shape}"
    renamed = other.class_names != one.class_names and bool(other.class_names and one.class_names)
    if renamed:
        yield describe_classes(one.class_names, other.class_names)
    if one.num_images != other.num_images or known.compared != found.compared:
        return  # then the checksums are of other images
    if known.labels != found.labels and not renamed:
        yield "other labels"
    if known.pixels != found.pixels and one.image_shape == other.image_shape:
        yield "other pixels, or the same images in another order"


def describe_classes(known: tuple[str, ...], found: tuple[str, ...]) -> str:
    """Say which classes are new and which are missing."""
    new, missing = sorted(set(found) - set(known)), sorted(set(known) - set(found))
    clauses = [f"the new class {name}" for name in new[:3]]
    clauses += [f"no class {name}" for name in missing[:3]]
    if len(new) > 3 or len(missing) > 3:
        clauses.append(f"{len(found)} classes instead of {len(known)}")
    return one_line(", ".join(clauses) or "the classes in another order")


def identity_to_json(identity: Identity) -> dict[str, Any]:
    """Convert an identity to JSON values."""
    return {**identity._asdict(), "summary": to_json(identity.summary)}


def identity_from_json(values: Any) -> Identity:
    """Convert back what `identity_to_json` returned. Raises ValueError for anything else."""
    try:
        summary = from_json(values["summary"])
        labels, pixels, compared = (values[name] for name in ("labels", "pixels", "compared"))
        found = Identity(summary, labels, pixels, compared)
        possible = _is_possible(found)
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError("its description of the images is incomplete") from error
    if not possible:
        raise ValueError("its description of the images has impossible values")
    return found


def _is_possible(identity: Identity) -> bool:
    """Whether all numbers are whole, and all names are text."""
    summary, rest = identity.summary, identity[1:]
    numbers = (summary.num_images, *summary.image_shape, *summary.class_counts, *rest)
    whole = all(type(n) is int and 0 <= n < 2**63 for n in numbers)
    named = all(isinstance(name, str) for name in summary.class_names)
    return whole and named and len(summary.image_shape) == 3
