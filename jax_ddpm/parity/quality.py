"""Pair the features and measures of images of jax_ddpm and torch-fidelity."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jax_ddpm.files.statistics import read_statistics
from jax_ddpm.parity.quantities import Pair
from jax_ddpm.parity.random_inception import SEED, draw_pictures, draw_state_dict
from jax_ddpm.parity.twins import to_jax, to_torch
from jax_ddpm.quality.distances import inception_score, kernel_distance
from jax_ddpm.quality.frechet import fit_gaussian, frechet_distance
from jax_ddpm.quality.inception import SIDE, convert_inception, extract, resize_as_tensorflow_1
from jax_ddpm.quality.manifolds import precision_and_recall

NUM_DRAWN, NUM_REAL, WIDTH, NUM_CLASSES = 260, 300, 24, 10


def pair_quality(dtype: str, seed: int) -> Iterator[Pair]:
    """Pair resized images, Inception with random weights, the measures, and statistics files."""
    yield from _pair_resizing(dtype, seed)
    yield from _pair_inception(dtype, seed)
    yield from _pair_measures(dtype, seed)
    yield from _pair_statistics(dtype, seed)


def _pair_resizing(dtype: str, seed: int) -> Iterator[Pair]:
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x as resize,
    )

    large = np.random.default_rng(seed).integers(0, 256, (1, 310, 400, 3))
    for what, images in (("enlarged", draw_pictures(SEED + seed)), ("shrunk", large)):
        images = images.astype(dtype)
        theirs = resize(to_torch(images), size=(SIDE, SIDE), align_corners=False)
        ours = resize_as_tensorflow_1(jnp.asarray(images))
        yield Pair(
            f"images resized to {SIDE} x {SIDE}", what, "resized images", ours, to_jax(theirs)
        )


def _pair_inception(dtype: str, seed: int) -> Iterator[Pair]:
    pictures = draw_pictures(SEED + seed)
    weights = draw_state_dict("float32", SEED + seed)
    ours = jax.jit(extract)(convert_inception(weights, dtype), pictures)
    theirs = extract_with_torch_fidelity(weights, pictures, dtype)
    group = "Inception of 2015 with random weights, from uint8 images"
    for what, a, b in zip(("2048 features", "logits"), ours, theirs, strict=True):
        yield Pair(group, what, "Inception", a, b)


def extract_with_torch_fidelity(
    weights: dict[str, np.ndarray], pictures: np.ndarray, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """Compute features and logits with torch-fidelity, before it casts them to float32."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    precision = getattr(torch, dtype)
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    counts = {name: torch.tensor(0) for name in weights if name.endswith("running_var")}
    tensors |= {name.replace("running_var", "num_batches_tracked"): n for name, n in counts.items()}
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "weights.pth")
        torch.save(tensors, path)
        network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], path)
    network.to(precision)
    network.feature_extractor_internal_dtype = precision
    seen: list[Any] = []
    network.AvgPool.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        network(to_torch(pictures))
        features = seen[0].flatten(1)
        return features.numpy(), features.mm(network.fc.weight.T).numpy()


def _pair_measures(dtype: str, seed: int) -> Iterator[Pair]:
    """Pair the measures of the same features; both frameworks compute them in float64."""
    drawn, real, logits = draw_features(seed)
    theirs = measure_with_torch_fidelity(drawn, real, logits)
    kid = kernel_distance(drawn, real, num_subsets=20, subset_size=100)
    score = inception_score(logits)
    shares = precision_and_recall(drawn, real)
    distance = frechet_distance(fit_gaussian(drawn), fit_gaussian(real))
    ours = {
        "frechet_inception_distance": ("Frechet distance", distance),
        "kernel_inception_distance_mean": ("kernel distance: mean", kid.mean),
        "kernel_inception_distance_std": ("kernel distance: spread", kid.spread),
        "inception_score_mean": ("Inception Score: mean", score.mean),
        "inception_score_std": ("Inception Score: spread", score.spread),
        "precision": ("precision", shares.precision),
        "recall": ("recall", shares.recall),
    }
    for name, (what, value) in ours.items():
        share = name in ("precision", "recall")  # theirs are float32
        tolerance = "shares of images" if share else "measures of features"
        a, b = (np.asarray([v], dtype) for v in (value, theirs[name]))
        yield Pair("measures of the same features", what, tolerance, a, b)


def draw_features(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw features of drawn and real images that differ a little, and logits."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((WIDTH, WIDTH)) / 5
    other = mix + 0.05 * rng.standard_normal((WIDTH, WIDTH))
    real = rng.standard_normal((NUM_REAL, WIDTH)) @ mix + 0.3
    drawn = rng.standard_normal((NUM_DRAWN, WIDTH)) @ other + 0.45
    return drawn, real, 3 * rng.standard_normal((NUM_DRAWN, NUM_CLASSES))


def measure_with_torch_fidelity(
    drawn: np.ndarray, real: np.ndarray, logits: np.ndarray
) -> dict[str, float]:
    """Compute all measures with torch-fidelity, by its names."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    a, b, c = map(torch.from_numpy, (drawn, real, logits))
    statistics = (fid_features_to_statistics(features) for features in (a, b))
    found: dict[str, Any] = fid_statistics_to_metric(*statistics, False)
    found |= kid_features_to_metric(a, b, kid_subsets=20, kid_subset_size=100, verbose=False)
    found |= isc_features_to_metric(c)
    found |= prc_features_to_metric(a, b, verbose=False)
    return {name: float(value) for name, value in found.items()}


def _pair_statistics(dtype: str, seed: int) -> Iterator[Pair]:
    """Pair a file of statistics, written as pytorch-fid and EDM do, and what we read from it."""
    gaussian = fit_gaussian(draw_features(seed)[1])
    mean, covariance = gaussian.mean.astype(dtype), gaussian.covariance.astype(dtype)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "statistics.npz"
        np.savez_compressed(path, mu=mean, sigma=covariance)
        found = read_statistics(path)
    for what, ours, theirs in (("mu", found.mean, mean), ("sigma", found.covariance, covariance)):
        yield Pair("a file of statistics", what, "statistics files", ours.astype(dtype), theirs)
