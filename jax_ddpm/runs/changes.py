"""Which settings of a run may change when it is continued, and why others may not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jax_ddpm.config.run import Config
from jax_ddpm.errors import flag_name

# Where and how fast a run is computed; this is not worth a line.
QUIET = {
    "run",
    "train.parallel",
    "train.fsdp",
    "train.max_steps",
    "train.steps_per_call",
    "train.data_on_device",
    "train.remat",
    "train.max_bad_steps",
    "train.sample_batch_size",
    "train.logger",
}
# What a run reports, draws and keeps. All settings of the section sample belong to these too.
REPORTED = {
    "preset",
    "data.follow_links",
    "train.log_every",
    "train.sample_every",
    "train.sample_images",
    "train.sample_at_start",
    "train.num_epochs",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.keep_best",
    "train.validate_every",
    "train.validate_images",
    "train.evaluate_every",
    "train.evaluate_images",
    "train.evaluate_features",
    "train.snapshot_every",
}
# What the distances depend on that checkpoints are compared by.
IN_DISTANCE = {"train.evaluate_images", "train.evaluate_features"}
PATHS = {"data.path", "data.validation", "train.init_from"}  # may be spelt in several ways


class Change(NamedTuple):
    """A setting that differs from the run's."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{flag_name(self.name)} {self.new} (was {self.old})"


class Known(NamedTuple):
    """What decides whether a run can be continued with other settings."""

    folder: Path
    newest_step: int
    """The step of its newest checkpoint; 0 without any."""
    images_are_known: bool
    """Whether the run says which images it was trained on, so that they can be compared."""


def list_changes(stored: dict[str, Any], given: dict[str, Any], prefix: str = "") -> list[Change]:
    """List the settings in `given` that differ from `stored`, but not those in QUIET.

    Both are made by `to_dict`. Another spelling of the same path is no difference.
    """
    return list(_list_changes(stored, given, prefix))


def _list_changes(old: dict[str, Any], new: dict[str, Any], prefix: str) -> Iterator[Change]:
    for key in new:
        name = prefix + key
        if name in QUIET or old.get(key) == new[key]:
            continue
        if isinstance(new[key], dict):
            yield from _list_changes(old.get(key, {}), new[key], f"{name}.")
        elif not (name in PATHS and is_same_path(old.get(key), new[key])):
            yield Change(name, old.get(key), new[key])


def is_same_path(one: str | None, other: str | None) -> bool:
    """Whether two paths lead to the same place."""
    if one is None or other is None:
        return one == other
    return Path(one).resolve() == Path(other).resolve()


def explain_refusal(change: Change, given: Config, known: Known) -> str | None:
    """Say why `change` is impossible, for a run that was made with other settings; None: it is not.

    The sentence names the flag, both values, and a way out.
    """
    section = change.name.partition(".")[0]
    in_loss = change.name == "sample.variance" and given.diffusion.objective != "simple"
    in_distance = change.name in IN_DISTANCE and given.train.best_by == "distance"
    if (change.name in REPORTED and not in_distance) or (section == "sample" and not in_loss):
        return None
    if change.name == "data.path" and known.images_are_known:
        return None  # the images themselves are compared when they are open
    made = f"{known.folder} was made with {flag_name(change.name)} {change.old}, not {change.new}"
    if change.name == "train.num_steps":
        return explain_num_steps(change, given, known, made)
    if change.name == "train.init_from":
        return f"{made}, and has begun: choose another folder with --run"
    return f"{made}: repeat its flags to continue it, or choose another folder with --run"


def explain_num_steps(change: Change, given: Config, known: Known, made: str) -> str | None:
    """Say why a run cannot have another number of steps; None if it can."""
    if given.train.decay != "constant":
        return (
            f"{made}: with --train.decay {given.train.decay}, the learning rate of every step "
            "depends on the number of steps. Repeat its flags to continue it, or train on from its "
            f"parameters with --train.init-from {known.folder} and another --run"
        )
    if change.new < known.newest_step:
        return f"{made}, and is already at step {known.newest_step}: choose another --run"
    return None
