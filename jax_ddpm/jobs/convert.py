"""Import weights of other implementations as runs, and export runs as weight files."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_ddpm import runs
from jax_ddpm.config.jobs import EMA, Weights
from jax_ddpm.config.run import MAX_TIMESTEPS, Config, DataConfig, validate
from jax_ddpm.errors import UserError, join_or
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.untrusted import explain
from jax_ddpm.interop import PEERS, Network, PeerName, from_torch, to_state_dict
from jax_ddpm.interop.files import read_arguments, read_weights, require_suffix, write_weights
from jax_ddpm.interop.unwrap import find_tensor
from jax_ddpm.jobs.build import build, open_data
from jax_ddpm.jobs.parameters import check_weights, load_params
from jax_ddpm.models import Architecture
from jax_ddpm.process.schedules import BETAS, ScheduleName, rescale_zero_terminal_snr
from jax_ddpm.runs.checkpoint import open_checkpoints, save


def import_weights(
    file: Path, source: PeerName, out: Path, settings: Config, arguments: Path | None = None
) -> runs.Run:
    """Make a run folder from a weight file, ready to be sampled or trained further.

    `settings` provides everything but the network; use the preset of `source`, for example.
    `arguments` is a JSON file with the constructor arguments of the network that its weights do not
    reveal.

    Raises UserError if the weights do not fit the network, or if `out` exists. The folder is
    written completely or not at all.
    """
    if out.exists():
        raise UserError(f"{out} exists: choose another folder with --out")
    given = read_weights(file)
    network = from_torch(given, source, read_arguments(file, arguments))
    config = make_config(settings, network, given)
    shape = choose_image_shape(config.data, network)
    run = runs.Run(out, config, shape, imported_from=source)
    validate(config)
    write_run(run, network)
    count = sum(leaf.size for leaf in jax.tree.leaves(network.params))
    size = "x".join(map(str, run.image_shape))
    print(f"Wrote {out}: {count:,} parameters of {source}, for images of {size}")
    return run


def make_config(settings: Config, network: Network, given: Mapping[str, Any]) -> Config:
    """Put the network into `settings`, and the schedule if the weight file holds betas."""
    config = replace(settings, model=network.config, run=None)
    betas = find_tensor(given, "betas")
    if betas is None:
        return config
    try:
        betas = np.asarray(betas, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"the file's betas are not numbers: {explain(error)}") from error
    name, zero = find_schedule(betas)
    diffusion = replace(
        config.diffusion, schedule=name, zero_terminal_snr=zero, num_timesteps=len(betas)
    )
    num_steps = min(config.sample.num_steps, len(betas))
    return replace(config, diffusion=diffusion, sample=replace(config.sample, num_steps=num_steps))


def find_schedule(betas: np.ndarray) -> tuple[ScheduleName, bool]:
    """Find the schedule with these betas, and whether it is rescaled to zero terminal SNR.

    Betas are compared with float32's precision. Raises UserError if no schedule has them.
    """
    if betas.ndim != 1 or not 1 <= len(betas) <= MAX_TIMESTEPS:
        raise UserError(
            f"the file's betas have shape {betas.shape}, but there must be one for each timestep"
        )
    zero = bool(betas[-1] == 1)
    for name, make_betas in BETAS.items():
        try:
            ours = make_betas(len(betas))
            ours = rescale_zero_terminal_snr(ours) if zero else ours
        except ValueError:
            continue
        if np.allclose(ours, betas, rtol=1e-4, atol=1e-7):
            return name, zero
    raise UserError(f"the file's {len(betas)} betas do not match {join_or(list(BETAS))}")


def choose_image_shape(data: DataConfig, network: Network) -> tuple[int, int, int]:
    """Choose the shape of the run's images: from the settings, the data, or the network."""
    height, width, channels = network.config.example_shape
    if data.image_size is not None:
        return data.image_size, data.image_size, channels
    of_data = open_data(data).image_shape
    return of_data if of_data[-1] == channels else (height, width, channels)


def write_run(run: runs.Run, network: Network) -> None:
    """Write a run folder at step 0, with the parameters of `network` as all averages too."""
    temporary = run.folder.with_name(f".{run.folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        draft = replace(run, folder=temporary)
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), network.params)
        state = build(run.config, run.image_shape).start_state(params)
        with open_checkpoints(draft.checkpoints) as checkpoints:
            save(checkpoints, state, runs.describe(run))
        runs.write_config(draft)
        temporary.rename(run.folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
