"""The images that drawn ones are compared with: their features, cached per data set."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jax_ddpm.config.run import SourceConfig
from jax_ddpm.data.sources import ImageSource, Split
from jax_ddpm.devices.processes import is_main_process, max_over_processes
from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.download import find_cache
from jax_ddpm.files.images import Pixels
from jax_ddpm.files.statistics import read_statistics
from jax_ddpm.files.untrusted import read_npz
from jax_ddpm.jobs.features import Extracted, Extractor, FeatureNetwork, join_batches
from jax_ddpm.jobs.messages import make_bar, tell
from jax_ddpm.quality.frechet import Gaussian, fit_gaussian

PROBES = 64  # images whose pixels identify a data set


class Reference(NamedTuple):
    """The features that drawn images are compared with."""

    about: str
    statistics: Gaussian
    features: Float[np.ndarray, "m d"] | None
    """None if it comes from a file of statistics."""
    digest: str
    """Changes if the images or their preparation do."""


def describe_data(data: SourceConfig, split: Split, count: int) -> str:
    """Say which images these are."""
    kind = "test" if split == "test" else "training"
    return f"{count:,} {kind} images of {data.name}"


def identify(data: SourceConfig, part: str, source: ImageSource) -> str:
    """Hash what determines the images: the data set, how it is prepared, and some of its pixels."""
    count = len(source.images)
    digest = hashlib.sha256()
    fields = ("name", "image_size", "channels", "crop", "resize")
    facts = {name: str(getattr(data, name)) for name in fields}
    digest.update(json.dumps([facts, part, count]).encode())
    for i in np.unique(np.linspace(0, count - 1, PROBES).astype(int)):
        digest.update(np.ascontiguousarray(source.images[int(i)]).tobytes())
    return digest.hexdigest()


def find_cached(network: FeatureNetwork, data: SourceConfig, part: str, digest: str) -> Path:
    """The file in the user's cache for the features of a data set."""
    both = hashlib.sha256(f"{network.digest} {digest}".encode()).hexdigest()[:16]
    name = "".join(c if c.isalnum() else "_" for c in data.name)
    return find_cache() / "references" / f"{name}-{part}-{network.name}-{both}.npz"


def load_reference(
    network: FeatureNetwork,
    extractor: Extractor,
    data: SourceConfig,
    split: Split,
    source: ImageSource,
) -> Reference:
    """Load the features of all images of `source` from the cache, or extract and store them."""
    features = load_features(network, extractor, data, split, source).features
    about = describe_data(data, split, len(source.images))
    return Reference(about, fit_gaussian(features), features, identify(data, split, source))


def load_features(
    network: FeatureNetwork,
    extractor: Extractor,
    data: SourceConfig,
    part: str,
    source: ImageSource,
) -> Extracted:
    """Load features and logits of all images of `source` from the cache, or extract and store them.

    `part` says which part of the data these images are.
    """
    path = find_cached(network, data, part, identify(data, part, source))
    found = read_cached(path, len(source.images), with_logits=network.has_logits)
    if max_over_processes(int(found is None)):  # all extract together, or none does
        found = extract_all(extractor, source)
        store(path, found)
    assert found is not None
    return found


def read_cached(path: Path, count: int, *, with_logits: bool) -> Extracted | None:
    """Read cached features; None if they are missing or damaged."""
    if not path.is_file():
        return None
    try:
        arrays = read_npz(path)
        found = Extracted(arrays["features"], arrays["logits"] if with_logits else None)
    except (UserError, KeyError):
        return None
    wanted = [array for array in found if array is not None]
    sound = all(a.ndim == 2 and len(a) == count and np.isfinite(a).all() for a in wanted)
    return found if sound else None


def store(path: Path, found: Extracted) -> None:
    """Store features; a cache that cannot be written costs only time."""
    if not is_main_process():
        return
    arrays = {name: array for name, array in found._asdict().items() if array is not None}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    try:
        write_atomically(path, write)
    except UserError as error:
        tell(f"The features of the data are not kept for the next time: {error}")


def extract_all(extractor: Extractor, source: ImageSource) -> Extracted:
    """Extract the features of all images, with a progress bar."""
    count, size, done = len(source.images), extractor.batch_size, []
    with make_bar(count, "img") as bar:
        bar.set_postfix_str("features of the data")
        for first in range(0, count, size):
            images = read_images(source, np.arange(first, min(first + size, count)))
            done.append(extractor(images))
            bar.update(len(images))
    return join_batches(done)


def read_images(source: ImageSource, indices: Any) -> Pixels:
    """Read images by index."""
    return np.stack([source.images[int(i)] for i in indices])


def read_reference(path: Path, dimensions: int) -> Reference:
    """Read a reference from a file of statistics. Raises UserError if it has other dimensions."""
    statistics = read_statistics(path)
    if len(statistics.mean) != dimensions:
        raise UserError(
            f"--reference {path} has {len(statistics.mean)} features, but the feature network has "
            f"{dimensions}"
        )
    digest = hashlib.sha256(statistics.mean.tobytes() + statistics.covariance.tobytes())
    return Reference(f"statistics in {path.name}", statistics, None, digest.hexdigest())
