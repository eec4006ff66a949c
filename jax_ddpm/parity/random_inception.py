"""Random weights for the Inception network under PyTorch's names; they depend only on the seed."""

import jax
import numpy as np

from jax_ddpm.quality.inception import RENAMED, inception_shapes

THEIR_NAMES = {ours: theirs for theirs, ours in RENAMED.items()}
SEED = 2015


def list_tensors() -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in the file that torch-fidelity loads, by name, sorted."""
    is_shape = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    shapes: dict[str, tuple[int, ...]] = {"fc.bias": (1008,)}
    for path, shape in jax.tree_util.tree_leaves_with_path(inception_shapes(), is_leaf=is_shape):
        *modules, last = [key.key for key in path]
        turned = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        shapes[
            ".".join([*modules, THEIR_NAMES.get(last, "weight")]) if modules else "fc.weight"
        ] = turned
    return dict(sorted(shapes.items()))


def draw_state_dict(dtype: str = "float64", seed: int = SEED) -> dict[str, np.ndarray]:
    """Draw weights that keep activations at the size of 1, float32 values in `dtype`."""
    rng = np.random.default_rng(seed)
    return {
        name: draw_tensor(rng, name, shape).astype(dtype) for name, shape in list_tensors().items()
    }


def draw_tensor(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw one tensor, float32."""
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    noise = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("bn.weight"):
        return 1 + np.float32(0.1) * noise
    if len(shape) == 1:
        return np.float32(0.1) * noise
    return noise * np.float32(np.sqrt(2 / np.prod(shape[1:])))


def draw_pictures(seed: int = SEED) -> np.ndarray:
    """Two colour pictures of 32 x 32, uint8: noise, and smooth."""
    rng = np.random.default_rng(seed)
    rows, columns, channels = np.mgrid[:32, :32, :3]
    smooth = 127.5 * (1 + np.sin(rows / 5 + channels) * np.cos(columns / 4))
    return np.stack([rng.integers(0, 256, (32, 32, 3)), smooth]).astype(np.uint8)
