"""The networks whose features images are compared in, and how they run on all devices."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_ddpm.config.jobs import QualityJob
from jax_ddpm.devices.per_example import compile_per_example, replicate_params, round_up
from jax_ddpm.errors import UserError, nearest
from jax_ddpm.files.download import Download, fetch_once
from jax_ddpm.files.images import Pixels
from jax_ddpm.interop.files import read_weights
from jax_ddpm.interop.plain_torch import read_state_dict
from jax_ddpm.jobs.messages import tell
from jax_ddpm.jobs.own_function import load_function, summarize
from jax_ddpm.quality import classifier, inception

INCEPTION = Download(
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    "pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    95_628_359,
)
WAY_OUT = (
    "download it elsewhere and give it with --inception FILE, or compare in other features with "
    "--features FILE.py:FUNCTION"
)
NAMES = ("fashion", "inception")


class FeatureNetwork(NamedTuple):
    """A network whose features images are compared in."""

    name: str
    """For file names."""
    about: str
    """In words, such as "Fashion features"."""
    titles: dict[str, str]
    """What each measure is called in these features, so that nobody mistakes one for FID."""
    digest: str
    """Changes if the features do."""
    params: Any
    apply: Callable[[Any, Any], tuple[Any, Any]]
    """(params, uint8 [b, h, w, c]) -> features [b, d], and logits [b, k] or None."""
    has_logits: bool = True


class Extracted(NamedTuple):
    """Features of images, and logits if the network has any."""

    features: Float[np.ndarray, "n d"]
    logits: Float[np.ndarray, "n k"] | None


def choose_features(job: QualityJob, image_shape: tuple[int, int, int]) -> FeatureNetwork:
    """Choose the network that `job` asks for; by default the one that suits the images.

    Grey images of 28 x 28 get the classifier that ships, unless the job gives Inception's weights;
    all others get Inception. Raises UserError for features that these images cannot have.
    """
    name = job.features
    if name is None:
        small = image_shape == classifier.SHAPE and job.inception is None
        name = "fashion" if small else "inception"
    if job.inception is not None and name != "inception":
        raise UserError(f"--inception is for Inception's features: leave out --features {name}")
    match name:
        case "fashion":
            return make_fashion(image_shape)
        case "inception":
            return make_inception(job.inception)
    if ":" not in name:
        near = nearest(name, NAMES)
        hint = f": did you mean {near}?" if near else ""
        raise UserError(
            f"--features is {name}, but it must be {', '.join(NAMES)} or FILE.py:FUNCTION{hint}"
        )
    return make_own(name, image_shape)


def make_fashion(image_shape: tuple[int, int, int]) -> FeatureNetwork:
    """The classifier that ships. Raises UserError for images of another size."""
    if image_shape != classifier.SHAPE:
        size = "x".join(map(str, image_shape))
        raise UserError(f"--features fashion takes grey images of 28x28, but these are {size}")
    about = "Fashion features"
    return FeatureNetwork(
        "fashion",
        about,
        name_measures(f"FD ({about})", f"KD ({about})", f"classifier score ({about})"),
        hash_file(classifier.WEIGHTS),
        classifier.load_classifier(),
        classifier.classify,
    )


def make_inception(path: Path | None) -> FeatureNetwork:
    """Inception with the published weights, fetched if necessary, or those in the file `path`."""
    file = path or fetch_once(INCEPTION, WAY_OUT, tell=tell)
    if path is not None and not path.is_file():
        raise UserError(f"--inception {path}: there is no such file")
    digest = hash_file(file)
    about = "Inception features"
    titles = name_measures("FID", "KID", "Inception Score")
    if digest != INCEPTION.sha256:
        about = f"features of Inception with the weights in {file.name}, not those of FID"
        titles = name_measures(*(f"{title} (other weights)" for title in ("FD", "KD", "score")))
    read = read_state_dict if file.suffix.lower() == ".pth" else read_weights
    params = inception.convert_inception(read(file))
    return FeatureNetwork("inception", about, titles, digest, params, inception.extract)


def make_own(place: str, image_shape: tuple[int, int, int]) -> FeatureNetwork:
    """The user's own function. Raises UserError unless it returns one vector per image."""
    function = load_function(place, "--features")
    wanted = "features(images [b, h, w, c], uint8) -> [b, d]"
    try:
        found = jax.eval_shape(function, jnp.zeros((2, *image_shape), jnp.uint8))
    except Exception as error:  # whatever the user's function raises
        raise UserError(f"--features {place} is not {wanted}: {summarize(error)}") from error
    shape: tuple[int, ...] = getattr(found, "shape", ())
    if len(shape) != 2 or shape[0] != 2 or not jnp.issubdtype(found.dtype, jnp.floating):
        raise UserError(f"--features {place} is not {wanted}: for two images it returns {found}")
    path, _, name = place.rpartition(":")
    about = f"features of {Path(path).name}:{name}"
    return FeatureNetwork(
        "own",
        about,
        name_measures(*(f"{short} in {Path(path).name}:{name}" for short in ("FD", "KD", "score"))),
        f"{hash_file(Path(path))}:{name}",
        jnp.zeros(()),  # something to copy to all devices, where the function then runs
        lambda _, images: (function(images), None),
        has_logits=False,
    )


def name_measures(frechet: str, kernel: str, score: str) -> dict[str, str]:
    """Name the measures whose names depend on the features."""
    return {"frechet": frechet, "kernel": kernel, "score": score}


def hash_file(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Extractor:
    """The compiled program that extracts features on all devices."""

    def __init__(self, network: FeatureNetwork, batch_size: int) -> None:
        self.batch_size = batch_size
        self._params = replicate_params(jax.tree.map(jnp.asarray, network.params), batch_size)
        self._program = compile_per_example(
            lambda params, images, _: tuple(network.apply(params, images))
        )

    def __call__(self, images: Pixels) -> Extracted:
        """Extract the features of one batch of at most `batch_size` images."""
        size = round_up(self.batch_size, self._params)
        padded = np.resize(images, (size, *images.shape[1:]))  # one shape compiles once
        features, logits = self._program(self._params, padded)
        n = len(images)
        return Extracted(
            np.asarray(features)[:n], None if logits is None else np.asarray(logits)[:n]
        )


def join_batches(batches: Iterator[Extracted] | list[Extracted]) -> Extracted:
    """Join the features of several batches."""
    features, logits = zip(*batches, strict=True)
    whole = None if logits[0] is None else np.concatenate(logits)
    return Extracted(np.concatenate(features), whole)
