"""What a source says about a run: settings, their values, and where each of them comes from."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jax_ddpm.errors import UserError, escape, show_name
from jax_ddpm.files.untrusted import explain
from jax_ddpm.interop.source import Source
from jax_ddpm.interop.tree import find_tensor
from jax_ddpm.process.schedules import BETAS, Betas, rescale_zero_terminal_snr

ASSUMED = "assumed"
MAX_TIMESTEPS = 10_000  # of a schedule without a name


class Fact(NamedTuple):
    """A setting of a run that a source determines."""

    what: str
    """The setting, such as "diffusion.schedule"."""
    value: Any
    origin: str
    """Where the value comes from: a file, a tensor, or ASSUMED."""


class Missing(NamedTuple):
    """The value of a setting that we do not have; the user must choose another."""

    reason: str


class Question(NamedTuple):
    """What a peer may look at to describe a run."""

    source: Source
    typed: Mapping[str, Any]
    """The settings that the user has chosen, such as "sample.num_steps" -> 20."""


def merge(facts: Iterable[Fact]) -> dict[str, Fact]:
    """Collect facts by their setting. An assumed value gives way to any other.

    Raises UserError, naming both origins, if two facts contradict each other.
    """
    merged: dict[str, Fact] = {}
    for fact in facts:
        other = merged.get(fact.what)
        if other is None or other.origin == ASSUMED:
            merged[fact.what] = fact
        elif fact.origin != ASSUMED and fact.value != other.value:
            raise UserError(
                f"{other.origin} says that {fact.what} is {show_value(other.value)}, but "
                f"{fact.origin} says {show_value(fact.value)}"
            )
    return merged


def show_value(value: Any) -> str:
    """Show a value in a few words."""
    if isinstance(value, tuple) and len(value) > 4:
        return f"{len(value)} numbers from {value[0]:.4g} to {value[-1]:.4g}"
    if isinstance(value, str):
        return escape(value if len(value) <= 40 else f"{value[:24]}...{value[-8:]}")
    if isinstance(value, tuple):
        sizes = all(isinstance(each, int) for each in value)
        return show_name(("x" if sizes else ", ").join(map(str, value)))
    return show_name(value)


def describe_betas_tensor(question: Question) -> list[Fact]:
    """Describe the schedule whose betas are among the tensors; no facts if there are none."""
    betas = find_tensor(question.source.tensors, "betas")
    if betas is None:
        return []
    try:
        betas = np.asarray(betas, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"the file's betas are not numbers: {explain(error)}") from error
    return describe_betas(betas, "tensor betas")


def describe_betas(betas: np.ndarray, origin: str, names: Collection[str] = BETAS) -> list[Fact]:
    """Describe the schedule with these betas: by a name among `names`, or else by the betas.

    Betas are compared with float32's precision. Raises UserError for impossible betas.
    """
    if betas.ndim != 1 or len(betas) == 0:
        raise UserError(
            f"the betas of {origin} have shape {betas.shape}, but there must be one per timestep"
        )
    ends_in_noise = bool(betas[-1] == 1)
    name = find_schedule(betas, False, names)
    zero = ends_in_noise and name is None
    if zero:
        name = find_schedule(betas, True, names)
    facts = [
        Fact("diffusion.num_timesteps", len(betas), origin),
        Fact("diffusion.zero_terminal_snr", zero, origin),
    ]
    if name is not None:
        return [Fact("diffusion.schedule", name, origin), *facts]
    if not (np.all(betas > 0) and np.all(betas[:-1] < 1) and betas[-1] <= 1):
        raise UserError(
            f"the betas of {origin} run from {betas.min():.4g} to {betas.max():.4g}, but each must "
            "lie between 0 and 1"
        )
    if len(betas) > MAX_TIMESTEPS:
        raise UserError(
            f"the {len(betas):,} betas of {origin} are those of no schedule that has a name, and a "
            f"run can hold at most {MAX_TIMESTEPS:,}"
        )
    return [Fact("diffusion.betas", tuple(map(float, betas)), origin), *facts]


def find_schedule(betas: Betas, zero: bool, names: Collection[str] = BETAS) -> str | None:
    """Find the schedule with these betas; `zero`: after rescaling to zero terminal SNR."""
    for name in names:
        try:
            ours = BETAS[name](len(betas))
            ours = rescale_zero_terminal_snr(ours) if zero else ours
        except ValueError:
            continue
        if np.allclose(ours, betas, rtol=1e-4, atol=1e-7):
            return name
    return None
