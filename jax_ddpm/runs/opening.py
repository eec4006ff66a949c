"""Open a run folder for training: make it, or continue the run that it holds."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jax_ddpm.config.run import Config
from jax_ddpm.data.identity import Identity, list_differences
from jax_ddpm.devices.processes import is_main_process, wait_for_all
from jax_ddpm.errors import UserError, flag_name
from jax_ddpm.files.atomic import is_leftover, report_disk_errors
from jax_ddpm.runs.changes import Change, Known, explain_refusal, list_changes
from jax_ddpm.runs.folder import CONFIG, Run, holds_run, load, to_dict, write_config
from jax_ddpm.runs.lock import LOCK, Held, hold_folder, lock_folder
from jax_ddpm.runs.recovery import find_newest

# Settings that `config.follow` derives from others, and that a run cannot change; and the spacing,
# whose default was another one in earlier versions.
DEPENDENT = (
    ("train", "warmup_steps"),
    ("train", "accumulate"),
    ("model", "n_steps"),
    ("sample", "spacing"),
)


class Opening(NamedTuple):
    """A run that can be trained, and what its folder must be told."""

    run: Run
    is_new: bool = False
    """Whether it has not begun, so that it takes all settings."""
    changes: tuple[Change, ...] = ()
    """The settings that differ from those that the run had so far."""
    held: Held | None = None
    """The open folder, if it is held."""

    @property
    def needs_work(self) -> bool:
        """Whether even a finished run must be opened with its images, to compare or to draw."""
        moved = any(change.name == "data.path" for change in self.changes)
        return self.draws_otherwise or moved or self.run.restored

    @property
    def draws_otherwise(self) -> bool:
        """Whether the final pictures would now be drawn with other settings."""
        names = [change.name for change in self.changes]
        return any(name.startswith("sample.") or name == "train.sample_images" for name in names)


@contextmanager
def lock_for_training(
    config: Config, image_shape: tuple[int, int, int], images: Identity | None = None
) -> Iterator[Opening]:
    """Open the run folder of `config`, and hold it until this context is left.

    `images` identifies the images to train on. Of several processes, only the first writes and
    locks. Raises UserError as `open_for_training` and `lock_folder` do, and then writes nothing in
    the folder.
    """
    plan_opening(config, image_shape, images)
    with ExitStack() as stack:
        if is_main_process():
            held = stack.enter_context(lock_folder(config.folder))
            opening = open_for_training(config, image_shape, images)
            remove_leftovers(opening.run)
        wait_for_all("the run folder is there")
        if not is_main_process():
            opening = load_from_first_process(config, image_shape, images)
            held = stack.enter_context(hold_folder(config.folder))
        yield opening._replace(held=held)


def load_for_training(config: Config) -> Opening | None:
    """Load the run in the folder of `config`; None if there is none yet.

    Raises UserError if the folder holds something else, or a run that cannot be continued so.
    """
    if not holds_run(config.folder):
        require_free(config.folder, "--run")
        return None
    return plan_opening(config, load(config.folder).image_shape)


def load_from_first_process(
    config: Config, image_shape: tuple[int, int, int], images: Identity | None = None
) -> Opening:
    """Load the run that the first process of the job has opened.

    Raises UserError if this process does not see it, or was started with other settings.
    """
    if not (config.folder / CONFIG).exists():
        raise UserError(
            f"this process does not see {config.folder}, which the first process has opened: give "
            "all processes the same folder, on a file system that they share"
        )
    return plan_opening(config, image_shape, images)


def open_for_training(
    config: Config, image_shape: tuple[int, int, int], images: Identity | None = None
) -> Opening:
    """Open the run folder of `config`; make it if it does not exist.

    A run of imported weights that has not been trained yet takes all settings from `config`, except
    for the network. Raises UserError if the folder holds something else, or a run that cannot be
    continued with these settings or images.
    """
    opening = plan_opening(config, image_shape, images)
    run, folder = opening.run, opening.run.folder
    if run.restored and run.configuration.is_file():
        kept = folder / f"{CONFIG}.damaged"
        with report_disk_errors(kept):  # renamed, because it may be of any size
            run.configuration.replace(kept)
    newly_known = images is not None and not opening.is_new and load(folder).images is None
    if opening.is_new or opening.changes or run.restored or newly_known:
        write_config(run)
    return opening


def plan_opening(
    config: Config, image_shape: tuple[int, int, int], images: Identity | None = None
) -> Opening:
    """Find out what opening the folder of `config` would do. Writes nothing."""
    folder = config.folder
    run = Run(folder, config, image_shape, images=images)
    if not holds_run(folder):
        require_free(folder, "--run")
        return Opening(run, is_new=True)
    stored = load(folder)
    run = replace(run, imported_from=stored.imported_from, restored=stored.restored)
    newest = find_newest(stored.checkpoints)
    if stored.imported_from is not None and newest == 0 and not stored.metrics.exists():
        untouched = replace(stored, config=replace(config, model=stored.config.model))
        require_continuable(untouched, run, newest)
        return Opening(run, is_new=True)
    changes = require_continuable(stored, run, newest)
    return Opening(replace(run, images=images or stored.images), changes=tuple(changes))


def adopt(config: Config, typed: Collection[str]) -> Config:
    """Take settings that depend on others from the run that `config` continues, if there is one.

    A warm-up, for example, was once shortened to the number of steps, and stays as it is when that
    grows. `typed` holds the flags that the user has typed, which stay.
    """
    if not holds_run(config.folder):
        return config
    stored = load(config.folder).config
    if stored.preset != config.preset or type(stored.model) is not type(config.model):
        return config
    if stored.train.num_epochs is None and "--train.num-epochs" not in typed:
        # The run counts steps, perhaps because its preset did so in an earlier version.
        config = replace(config, train=replace(config.train, num_epochs=None))
    for section, name in DEPENDENT:
        own, other = getattr(config, section), getattr(stored, section)
        if hasattr(own, name) and flag_name(name, f"--{section}.") not in typed:
            changed = replace(own, **{name: getattr(other, name)})
            config = replace(config, **{section: changed})
    return config


def require_continuable(stored: Run, given: Run, newest_step: int) -> list[Change]:
    """Raise UserError unless `given` may continue the run `stored`; return what changes."""
    changes = list_changes(to_dict(stored.config), to_dict(given.config))
    known = Known(given.folder, newest_step, images_are_known=stored.images is not None)
    for change in changes:
        if refusal := explain_refusal(change, given.config, known):
            raise UserError(refusal)
    if stored.image_shape != given.image_shape:
        raise UserError(
            f"{given.folder} was made with images of shape {stored.image_shape}, but the data has "
            f"{given.image_shape}: choose another folder with --run"
        )
    if stored.images is not None and given.images is not None:
        require_same_images(given.folder, stored.images, given.images)
    return changes


def require_same_images(folder: Path, known: Identity, found: Identity) -> None:
    """Raise UserError if the images found are not those that the run in `folder` knows."""
    differences = list(list_differences(known, found))
    if differences:
        raise UserError(
            f"the images are no longer those that {folder} was begun with ({', '.join(differences)}"
            "), so it would not be the same run: restore them, or train on from its parameters "
            f"with --train.init-from {folder} and another --run"
        )


def remove_leftovers(run: Run) -> None:
    """Remove the temporary files of processes that were killed while writing."""
    for folder in (run.folder, run.samples, run.snapshots):
        for path in folder.glob(".*"):
            if is_leftover(path):
                path.unlink(missing_ok=True)


def require_free(folder: Path, flag: str) -> None:
    """Raise UserError, naming `flag`, if `folder`, which is not a run, contains anything.

    Files that a process killed at its very start has left behind do not count.
    """

    def is_nothing(path: Path) -> bool:
        return path.name == LOCK or is_leftover(path)

    if folder.exists() and not (folder.is_dir() and all(map(is_nothing, folder.iterdir()))):
        raise UserError(
            f"{folder} exists and is not a run folder (it has no config.json): "
            f"choose another folder with {flag}"
        )
