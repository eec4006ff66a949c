"""What the parity tests share: comparing, layouts, golden arrays, a toy denoiser, tiny networks."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from jax.tree_util import keystr, tree_leaves_with_path
from tolerances import TOLERANCES

from jax_ddpm.interop import PEERS, from_state_dict
from jax_ddpm.models import NetworkFns, UNet, make_network
from torch_ref.unet import UNet as TorchUNet

GOLDENS = Path(__file__).parent / "goldens"
# For tests whose compilation takes long: single precision is left to the slow run.
DOUBLE_FIRST = ["float64", pytest.param("float32", marks=pytest.mark.slow)]
SHORT = {"float32": "f32", "float64": "f64"}


@dataclass
class Comparison:
    """The worst of all comparisons of one kind."""

    arrays: int = 0
    worst: dict[str, float] = field(default_factory=dict)
    tolerance: dict[str, float] = field(default_factory=dict)

    def cells(self):
        for dtype in ("float64", "float32"):
            for values in (self.worst, self.tolerance):
                yield f"{values[dtype]:.1e}" if dtype in values else "-"


@dataclass
class Recorder:
    """Compares arrays or trees, notes the difference, and fails if it is out of tolerance.

    The difference is max|ours - theirs| / max|theirs|, the latter over a whole tree: some gradients
    are exactly zero in theory (that of an attention's key bias) and noise in practice.
    """

    table: dict[tuple[str, str], Comparison]
    theirs: str

    def __call__(self, what: str, ours: Any, theirs: Any, dtype: str) -> None:
        tolerance = getattr(TOLERANCES[what], dtype)
        row = self.table.setdefault((what, self.theirs), Comparison())
        leaves, expected = tree_leaves_with_path(ours), jax.tree.leaves(theirs)
        assert len(leaves) == len(expected)
        peak = max((float(np.abs(b).max()) for b in expected), default=0.0) or 1.0
        for (path, a), b in zip(leaves, expected, strict=True):
            a, b = np.asarray(a), np.asarray(b)
            assert a.shape == b.shape, f"{keystr(path)}: {a.shape} is not {b.shape}"
            assert a.dtype == b.dtype == dtype, f"{keystr(path)}: {a.dtype}, {b.dtype}"
            difference = float(np.abs(a - b).max()) / peak
            row.arrays += 1
            row.worst[dtype] = max(row.worst.get(dtype, 0.0), difference)
            row.tolerance[dtype] = tolerance
            assert difference <= tolerance, f"{what}{keystr(path)}: {difference:.2e} > {tolerance}"


def to_jax(array: torch.Tensor) -> np.ndarray:
    """NCHW tensor -> NHWC array; others as they are."""
    array = array.detach().numpy()
    return np.moveaxis(array, 1, -1) if array.ndim == 4 else array


def to_torch(array: np.ndarray) -> torch.Tensor:
    """NHWC array -> NCHW tensor; others as they are."""
    array = np.moveaxis(array, -1, 1) if array.ndim == 4 else array
    return torch.from_numpy(np.array(array))


def golden(case: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The manifest and the arrays of a recorded case."""
    folder = GOLDENS / case
    with np.load(folder / "io.npz") as arrays:
        return json.loads((folder / "manifest.json").read_text()), dict(arrays)


def load_weights(folder: Path) -> dict[str, np.ndarray]:
    """The recorded state dict of a network."""
    if (folder / "weights.safetensors").exists():
        return safetensors.numpy.load_file(folder / "weights.safetensors")
    with np.load(folder / "weights.npz") as arrays:
        return dict(arrays)


def toy_denoiser(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
    """The function that stands for a network in the recorded chains."""
    angle = t.astype(x.dtype)[:, None, None, None] / 100
    return 0.5 * x + 0.2 * jnp.sin(x) + 0.05 * jnp.cos(angle)


def nchw_to_nhwc(array: np.ndarray) -> np.ndarray:
    """Move the channels of [..., c, h, w] to the end."""
    return np.moveaxis(array, -3, -1)


def check_recorded_unet(compare, dtype, case, module, source, layout=lambda array: array):
    """Output, loss, gradient of the input, and three numbers of every parameter's gradient.

    These are its sum, its norm and its inner product with the parameter.
    """
    manifest, io = golden(case)
    recorded = {name[4:]: io[name] for name in io if name.startswith(SHORT[dtype])}
    x, target = (layout(io[name]).astype(dtype) for name in ("in.x", "in.target"))
    network = make_network(module, x.shape[1:])
    like = jax.eval_shape(network.init, jax.random.key(0))
    weights = {k: v.astype(dtype) for k, v in load_weights(GOLDENS / case).items()}
    params = from_state_dict(weights, PEERS[source], like)

    def loss_fn(params, x):
        out = network.apply_fn(params, x, jnp.asarray(io["in.t"]))
        return ((out - target) ** 2).mean(), out

    gradient = jax.jit(jax.value_and_grad(loss_fn, (0, 1), has_aux=True))
    (loss, out), (grads, grad_x) = gradient(params, x)
    compare("U-Net", out, layout(recorded["out"]), dtype)
    compare("U-Net", loss, recorded["loss"].astype(dtype).reshape(()), dtype)
    compare("U-Net: gradients", grad_x, layout(recorded["grad_x"]), dtype)
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True)
    ours = [(g.sum(), jnp.linalg.norm(g.ravel()), (g * p).sum()) for g, p in pairs]
    rows = recorded["param_grads"][
        row_order(manifest["config"]["grad_rows"], weights, source, like)
    ]
    compare("U-Net: gradients", np.array(ours, dtype), rows.astype(dtype), dtype)


def row_order(names, weights, source, like):
    """Which recorded row belongs to which of our parameters: row numbers sent through the names."""
    numbers = {name: np.full(weights[name].shape, i) for i, name in enumerate(names)}
    return [
        np.ravel(leaf)[0] for leaf in jax.tree.leaves(from_state_dict(numbers, PEERS[source], like))
    ]


TINY = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attn_levels": (1,)}


def twin_networks(dtype: str, *, seed: int = 0, channels: int = 3, **kwargs: Any):
    """The same network twice: (torch module in eval mode, our Network, its parameters).

    Random draws are added to the initial parameters, so that layers which start at zero are active.
    """
    config = {**TINY, "dropout": 0.0, "num_groups": 4, **kwargs}
    generator = torch.Generator().manual_seed(seed)
    theirs = TorchUNet(in_channels=channels, out_channels=channels, **config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            parameter.add_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    theirs = theirs.to(getattr(torch, dtype)).eval()
    module = UNet(out_channels=channels, dtype=jnp.dtype(dtype), **config)
    network = make_network(module, (8, 8, channels))
    return theirs, network, params_of(theirs, network)


def params_of(theirs: torch.nn.Module, network: NetworkFns) -> Any:
    """The parameters of a torch_ref network as ours."""
    return tree_of({name: p for name, p in theirs.named_parameters()}, network)


def tree_of(tensors: dict[str, torch.Tensor], network: NetworkFns) -> Any:
    """Tensors by parameter name (parameters, gradients, moments) as a tree of our parameters."""
    like = jax.eval_shape(network.init, jax.random.key(0))
    # copies: torch updates its tensors in place, perhaps while JAX still reads them
    arrays = {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}
    return from_state_dict(arrays, PEERS["torch_ref"], like)


def draws(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Standard normal numbers, the same in both precisions up to the cast."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
