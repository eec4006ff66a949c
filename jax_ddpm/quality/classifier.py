"""A small classifier of Fashion-MNIST that ships, so that images can be compared offline.

Distances in its features are not FID, and comparable only with each other.
"""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

WEIGHTS = Path(__file__).parent / "fashion_classifier.npz"
SHAPE = (28, 28, 1)
NUM_FEATURES, NUM_CLASSES = 128, 10


class Classified(NamedTuple):
    """What the classifier says about images."""

    features: Float[Array, "b 128"]
    logits: Float[Array, "b 10"]


class Classifier(nn.Module):
    """Three convolutions and a dense layer with layer norm; the dense layer's are the features.

    The first convolution sees two by two pixels at once, which makes it quick.
    """

    @nn.compact
    def __call__(self, pixels: UInt8[Array, "b 28 28 1"]) -> Classified:
        x = pixels.astype(jnp.float32) / 127.5 - 1
        x = x.reshape(-1, 14, 2, 14, 2).swapaxes(2, 3).reshape(-1, 14, 14, 4)
        for i, width in enumerate((32, 64, 64)):
            conv = nn.Conv(width, (3, 3), padding="SAME", name=f"conv_{i}", precision="highest")
            x = nn.relu(nn.LayerNorm(epsilon=1e-5, name=f"norm_{i}")(conv(x)))
            x = nn.max_pool(x, (2, 2), (2, 2)) if i > 0 else x
        dense = nn.Dense(NUM_FEATURES, name="dense", precision="highest")
        x = dense(x.reshape(-1, 3 * 3 * 64))
        features = nn.relu(nn.LayerNorm(epsilon=1e-5, name="norm")(x))
        logits = nn.Dense(NUM_CLASSES, name="logits", precision="highest")(features)
        return Classified(features, logits)


def classify(params: Any, pixels: UInt8[Array, "b 28 28 1"]) -> Classified:
    """Compute features and logits."""
    return Classifier().apply({"params": params}, pixels)  # type: ignore[return-value]


@cache
def load_classifier() -> Any:
    """Load the parameters that ship with the package."""
    params: dict[str, Any] = {}
    with np.load(WEIGHTS, allow_pickle=False) as arrays:
        for name, array in arrays.items():
            layer, leaf = name.split("/")
            params.setdefault(layer, {})[leaf] = array.astype(np.float32)
    return params


def save_classifier(path: Path, params: Any) -> None:
    """Write parameters in half precision, under names such as conv_0/kernel."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays: dict[str, Any] = {
        jax.tree_util.keystr(where, simple=True, separator="/"): np.asarray(leaf, np.float16)
        for where, leaf in leaves
    }
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)
