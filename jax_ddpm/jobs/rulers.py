"""How far drawn images are from a run's data, to compare settings of one run with each other."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jax_ddpm.config.jobs import QualityJob
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.errors import require
from jax_ddpm.files.images import Pixels
from jax_ddpm.jobs.features import Extractor, FeatureNetwork, choose_features, join_batches
from jax_ddpm.jobs.reference import read_images
from jax_ddpm.process.distances import Points, energy_distance
from jax_ddpm.quality import classifier
from jax_ddpm.quality.frechet import distance_of_features, fit_gaussian

REFERENCE = 4000  # the most images from the data to compare with
GROUPS = 10  # the most groups of other images from the data


class Ruler(NamedTuple):
    """A distance to a run's data."""

    name: str
    """In words, such as "FD (Fashion features)"."""
    measure: Callable[[Pixels], float]
    """The distance of images to the data."""
    by_chance: list[float]
    """The distances of groups of other images from the data, each of as many as are drawn."""


class Data(NamedTuple):
    """Disjoint parts of the data. Each group in `others` has as many images as are drawn."""

    reference: Pixels
    others: list[Pixels]


def make_ruler(source: ImageSource, num: int, features: str | None, batch_size: int) -> Ruler:
    """Make the ruler for `num` images: the Frechet distance in `features` (see QualityJob).

    Without `features`, it is in those of the classifier that ships, if these images fit; or else
    the energy distance between pixels. Raises UserError for fewer than 2 * num images of data.
    """
    data = split_data(source, num)
    shape = source.image_shape
    if features is None and shape != classifier.SHAPE:
        return make_energy_ruler(data)
    network = choose_features(QualityJob(features=features), shape)
    return make_frechet_ruler(data, network, min(batch_size, num))


def make_frechet_ruler(data: Data, network: FeatureNetwork, batch_size: int) -> Ruler:
    """The Frechet distance in the features of `network`, which are extracted in batches."""
    extract = Extractor(network, batch_size)

    def find_features(images: Pixels) -> Float[np.ndarray, "n d"]:
        firsts = range(0, len(images), batch_size)
        return join_batches([extract(images[i : i + batch_size]) for i in firsts]).features

    reference = fit_gaussian(find_features(data.reference))

    def measure(images: Pixels) -> float:
        return distance_of_features(find_features(images), reference)

    return Ruler(network.titles["frechet"], measure, [measure(others) for others in data.others])


def make_energy_ruler(data: Data) -> Ruler:
    """The energy distance between pixels, for images that no features ship for."""
    reference = to_points(data.reference)

    def measure(images: Pixels) -> float:
        return energy_distance(to_points(images), reference)

    others = [measure(group) for group in data.others]
    return Ruler("energy distance between pixels", measure, others)


def split_data(source: ImageSource, num: int) -> Data:
    """Pick images spread evenly over the data. Raises UserError for fewer than 2 * num images."""
    total = len(source.images)
    require(total >= 2 * num, "--num", num, f"at most half the {total} images of the data")
    chosen = np.linspace(0, total - 1, min(total, REFERENCE + num)).astype(int)
    chosen = np.random.default_rng(0).permutation(chosen)
    spare = np.random.default_rng(1).permutation(np.setdiff1d(np.arange(total), chosen))
    groups = [chosen[:num], *(spare[i : i + num] for i in range(0, len(spare) - num + 1, num))]
    others = [read_images(source, group) for group in groups[:GROUPS]]
    return Data(read_images(source, chosen[num:]), others)


def to_points(images: Pixels) -> Points:
    """Flatten uint8 images [n, h, w, c] to points [n, h * w * c] in [-1, 1]."""
    return images.reshape(len(images), -1) / 127.5 - 1
