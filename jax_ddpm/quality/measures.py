"""The measures of image quality by name, each with a confidence range if one is known."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jax_ddpm.errors import check_choice
from jax_ddpm.quality.distances import cubic_mmd, inception_score, kernel_distance
from jax_ddpm.quality.frechet import Gaussian, distance_of_features, fit_gaussian, frechet_distance
from jax_ddpm.quality.manifolds import (
    DENSITY_NEIGHBOURS,
    PRECISION_NEIGHBOURS,
    density_and_coverage,
    precision_and_recall,
)

CONFIDENCE = 0.95
NUM_SPLITS = 10
SUBSET = 1000  # images of a reference that a split's kernel distance compares with


class Sets(NamedTuple):
    """What is measured: features of drawn images, and those of the reference."""

    drawn: Float[np.ndarray, "n d"]
    logits: Float[np.ndarray, "n k"] | None
    """The classes that the network sees in the drawn images; None if it names none."""
    reference: Gaussian
    real: Float[np.ndarray, "m d"] | None
    """None if only the statistics of the reference are known."""


class Figure(NamedTuple):
    """A number, and half the width of its confidence range; None: unknown."""

    value: float
    margin: float | None = None


Figures = Mapping[str, Figure]


class Measure(NamedTuple):
    """A measure: what computes it, and what it needs."""

    compute: Callable[[Sets], Figures]
    needs_images: int = 0
    """How many images the reference must have; 0: its statistics are enough."""
    needs_logits: bool = False


def measure_frechet(sets: Sets) -> Figures:
    """The Frechet distance; lower is better."""
    value = frechet_distance(fit_gaussian(sets.drawn), sets.reference)
    found = [distance_of_features(rest, sets.reference) for rest in leave_out_parts(sets.drawn)]
    return {"frechet": Figure(value, estimate_margin_without(found))}


def measure_kernel(sets: Sets) -> Figures:
    """The kernel distance with the subsets of torch-fidelity; lower is better."""
    assert sets.real is not None
    chosen = np.linspace(0, len(sets.real) - 1, min(SUBSET, len(sets.real))).astype(int)
    some = sets.real[chosen].astype(np.float64)
    found = [cubic_mmd(part.astype(np.float64), some) for part in split(sets.drawn)]
    return {"kernel": Figure(kernel_distance(sets.drawn, sets.real).mean, estimate_margin(found))}


def measure_score(sets: Sets) -> Figures:
    """The Inception Score, in the classes of the feature network; higher is better."""
    assert sets.logits is not None
    found = inception_score(sets.logits, num_splits=NUM_SPLITS)
    scale = find_quantile(NUM_SPLITS) / np.sqrt(NUM_SPLITS - 1)
    return {"score": Figure(found.mean, float(found.spread * scale))}


def measure_precision(sets: Sets) -> Figures:
    """The shares of drawn images that look real, and of real images that the drawn ones reach."""
    assert sets.real is not None
    found = precision_and_recall(sets.drawn, sets.real)
    return {name: Figure(value) for name, value in found._asdict().items()}


def measure_density(sets: Sets) -> Figures:
    """The same with density and coverage."""
    assert sets.real is not None
    found = density_and_coverage(sets.drawn, sets.real)
    return {name: Figure(value) for name, value in found._asdict().items()}


MEASURES = {
    "frechet": Measure(measure_frechet),
    "kernel": Measure(measure_kernel, needs_images=2),
    "score": Measure(measure_score, needs_logits=True),
    "precision": Measure(measure_precision, needs_images=PRECISION_NEIGHBOURS + 1),
    "density": Measure(measure_density, needs_images=DENSITY_NEIGHBOURS + 1),
}
# "precision density" stands for two measures.
MEASURE_ALIASES = {
    "fid": "frechet",
    "fd": "frechet",
    "kid": "kernel",
    "kd": "kernel",
    "mmd": "kernel",
    "is": "score",
    "isc": "score",
    "inception_score": "score",
    "inception-score": "score",
    "recall": "precision",
    "prc": "precision",
    "coverage": "density",
    "prdc": "precision density",
}
if TYPE_CHECKING:
    MeasureName = str
else:
    MeasureName = Literal[tuple(MEASURES)]


def find_measures(names: Sequence[str]) -> tuple[MeasureName, ...]:
    """The measures that `names` stand for, each once. Raises UserError for an unknown name."""
    found = [check_choice("--measures", name, MEASURES, MEASURE_ALIASES) for name in names]
    return tuple(dict.fromkeys(word for words in found for word in words.split()))


def split(drawn: Float[np.ndarray, "n d"]) -> list[Float[np.ndarray, "_ d"]]:
    """Split into disjoint parts of equal size, each with images from all over the set."""
    return [drawn[part] for part in choose_parts(len(drawn))]


def leave_out_parts(drawn: Float[np.ndarray, "n d"]) -> list[Float[np.ndarray, "_ d"]]:
    """All images but those of a part, for each of the parts of `split`."""
    return [np.delete(drawn, part, axis=0) for part in choose_parts(len(drawn))]


def choose_parts(num: int) -> list[Int[np.ndarray, " size"]]:
    """The indices of each part; [] if a part would have less than two.

    They are shuffled, always in the same way: images may be sorted, or their classes drawn in turn.
    """
    size = num // NUM_SPLITS
    shuffled = np.random.default_rng(0).permutation(num)
    return [shuffled[i * size : (i + 1) * size] for i in range(NUM_SPLITS)] if size >= 2 else []


def estimate_margin(of_splits: list[float]) -> float | None:
    """Half the width of the confidence range of the whole, from its value in each split.

    The spread of an average shrinks with the root of the number of images. A distance of few images
    is larger than that of many, which adds the same to every split and does not widen the range.
    """
    n = len(of_splits)
    if n < 2:
        return None
    return float(find_quantile(n) * np.std(of_splits, ddof=1) / np.sqrt(n))


def find_quantile(n: int) -> float:
    """Student's quantile for the confidence range of a mean of n values."""
    from scipy.special import stdtrit  # takes long to import, and training needs none

    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))


def estimate_margin_without(of_rests: list[float]) -> float | None:
    """The same by the jackknife, from the value without each part (Efron and Stein 1981).

    A Frechet distance of few images is much larger and varies more than that of all, so the parts
    themselves would give too wide a range.
    """
    margin = estimate_margin(of_rests)
    return None if margin is None else (len(of_rests) - 1) * margin
