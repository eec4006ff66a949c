"""The kernel distance and the Inception Score, with the draws of torch-fidelity."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jax_ddpm.errors import UserError

Features = Float[np.ndarray, "n d"]
Others = Float[np.ndarray, "m d"]
SEED = 2020  # torch-fidelity's, so that the same features give the same numbers


class MeanAndSpread(NamedTuple):
    """The mean over subsets, and the standard deviation between them."""

    mean: float
    spread: float


def kernel_distance(
    x: Features, y: Others, *, num_subsets: int = 100, subset_size: int = 1000, seed: int = SEED
) -> MeanAndSpread:
    """The unbiased MMD^2 with a cubic kernel, KID in Inception's features (Binkowski et al. 2018).

    It is the mean over random subsets of `subset_size` features, or of all if there are fewer.
    """
    size = min(subset_size, len(x), len(y))
    if size < 2:
        raise UserError(f"{size} images are too few for a kernel distance: use at least 2")
    x, y = x.astype(np.float64), y.astype(np.float64)
    rng = np.random.RandomState(seed)
    found = [
        cubic_mmd(
            x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)]
        )
        for _ in range(num_subsets)
    ]
    return MeanAndSpread(float(np.mean(found)), float(np.std(found)))


def cubic_mmd(x: Features, y: Others) -> float:
    """The unbiased MMD^2 of two sets with the kernel (x . y / d + 1)^3."""

    def kernel(a: Features, b: Others) -> Float[np.ndarray, "n m"]:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_of_pairs(a: Features) -> float:
        values = kernel(a, a)
        return (values.sum() - np.trace(values)) / (len(a) * (len(a) - 1))

    return float(mean_of_pairs(x) + mean_of_pairs(y) - 2 * kernel(x, y).mean())


def inception_score(
    logits: Float[np.ndarray, "n k"], *, num_splits: int = 10, seed: int = SEED
) -> MeanAndSpread:
    """exp E KL(p(class | image) || p(class)) over splits (Salimans et al. 2016, Sec. 4)."""
    from scipy.special import log_softmax  # takes long to import, and training needs none

    n = len(logits)
    if n < num_splits:
        raise UserError(f"{n} images are too few for a score of {num_splits} splits")
    shuffled = logits[np.random.RandomState(seed).permutation(n)].astype(np.float64)
    log_p = log_softmax(shuffled, axis=1)
    scores = []
    for i in range(num_splits):
        part = log_p[i * n // num_splits : (i + 1) * n // num_splits]
        p = np.exp(part)
        divergence = (p * (part - np.log(p.mean(0)))).sum(1)
        scores.append(np.exp(divergence.mean()))
    return MeanAndSpread(float(np.mean(scores)), float(np.std(scores)))
