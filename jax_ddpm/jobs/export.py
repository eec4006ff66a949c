"""Export the weights of a run for another implementation."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_ddpm import runs
from jax_ddpm.config.jobs import EMA, Weights
from jax_ddpm.errors import UserError, join_or
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.untrusted import read_json
from jax_ddpm.interop import PEERS, PeerName, from_torch, to_state_dict
from jax_ddpm.interop.files import require_suffix, write_weights
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.parameters import check_weights, load_params
from jax_ddpm.models import Architecture


def export_weights(
    folder: Path,
    out: Path | None = None,
    source: PeerName | None = None,
    weights: Weights = EMA,
) -> "Exported":
    """Write the weights of a run for another implementation.

    A JSON file of the same name, beside it, holds the constructor arguments of the network. `out`
    defaults to SOURCE.safetensors in the run folder. `source` defaults to the implementation that
    the run was imported from, or else the first that has its network.

    Raises UserError for a folder that is not a trained run, and for an implementation that does not
    have the run's network.
    """
    run = runs.load(folder)
    if out is not None:
        require_suffix(out, "--out")
        require_no_run(out.with_suffix(".json"))
    check_weights(run.config, weights)
    params, description = load_params(run, build(run.config, run.image_shape), weights)
    found = find_translation(run, params, source)
    out = out or folder / f"{found.source}.safetensors"
    wrapper = PEERS[found.source].wrapper
    write_weights(out, {wrapper + name: array for name, array in found.state_dict.items()})
    text = json.dumps(found.arguments, indent=2) + "\n"
    write_atomically(out.with_suffix(".json"), lambda temporary: temporary.write_text(text))
    print(f"Wrote {out}: {description}, in the format of {found.source}")
    return Exported(out, found.source)


def require_no_run(path: Path) -> None:
    """Raise UserError if `path`, where the arguments would be written, describes a run."""
    if path.name == "config.json" and path.is_file() and "format" in read_json(path, "JSON"):
        raise UserError(
            f"the arguments of the network would replace {path}, the configuration of a run: "
            "choose another name with --out"
        )


class Exported(NamedTuple):
    """A weight file, and the implementation that loads it."""

    file: Path
    source: PeerName


class Translation(NamedTuple):
    """Weights in another implementation's format, and its network's constructor arguments."""

    source: PeerName
    state_dict: dict[str, np.ndarray]
    arguments: dict[str, Any]


def find_translation(run: runs.Run, params: Any, source: PeerName | None) -> Translation:
    """Translate the weights for `source`. Raises UserError if it does not have the run's network.

    If `source` is None, use the implementation that the run was imported from, or else the first
    that has its network.
    """
    imported_from = run.imported_from if run.imported_from in PEERS else None
    wanted = source or imported_from
    sources, reason = [wanted] if wanted else list(PEERS), ""
    for name in sources:
        try:
            return translate(run, params, name)
        except UserError as error:
            reason = f": {error}" if wanted else ""
    raise UserError(f"{join_or(list(sources))} does not have the network of {run.folder}{reason}")


def translate(run: runs.Run, params: Any, source: PeerName) -> Translation:
    """Translate `params` for `source`. Raises UserError if it does not have this network.

    As a check, reads the result back: it must give the same configuration.
    """
    peer = PEERS[source]
    config = peer.express(fill_channels(run), run.image_shape)
    state_dict = to_state_dict(params, peer)
    arguments = peer.list_arguments(config, run.image_shape)
    back = from_torch(state_dict, source, json.loads(json.dumps(arguments)))
    for name, value in asdict(back.config).items():
        expected = getattr(config, name, None)
        kept = name in peer.arguments or name not in ("compute_dtype", "dropout")
        if type(back.config) is not type(config) or (kept and value != expected):
            raise UserError(f"{name} would be {value}, not {expected}")
    return Translation(source, state_dict, arguments)


def fill_channels(run: runs.Run) -> Architecture:
    """The configuration of a run's network, with the channels that None leaves to the data."""
    config, channels = run.config.model, run.image_shape[-1]
    outputs = channels if run.config.diffusion.variance == "fixed" else 2 * channels
    learns = getattr(config, "learned_variance", False)
    known: dict[str, Any] = {
        "in_channels": channels,
        "channels": channels,
        "out_channels": outputs,
        "out_dim": None if outputs == channels or learns else outputs,
    }
    given = asdict(config)
    missing: dict[str, Any] = {
        name: value for name, value in known.items() if given.get(name, 0) is None
    }
    return replace(config, **missing)
