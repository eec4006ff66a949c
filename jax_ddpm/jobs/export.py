"""Export the weights of a run for another implementation."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_ddpm import runs
from jax_ddpm.config.jobs import EMA, Weights
from jax_ddpm.errors import UserError, join_or
from jax_ddpm.files.atomic import write_atomically
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
    check_weights(run.config, weights)
    params, description = load_params(run, build(run.config, run.image_shape), weights)
    found = find_translation(run, params, source)
    out = out or folder / f"{found.source}.safetensors"
    write_weights(out, found.state_dict)
    text = json.dumps(found.arguments, indent=2) + "\n"
    write_atomically(out.with_suffix(".json"), lambda temporary: temporary.write_text(text))
    print(f"Wrote {out}: {description}, in the format of {found.source}")
    return Exported(out, found.source)


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
    sources = [wanted] if wanted else list(PEERS)
    for name in sources:
        found = translate(params, run.config.model, name)
        if found is not None:
            return found
    raise UserError(f"{join_or(list(sources))} does not have the network of {run.folder}")


def translate(params: Any, config: Architecture, source: PeerName) -> Translation | None:
    """Translate `params` for `source`; None if it does not have this network.

    As a check, reads the result back: it must give the same configuration.
    """
    peer = PEERS[source]
    ours = asdict(config)
    given = {n: value for n, value in ours.items() if n in peer.arguments and value is not None}
    state_dict = to_state_dict(params, peer)
    try:
        back = from_torch(state_dict, source, given)
    except UserError:
        return None
    read = asdict(back.config)
    same = type(back.config) is type(config) and all(
        ours[name] in (None, read[name]) for name in ours.keys() - {"compute_dtype", "dropout"}
    )
    arguments = {name: read[name] for name in peer.arguments if name in read}
    return Translation(source, state_dict, arguments) if same else None
