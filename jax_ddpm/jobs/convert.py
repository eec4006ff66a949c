"""Weights of other implementations as run folders, and runs as weight files."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jax_ddpm import runs
from jax_ddpm.config.run import MAX_TIMESTEPS, Config, DataConfig, validate
from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.untrusted import explain
from jax_ddpm.interop import PEERS, Network, Source, from_torch, to_state_dict
from jax_ddpm.interop.files import read_arguments, read_weights, require_suffix, write_weights
from jax_ddpm.interop.unwrap import find_tensor
from jax_ddpm.jobs.build import build, open_data
from jax_ddpm.jobs.sample import load_state
from jax_ddpm.models import Architecture, ModelConfig
from jax_ddpm.process.schedules import BETAS, ScheduleName, rescale_zero_terminal_snr
from jax_ddpm.runs.averages import check_selection, select_params
from jax_ddpm.runs.checkpoint import open_checkpoints, save


@dataclass(frozen=True)
class ImportArgs:
    """Weights of another implementation become a run folder."""

    file: tyro.conf.Positional[Path]
    """Weight file: .safetensors, .pt, .pth, .bin, .ckpt or .npz."""
    source: Source
    """The implementation that wrote it."""
    out: Path
    """Folder of the new run."""
    config: Path | None = None
    """JSON file with the constructor arguments of its network, if the weights do not tell them.
    Default: the one of the same name beside the weights, or config.json as diffusers writes it."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    """Everything else of the run; default: the preset of the implementation. The size of the images
    is --data.image-size, else that of the data if they have the network's channels."""


def import_weights(args: ImportArgs) -> runs.Run:
    """Make the run folder `args.out` of a weight file; `sample.py` and `train.py` take it.

    Raises UserError if the weights do not fit the network, or the folder is not free. The folder is
    there whole or not at all.
    """
    if args.out.exists():
        raise UserError(f"{args.out} exists: choose another folder with --out")
    given = read_weights(args.file)
    network = from_torch(given, args.source, read_arguments(args.file, args.config))
    config = run_config(args.settings, network, given)
    shape = image_shape(config.data, network)
    run = runs.Run(args.out, config, shape, imported_from=args.source)
    validate(config)
    write_run(run, network)
    count = sum(leaf.size for leaf in jax.tree.leaves(network.params))
    size = "x".join(map(str, run.image_shape))
    print(f"Wrote {args.out}: {count:,} parameters of {args.source}, for images of {size}")
    return run


def run_config(settings: Config, network: Network, given: Mapping[str, Any]) -> Config:
    """`settings` with the network, and with the schedule if the file holds its betas."""
    model = cast(ModelConfig, network.config)
    config = replace(settings, model=model, run=None)
    betas = find_tensor(given, "betas")
    if betas is None:
        return config
    try:
        betas = np.asarray(betas, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"the file's betas are no numbers: {explain(error)}") from error
    name, zero = schedule_of(betas)
    diffusion = replace(
        config.diffusion, schedule=name, zero_terminal_snr=zero, num_timesteps=len(betas)
    )
    num_steps = min(config.sample.num_steps, len(betas))
    return replace(config, diffusion=diffusion, sample=replace(config.sample, num_steps=num_steps))


def schedule_of(betas: np.ndarray) -> tuple[ScheduleName, bool]:
    """The schedule that has these betas, to float32, and whether it is rescaled to end in noise.

    Raises UserError if none has.
    """
    if betas.ndim != 1 or not 1 <= len(betas) <= MAX_TIMESTEPS:
        raise UserError(
            f"the file's betas have shape {betas.shape}: expected one for each timestep"
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
    raise UserError(f"the file's {len(betas)} betas are those of none of {', '.join(BETAS)}")


def image_shape(data: DataConfig, network: Network) -> tuple[int, int, int]:
    """The shape of the images that the run draws."""
    height, width, channels = network.config.example_shape
    if data.image_size is not None:
        return data.image_size, data.image_size, channels
    of_data = open_data(data).image_shape
    return of_data if of_data[-1] == channels else (height, width, channels)


def write_run(run: runs.Run, network: Network) -> None:
    """Write the folder of a run at step 0, average and parameters both those of `network`."""
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


@dataclass(frozen=True)
class ExportArgs:
    """A run becomes a weight file that the PyTorch implementation loads."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    to: Literal["torch"]
    """torch: names and layouts of a PyTorch state dict."""
    source: Source | None = None
    """The implementation that shall load it; default: the one of the run's network."""
    out: Path | None = None
    """File to write, .safetensors, .pt or .npz. Default: SOURCE.safetensors in the run folder."""
    weights: str = "ema"
    """ema: the moving average of the parameters; raw: the parameters themselves; or a decay of the
    run, train.ema-decay or one of train.ema-decays."""
    posthoc_ema: float | None = None
    """Relative width of an average that is made of the run's snapshots (see train.posthoc-ema)."""
    posthoc_step: int | None = None
    """The step whose average that is; default: that of the last snapshot."""


def export_weights(args: ExportArgs) -> Path:
    """Write the weights of a run for another implementation, and return the file's path.

    Beside them, in a JSON file of the same name, the constructor arguments of its network. Raises
    UserError for a folder that is no trained run, and where that implementation does not have the
    run's network.
    """
    run = runs.load(args.run)
    if args.out is not None:
        require_suffix(args.out, "--out")
    check_selection(run.config, args.weights, args.posthoc_ema, args.posthoc_step)
    state = load_state(run, build(run.config, run.image_shape))
    params, what = select_params(run, state, args.weights, args.posthoc_ema, args.posthoc_step)
    imported_from = run.imported_from if run.imported_from in PEERS else None
    asked = args.source or imported_from
    sources = [asked] if asked else list(PEERS)
    for source in sources:
        state_dict, arguments = translated(params, run.config.model, source)
        if state_dict:
            break
    else:
        raise UserError(f"{', '.join(sources)}: not an implementation of the network of {args.run}")
    out = args.out or args.run / f"{source}.safetensors"
    write_weights(out, state_dict)
    text = json.dumps(arguments, indent=2) + "\n"
    write_atomically(out.with_suffix(".json"), lambda temporary: temporary.write_text(text))
    print(f"Wrote {out}, {what}, as {source} has them")
    return out


def translated(
    params: Any, config: Architecture, source: Source
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """State dict and constructor arguments of `source`; empty if it does not have this network.

    Proved by reading them back: the same configuration must come out.
    """
    peer = PEERS[source]
    ours = asdict(config)
    given = {n: value for n, value in ours.items() if n in peer.arguments and value is not None}
    state_dict = to_state_dict(params, peer)
    try:
        back = from_torch(state_dict, source, given)
    except UserError:
        return {}, {}
    read = asdict(back.config)
    same = type(back.config) is type(config) and all(
        ours[name] in (None, read[name]) for name in ours.keys() - {"compute_dtype", "dropout"}
    )
    arguments = {name: read[name] for name in peer.arguments if name in read}
    return (state_dict, arguments) if same else ({}, {})
