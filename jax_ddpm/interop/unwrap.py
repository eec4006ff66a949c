"""Find the bare state dict of a network in a trainer's file or behind prefixes."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jax_ddpm.errors import UserError

# Where trainers keep a network; moving averages come first, because they are used for sampling.
CONTAINERS = (
    "ema",
    "ema_model",
    "ema_state_dict",
    "model",
    "state_dict",
    "model_state_dict",
    "network",
)
PREFIXES = ("ema_model.", "model.", "module.", "network.", "net.", "_orig_mod.")
COUNTERS = {"initted", "step", "global_step"}  # from ema_pytorch and TensorFlow
# TensorFlow's names for the moving average and the optimiser's state.
TF_AVERAGE = "/ExponentialMovingAverage"
TF_SLOTS = ("/Adam", "/Adam_1", "beta1_power", "beta2_power")


def unwrap(given: Mapping[str, Any], buffers: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Find the network's tensors in `given`; return them under their bare names, without `buffers`.

    `given` is a state dict, or a trainer's file that holds one (nested, or flat with prefixes).
    Raises UserError if it holds no tensors.
    """
    tensors = {
        name: np.asarray(value)
        for name, value in open_containers(given).items()
        if not isinstance(value, Mapping) and hasattr(value, "shape")
    }
    tensors = strip_prefixes(tensors)
    weights = {name: value for name, value in tensors.items() if not is_buffer(name, buffers)}
    if not weights:
        raise UserError(f"there are no weights among {', '.join(list(given)[:5]) or 'nothing'}")
    return weights


def open_containers(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow the containers of trainer files down to the mapping that holds tensors."""
    for name in CONTAINERS:
        if isinstance(given.get(name), Mapping):
            return open_containers(given[name])
    return given


def find_tensor(given: Mapping[str, Any], name: str) -> Any | None:
    """Find the tensor called `name`, with any prefix and at any depth; None if there is none."""
    for key, value in given.items():
        if isinstance(value, Mapping):
            if (found := find_tensor(value, name)) is not None:
                return found
        elif key == name or key.endswith(f".{name}"):
            return value
    return None


def strip_prefixes(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Strip the prefixes that all names share; if there are averages, keep only these."""
    if any(name.startswith("ema_model.") for name in tensors):  # drops online_model.
        tensors = {n: v for n, v in tensors.items() if n.startswith("ema_model.")}
    if any(name.endswith(TF_AVERAGE) for name in tensors):
        averages = {n: v for n, v in tensors.items() if n.endswith(TF_AVERAGE)}
        tensors = {name.removesuffix(TF_AVERAGE): value for name, value in averages.items()}
    for prefix in _find_prefixes(tensors):
        tensors = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
    return tensors


def _find_prefixes(tensors: Mapping[str, Any]) -> Iterator[str]:
    """Yield the shared prefixes, outermost first; a wrapper's own buffers may lack them."""
    names = list(tensors)
    while True:
        prefix = next((p for p in PREFIXES if _wraps(p, names)), None)
        if prefix is None:
            return
        yield prefix
        names = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _wraps(prefix: str, names: list[str]) -> bool:
    rest = [name for name in names if not name.startswith(prefix)]
    return len(rest) < len(names) and all("." not in name for name in rest)


def is_buffer(name: str, buffers: tuple[str, ...]) -> bool:
    """Whether `name` is a counter, part of an optimiser's state, or one of `buffers`."""
    if name in COUNTERS or name.endswith(TF_SLOTS):
        return True
    return any(re.search(rf"(^|\.){re.escape(b)}$", name) for b in buffers)
