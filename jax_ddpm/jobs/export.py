"""Export a run for another implementation: the registry of what --to can be."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jax_ddpm import runs
from jax_ddpm.config.jobs import EMA, Weights
from jax_ddpm.config.sample import change_settings
from jax_ddpm.errors import UserError, join_or
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.untrusted import read_json
from jax_ddpm.interop import PEERS, PeerName
from jax_ddpm.interop.files import require_suffix, write_weights
from jax_ddpm.interop.package import Package, Translation, write_folder, write_readme
from jax_ddpm.interop.package_annotated import write_annotated
from jax_ddpm.interop.package_ho import write_original, write_port
from jax_ddpm.interop.package_openai import write_openai
from jax_ddpm.interop.package_pulfer import write_pulfer
from jax_ddpm.interop.process import Process, list_settings
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.export_lucidrains import export_trainer
from jax_ddpm.jobs.export_pipeline import export_pipeline
from jax_ddpm.jobs.parameters import check_weights, load_params
from jax_ddpm.jobs.translate import find_translation, make_process
from jax_ddpm.models.architecture import ImageShape

ANNOTATED = ("annotated_ws", "annotated", "annotated_layernorm", "epita")
OPENAI = ("improved_diffusion", "guided_diffusion")


class Order(NamedTuple):
    """What to export, and how."""

    run: Path
    out: Path | None = None
    source: PeerName | None = None
    """The implementation that will load it; None: the one that the run's network is from."""
    weights: Weights = EMA
    sampling: Mapping[str, Any] = {}
    """The sampler, the number of steps and the spacing, where they are not the run's."""


class Exported(NamedTuple):
    """What was written, and the implementation that loads it."""

    file: Path
    source: PeerName


PackageWriter = Callable[[Translation, Process, ImageShape], Package]


def export_weights(
    folder: Path,
    out: Path | None = None,
    source: PeerName | None = None,
    weights: Weights = EMA,
) -> Exported:
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
    found = find_translation(run, params, [source] if source else None)
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


def export_package(
    write: PackageWriter, sources: tuple[PeerName, ...], order: Order, *, samples: bool = False
) -> Exported:
    """Write a folder with what the code of one of `sources` loads, and a text that says how.

    `samples` says whether its files also choose a sampler.

    Raises UserError for a run that cannot be said in its words, and if the folder exists. The
    folder is written completely or not at all.
    """
    out = _require_new(order.out)
    if order.source not in (None, *sources):
        raise UserError(f"--source is {order.source}, but it must be {join_or(list(sources))}")
    if order.sampling and not samples:
        _refuse_sampling(order.sampling)
    run = runs.load(order.run)
    check_weights(run.config, order.weights)
    sample = change_settings(run.config.sample, order.sampling)
    process = make_process(run.config, sample)
    params, description = load_params(run, build(run.config, run.image_shape), order.weights)
    found = find_translation(run, params, [order.source] if order.source else sources)
    try:
        package = write(found, process, run.image_shape)
    except UserError as error:
        raise UserError(f"{found.source} cannot have the run {order.run}: {error}") from error
    readme = write_readme(
        package, order.run.resolve().name, list_settings(process, run.image_shape)
    )
    state_dict = {package.prefix + name: array for name, array in found.state_dict.items()}
    write_folder(out, package.documents, readme, package.weights, state_dict)
    print(f"Wrote {out}: {description}, for {found.source}; README.md there says how to load it")
    for line in package.unsaid:
        print(f"The run itself draws with {line}")
    return Exported(out / package.weights, found.source)


def _require_new(out: Path | None) -> Path:
    if out is None:
        raise UserError("--out is missing: the folder to write")
    if out.exists():
        raise UserError(f"{out} exists: choose another folder with --out")
    return out


def _refuse_sampling(sampling: Mapping[str, Any]) -> None:
    for name in sampling:
        raise UserError(
            f"--{name} is only for --to diffusers, lucidrains and openai: others store no sampler"
        )


def _export_weights(order: Order) -> Exported:
    _refuse_sampling(order.sampling)
    return export_weights(order.run, order.out, order.source, order.weights)


def _export_as(name: PeerName, write: Callable[..., Any], order: Order) -> Exported:
    if order.source not in (None, name):
        raise UserError(f"--source {order.source} is only for --to torch: leave it out")
    out = _require_new(order.out)
    write(order.run, out, order.weights, order.sampling)
    return Exported(out, name)


# What --to can be -> what writes it.
EXPORTS: dict[str, Callable[[Order], Exported]] = {
    "torch": _export_weights,
    "diffusers": partial(_export_as, "diffusers", export_pipeline),
    "lucidrains": partial(_export_as, "lucidrains", export_trainer),
    "pulfer": partial(export_package, write_pulfer, ("pulfer",)),
    "openai": partial(export_package, write_openai, OPENAI, samples=True),
    "annotated": partial(export_package, write_annotated, ANNOTATED),
    "ho": partial(export_package, write_original, ("ho",)),
    "pesser": partial(export_package, write_port, ("pesser",)),
}
