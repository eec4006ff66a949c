"""Snapshots of a run's power-function averages: one safetensors file for each width and step."""

import itertools
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.untrusted import explain, require_regular
from jax_ddpm.optim.averages import Params
from jax_ddpm.optim.posthoc_ema import (
    MAX_SIGMA_REL,
    gamma_from_sigma_rel,
    profile_error,
    reconstruct,
    solve_weights,
)
from jax_ddpm.runs.stored import name_leaves

NAME = re.compile(r"sigma_rel_(?P<sigma_rel>[0-9.e-]+)_step_(?P<step>[0-9]+)\.safetensors")
MIN_SIGMA_REL, MAX_STEP = 1e-4, 2**31
FLOATS = (np.float32, np.float64)


class Snapshot(NamedTuple):
    """A stored average: its step, its relative width, and its file."""

    step: int
    sigma_rel: float
    path: Path


class Reconstruction(NamedTuple):
    """A reconstructed average, its step, and the relative error of its profile."""

    params: Params
    step: int
    error: float
    num_snapshots: int


def write_snapshots(
    folder: Path, sigma_rels: Sequence[float], averages: Sequence[Params], step: int
) -> None:
    """Write the average of each width after `step` steps; each file is written atomically."""
    for sigma_rel, average in zip(sigma_rels, averages, strict=True):
        _write(
            folder / f"sigma_rel_{sigma_rel}_step_{step:07d}.safetensors",
            average,
            {"sigma_rel": sigma_rel, "step": step},
        )


def _write(path: Path, average: Params, about: dict[str, Any]) -> None:
    arrays = name_leaves(jax.device_get(average))
    about = {**about, "checksum": checksum_arrays(arrays)}
    metadata = {"average": json.dumps(about)}  # one entry, because the order of several varies
    data = safetensors.numpy.save(arrays, metadata)
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def checksum_arrays(arrays: Mapping[str, Any]) -> int:
    """The CRC-32 of the bytes of all arrays, in order of their names."""
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(np.asarray(arrays[name]).tobytes(), total)
    return total


def list_snapshots(folder: Path) -> list[Snapshot]:
    """List the snapshots in `folder` by step; an empty list if it does not exist.

    Raises UserError for a name with an impossible step or width, and for two names with the same
    step and width.
    """
    found = ((NAME.fullmatch(path.name), path) for path in sorted(folder.glob("*.safetensors")))
    snapshots = sorted(_snapshot(match, path) for match, path in found if match)
    for one, other in itertools.pairwise(snapshots):
        if one[:2] == other[:2]:
            raise UserError(f"{one.path} and {other.path} are the same snapshot: remove one")
    return snapshots


def _snapshot(match: re.Match[str], path: Path) -> Snapshot:
    try:
        step, sigma_rel = int(match["step"]), float(match["sigma_rel"])
    except ValueError:
        step, sigma_rel = 0, 0.0
    if not (1 <= step <= MAX_STEP and MIN_SIGMA_REL <= sigma_rel < MAX_SIGMA_REL):
        raise UserError(
            f"{path} is not a snapshot: its name must give a step and a relative width between "
            f"{MIN_SIGMA_REL} and {MAX_SIGMA_REL:.4f}"
        )
    return Snapshot(step, sigma_rel, path)


def read_snapshot(path: Path, like: Params) -> Params:
    """Read the parameters in `path` into the structure of `like` (arrays or shapes).

    Raises UserError for a damaged file, one that belongs to another network, and one that holds
    another step or width than its name says.
    """
    require_regular(path)
    try:
        arrays = safetensors.numpy.load_file(path)
        with safetensors.safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {}).get("average", "{}"))
    except Exception as error:  # a KeyError for a dtype that NumPy lacks, and others
        raise UserError(f"{path} is not a complete snapshot: {explain(error)}") from error
    expected = name_leaves(like)
    for name in expected | arrays:
        if name not in expected or name not in arrays or arrays[name].shape != expected[name].shape:
            raise UserError(f"{path} is a snapshot of another network: {name} differs")
        if arrays[name].dtype not in FLOATS or not np.isfinite(arrays[name]).all():
            raise UserError(
                f"{path} is damaged: {name} contains values that are not finite numbers"
            )
    _require_described(path, arrays, about)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in expected])


def _require_described(path: Path, arrays: Mapping[str, Any], about: Any) -> None:
    """Raise UserError unless a snapshot is what its name and its own description say.

    Earlier versions wrote no checksum.
    """
    known = about if isinstance(about, dict) else {}
    if "checksum" in known and known["checksum"] != checksum_arrays(arrays):
        raise UserError(f"{path} is damaged: its checksum is wrong")
    match = NAME.fullmatch(path.name)
    named = None if match is None else _snapshot(match, path)
    if named and known and (known.get("step"), known.get("sigma_rel")) != named[:2]:
        raise UserError(
            f"{path} holds the average of width {known.get('sigma_rel')} at step "
            f"{known.get('step')}, so it was copied or renamed: remove it"
        )


def select_snapshots(folder: Path, step: int | None = None) -> tuple[list[Snapshot], int]:
    """Select the snapshots for an average at `step`, by default the last snapshot's; return both.

    Selects all snapshots up to the first at or after `step`, so later training does not change the
    average. Raises UserError if there are no snapshots, or none at or after `step`.
    """
    snapshots = list_snapshots(folder)
    if not snapshots:
        raise UserError(f"{folder} has no snapshots: train with --train.posthoc-ema 0.05 0.1")
    last = snapshots[-1].step
    step = last if step is None else step
    if not 1 <= step <= last:
        raise UserError(f"step {step} must be between 1 and {last}, the step of the last snapshot")
    end = min(found.step for found in snapshots if found.step >= step)
    return [found for found in snapshots if found.step <= end], step


def reconstruct_average(
    folder: Path, like: Params, sigma_rel: float, step: int | None = None
) -> Reconstruction:
    """Reconstruct the average of relative width `sigma_rel` after `step` steps.

    `step` defaults to the last snapshot's. Source: Karras et al. 2024, section 3.2. Raises
    UserError if there are no snapshots, or none at or after `step`, and for an impossible width.
    """
    try:
        gamma = gamma_from_sigma_rel(sigma_rel)
    except ValueError as error:
        raise UserError(str(error)) from error
    used, step = select_snapshots(folder, step)
    steps = np.array([found.step for found in used])
    gammas = np.array([gamma_from_sigma_rel(found.sigma_rel) for found in used])
    weights = solve_weights(steps, gammas, step, gamma)
    params = reconstruct(weights, (read_snapshot(found.path, like) for found in used))
    params = jax.tree.map(lambda a, b: a.astype(b.dtype), params, like)
    off_by = profile_error(weights, steps, gammas, step, gamma)
    return Reconstruction(params, step, off_by, len(used))
