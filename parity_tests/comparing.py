"""What the parity tests share: comparison, layouts, recorded arrays, a toy denoiser, networks."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jax_ddpm.interop import PEERS, from_state_dict
from jax_ddpm.models import make_network
from jax_ddpm.parity.measure import find_peak, measure_difference, zip_leaves
from jax_ddpm.parity.tolerances import TOLERANCES

# Imported here for the tests.
from jax_ddpm.parity.twins import (  # noqa: F401
    TINY,
    convert_params,
    convert_tree,
    draws,
    make_twin_networks,
    to_jax,
    to_torch,
)

GOLDENS = Path(__file__).parent / "goldens"
# For tests that take long to compile: float32 runs with the slow tests only.
DOUBLE_FIRST = ["float64", pytest.param("float32", marks=pytest.mark.slow)]
SHORT = {"float32": "f32", "float64": "f64"}
# Networks in tests are tiny: compiling them takes most of the time, so compile without optimising.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@dataclass
class Comparison:
    """The worst of all comparisons of one kind."""

    arrays: int = 0
    worst: dict[str, float] = field(default_factory=dict)
    tolerance: dict[str, float] = field(default_factory=dict)

    def add(self, other: "Comparison") -> None:
        """Include what another process has compared."""
        self.arrays += other.arrays
        self.tolerance |= other.tolerance
        for dtype, gap in other.worst.items():
            self.worst[dtype] = max(self.worst.get(dtype, 0.0), gap)

    def cells(self):
        for dtype in ("float64", "float32"):
            for values in (self.worst, self.tolerance):
                yield f"{values[dtype]:.1e}" if dtype in values else "-"


@dataclass
class Recorder:
    """Compares arrays or trees, records the difference, and fails if it is out of tolerance.

    The difference is max |ours - theirs| over `peak`, by default max |theirs| of the whole tree.
    """

    table: dict[tuple[str, str], Comparison]
    theirs: str

    def __call__(
        self, what: str, ours: Any, theirs: Any, dtype: str, peak: float | None = None
    ) -> None:
        tolerance = getattr(TOLERANCES[what], dtype)
        row = self.table.setdefault((what, self.theirs), Comparison())
        peak = peak or find_peak(theirs)
        for path, a, b in zip_leaves(ours, theirs, dtype):
            gap = measure_difference(a, b, peak).relative
            row.add(Comparison(1, {dtype: gap}, {dtype: tolerance}))
            assert gap <= tolerance, f"{what}{path}: {gap:.2e} > {tolerance}"


def read_golden(case: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the manifest and the arrays of a recorded case."""
    folder = GOLDENS / case
    with np.load(folder / "io.npz") as arrays:
        return json.loads((folder / "manifest.json").read_text()), dict(arrays)


def load_weights(folder: Path) -> dict[str, np.ndarray]:
    """Read the recorded state dict of a network."""
    if (folder / "weights.safetensors").exists():
        return safetensors.numpy.load_file(folder / "weights.safetensors")
    with np.load(folder / "weights.npz") as arrays:
        return dict(arrays)


def toy_denoiser(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
    """The function that replaces a network in the recorded chains."""
    angle = t.astype(x.dtype)[:, None, None, None] / 100
    return 0.5 * x + 0.2 * jnp.sin(x) + 0.05 * jnp.cos(angle)


def nchw_to_nhwc(array: np.ndarray) -> np.ndarray:
    """Move the channels of [..., c, h, w] to the end."""
    return np.moveaxis(array, -3, -1)


def check_recorded_unet(compare, dtype, case, config, source, layout=lambda array: array):
    """Compare output, loss, gradient of the input, and three numbers for each parameter.

    They are the sum and the norm of its gradient, and its inner product with the parameter.
    """
    manifest, io = read_golden(case)
    recorded = {name[4:]: io[name] for name in io if name.startswith(SHORT[dtype])}
    x, target = (layout(io[name]).astype(dtype) for name in ("in.x", "in.target"))
    network = make_network(config, x.shape[1:], dtype=dtype)
    like = jax.eval_shape(network.init, jax.random.key(0))
    weights = {k: v.astype(dtype) for k, v in load_weights(GOLDENS / case).items()}
    params = from_state_dict(weights, PEERS[source], like)

    def loss_fn(params, x):
        out = network.apply_fn(params, x, jnp.asarray(io["in.t"]))
        return ((out - target) ** 2).mean(), out

    gradient = jax.value_and_grad(loss_fn, (0, 1), has_aux=True)
    (loss, out), (grads, grad_x) = jax.jit(gradient, compiler_options=QUICK)(params, x)
    compare("U-Net", out, layout(recorded["out"]), dtype)
    compare("U-Net", loss, recorded["loss"].astype(dtype).reshape(()), dtype)
    compare("U-Net: gradients", grad_x, layout(recorded["grad_x"]), dtype)
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True)
    ours = [(g.sum(), jnp.linalg.norm(g.ravel()), (g * p).sum()) for g, p in pairs]
    rows = recorded["param_grads"][
        order_rows(manifest["config"]["grad_rows"], weights, source, like)
    ]
    compare("U-Net: gradients", np.array(ours, dtype), rows.astype(dtype), dtype)


def order_rows(names, weights, source, like):
    """Find the recorded row of each parameter, by converting row numbers like weights."""
    numbers = {name: np.full(weights[name].shape, i) for i, name in enumerate(names)}
    return [
        np.ravel(leaf)[0] for leaf in jax.tree.leaves(from_state_dict(numbers, PEERS[source], like))
    ]
