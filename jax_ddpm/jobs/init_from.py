"""Begin a run with the parameters of another run or of a weight file, as far as they fit."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_ddpm import runs
from jax_ddpm.config.train import TrainConfig
from jax_ddpm.devices.layout import to_one_device
from jax_ddpm.errors import UserError
from jax_ddpm.interop import from_torch
from jax_ddpm.jobs.messages import tell
from jax_ddpm.jobs.parameters import require_checkpoints
from jax_ddpm.optim.averages import Params
from jax_ddpm.runs.checkpoint import open_checkpoints, read_newest, restore_field
from jax_ddpm.runs.stored import name_leaves

InitFn = Callable[[Any], Params]
FIELDS = {"average": "ema_params", "raw": "params"}  # of a train state
SHOWN = 5  # names in a list


class Given(NamedTuple):
    """Parameters that a run may begin with."""

    arrays: Mapping[str, np.ndarray]
    """The arrays by name, such as "conv_in/kernel"."""
    origin: str
    """Which parameters these are."""


def begin_with_given(init: InitFn, train: TrainConfig) -> InitFn:
    """Change `init` to return the parameters of train.init_from, as far as they fit, and say so.

    An array fits if the network has one of the same name and shape; the others are drawn. Raises
    UserError if none fits, or if the parameters cannot be read.
    """
    assert train.init_from is not None
    given = read_given(Path(train.init_from), train.init_weights)
    expected = name_leaves(jax.eval_shape(init, jax.random.key(0)))
    fitting = {
        name: given.arrays[name]
        for name, leaf in expected.items()
        if name in given.arrays and given.arrays[name].shape == leaf.shape
    }
    if not fitting:
        raise UserError(
            f"--train.init-from {train.init_from}: none of the {given.origin} fits this network, "
            f"which has arrays like {describe_names(expected, expected)}: choose the architecture "
            "of those parameters with --preset and --model"
        )
    tell(describe_fit(expected, given, fitting))
    return lambda key: replace_leaves(init(key), fitting)


def read_given(path: Path, weights: str) -> Given:
    """Read the averaged ("average") or the raw parameters in a run folder or weight file."""
    if runs.holds_run(path):
        return read_run(path, weights)
    network = from_torch(path, weights=None if weights == "average" else weights)
    which = network.origin or "parameters"
    origin = f"parameters of {path} ({network.source}, {which})"
    return Given(_to_arrays(network.params), origin)


def read_run(folder: Path, weights: str) -> Given:
    """Read the parameters in the newest checkpoint of a run, whatever network it has."""
    run = runs.load(folder)
    require_checkpoints(run)
    with open_checkpoints(run.checkpoints) as checkpoints:
        step, params = read_newest(
            checkpoints, lambda step: (step, restore_field(checkpoints, FIELDS[weights], step=step))
        )
    kind = "averaged" if weights == "average" else "raw"
    return Given(_to_arrays(to_one_device(params)), f"{kind} parameters of {folder}, step {step}")


def _to_arrays(params: Params) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in name_leaves(params).items()}


def replace_leaves(params: Params, arrays: Mapping[str, np.ndarray]) -> Params:
    """Replace the leaves of `params` that `arrays` has by name."""
    leaves = [
        jnp.asarray(arrays[name], leaf.dtype) if name in arrays else leaf
        for name, leaf in name_leaves(params).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def describe_fit(
    expected: Mapping[str, Any], given: Given, fitting: Mapping[str, np.ndarray]
) -> str:
    """Say how many arrays fit, which are drawn instead, and which are not used."""
    drawn = [name for name in expected if name not in fitting]
    unused = [name for name in given.arrays if name not in expected]
    text = f"Beginning with the {given.origin}: {len(fitting)} of {len(expected)} arrays fit."
    if drawn:
        text += f" Drawn at random: {describe_names(drawn, expected, given.arrays)}."
    if unused:
        text += f" Not used: {describe_names(unused, given.arrays)}."
    return text


def describe_names(
    names: Iterable[str], shapes: Mapping[str, Any], others: Mapping[str, Any] | None = None
) -> str:
    """List names with their shapes, and with the shapes in `others` where those have them."""
    listed = []
    for name in names:
        there = f" here, {show_shape(others[name])} there" if others and name in others else ""
        listed.append(f"{name} ({show_shape(shapes[name])}{there})")
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def show_shape(array: Any) -> str:
    """Show the shape of an array, such as 3x3x1x64."""
    return "x".join(map(str, array.shape)) or "a number"
