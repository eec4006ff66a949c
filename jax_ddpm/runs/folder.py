"""The run folder: its files, its configuration, and a lock that keeps out a second writer."""

import fcntl
import json
import math
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import dacite

from jax_ddpm.config.run import Config, validate
from jax_ddpm.devices.processes import is_main_process, wait_for_all
from jax_ddpm.errors import UserError, flag_name
from jax_ddpm.files.atomic import is_leftover, report_disk_errors, write_atomically
from jax_ddpm.files.untrusted import explain, read_json, require_plain_tree
from jax_ddpm.models import ARCHITECTURES
from jax_ddpm.runs.formats import FORMAT, migrate

# Settings that do not change what a run computes.
MAY_DIFFER = {
    "run",
    "train.parallel",
    "train.fsdp",
    "train.max_steps",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.steps_per_call",
    "train.data_on_device",
    "train.remat",
    "train.max_bad_steps",
}
LOCK = "lock"

MAX_PIXELS = 2**28  # values in one image: height x width x channels


@dataclass(frozen=True)
class Run:
    """A run folder, its configuration, and the paths of its files."""

    folder: Path
    config: Config
    image_shape: tuple[int, int, int]
    imported_from: str | None = None
    """The implementation whose weights the run started from."""

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object for each logged step."""
        return self.folder / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def samples(self) -> Path:
        """Folder of the sample grids drawn during training."""
        return self.folder / "samples"

    @property
    def snapshots(self) -> Path:
        """Folder of the snapshots of moving averages (see train.posthoc_ema)."""
        return self.folder / "ema"

    @property
    def final_grid(self) -> Path:
        """The sample grid of the finished run."""
        return self.folder / "samples.png"

    @property
    def final_gif(self) -> Path:
        """The final grid as it emerges from noise."""
        return self.folder / "sampling.gif"

    @property
    def loss_curve(self) -> Path:
        """A plot of the loss over the steps."""
        return self.folder / "loss.png"


@contextmanager
def lock_for_training(config: Config, image_shape: tuple[int, int, int]) -> Iterator[Run]:
    """Open the run folder of `config`, and lock it until this context is left.

    Of several processes, only the first writes and locks. Raises UserError as `open_for_training`
    and `lock_folder` do, and then writes nothing in the folder.
    """
    run, _ = _opened(config, image_shape)
    with ExitStack() as stack:
        if is_main_process():
            stack.enter_context(lock_folder(run.folder))
            run = open_for_training(config, image_shape)
            remove_leftovers(run)
        wait_for_all("the run folder is there")
        if not is_main_process():
            run = load_from_first_process(config, image_shape)
        yield run


def load_for_training(config: Config) -> Run | None:
    """Load the run in the folder of `config`; None if there is none yet.

    Raises UserError if the folder holds something else, or a run with other settings.
    """
    if not (config.folder / "config.json").exists():
        require_free(config.folder, "--run")
        return None
    run, _ = _opened(config, load(config.folder).image_shape)
    return run


def load_from_first_process(config: Config, image_shape: tuple[int, int, int]) -> Run:
    """Load the run that the first process of the job has opened.

    Raises UserError if this process does not see it, or was started with other settings.
    """
    if not (config.folder / "config.json").exists():
        raise UserError(
            f"this process does not see {config.folder}, which the first process has opened: give "
            "all processes the same folder, on a file system that they share"
        )
    run, _ = _opened(config, image_shape)
    return run


def open_for_training(config: Config, image_shape: tuple[int, int, int]) -> Run:
    """Open the run folder of `config`; make it if it does not exist.

    A run of imported weights that has not been trained yet takes all settings from `config`, except
    for the network. Raises UserError if the folder holds something else, or a run with other
    settings.
    """
    run, is_new = _opened(config, image_shape)
    if is_new:
        write_config(run)
    return run


def _opened(config: Config, image_shape: tuple[int, int, int]) -> tuple[Run, bool]:
    """Return the run, and whether its config.json must still be written."""
    folder = config.folder
    run = Run(folder, config, image_shape)
    if not (folder / "config.json").exists():
        require_free(folder, "--run")
        return run, True
    stored = load(folder)
    run = replace(run, imported_from=stored.imported_from)
    if stored.imported_from is None or stored.metrics.exists():
        _require_same(stored, run)
        return run, False
    _require_same(replace(stored, config=replace(config, model=stored.config.model)), run)
    return run, True


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


def describe(run: Run) -> dict[str, Any]:
    """Describe `run` in JSON values, for config.json and for every checkpoint."""
    document: dict[str, Any] = {"format": FORMAT, "image_shape": run.image_shape}
    if run.imported_from is not None:
        document["imported_from"] = run.imported_from
    return document | {"config": to_dict(run.config)}


def write_config(run: Run) -> None:
    """Write config.json, atomically."""
    text = json.dumps(describe(run), indent=2) + "\n"
    write_atomically(run.folder / "config.json", lambda temporary: temporary.write_text(text))


def load(folder: Path) -> Run:
    """Load the run in `folder`. Raises UserError if there is none or it cannot be read."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.json")
    try:
        require_plain_tree(folder)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {explain(error)}") from error
    document = read_json(path, "the configuration of a run")
    try:
        document = migrate(document, path)
        config, imported_from = from_dict(document["config"]), document.get("imported_from")
        run = Run(folder, config, _image_shape(document["image_shape"]), imported_from)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, dacite.DaciteError) as error:
        cause = f"it has no {error}" if isinstance(error, KeyError) else explain(error)
        raise UserError(f"{path} is not the configuration of a run: {cause}") from error
    try:
        validate(run.config)
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from error
    return run


def _image_shape(values: Any) -> tuple[int, int, int]:
    """Check (height, width, channels) from JSON. Raises ValueError for anything else."""
    whole = isinstance(values, list) and all(type(n) is int and n >= 1 for n in values)
    if not whole or len(values) != 3 or math.prod(values) > MAX_PIXELS:
        raise ValueError(f"image_shape is {values}, but it must be [height, width, channels]")
    height, width, channels = values
    return height, width, channels


def to_dict(config: Config) -> dict[str, Any]:
    """Convert `config` to JSON values; paths become strings."""
    values = json.loads(json.dumps(asdict(config), default=str))
    names = {kind: name for name, kind in ARCHITECTURES.items()}
    values["model"] = {"architecture": names[type(config.model)], **values["model"]}
    return values


def from_dict(values: dict[str, Any]) -> Config:
    """Convert what `to_dict` returned back to a Config.

    Raises ValueError, KeyError, TypeError, AttributeError or DaciteError for anything else.
    """
    settings = dacite.Config(strict=True, cast=[tuple, Path], type_hooks={float: _number})
    model = dict(values["model"])
    architecture = model.pop("architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"there is no architecture {architecture!r}")
    built = dacite.from_dict(ARCHITECTURES[architecture], model, settings)
    return dacite.from_dict(Config, {**values, "model": built}, settings)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _require_same(stored: Run, given: Run) -> None:
    for name, old, new in _differences(to_dict(stored.config), to_dict(given.config)):
        raise UserError(
            f"{given.folder} was made with {flag_name(name)} {old}, not {new}: "
            "repeat its flags to continue it, or choose another folder with --run"
        )
    if stored.image_shape != given.image_shape:
        raise UserError(
            f"{given.folder} was made with images of shape {stored.image_shape}, but the data has "
            f"{given.image_shape}: choose another folder with --run"
        )


def _differences(
    old: dict[str, Any], new: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in new:
        name = prefix + key
        if name in MAY_DIFFER:
            continue
        if isinstance(new[key], dict):
            yield from _differences(old.get(key, {}), new[key], f"{name}.")
        elif old.get(key) != new[key]:
            yield name, old.get(key), new[key]


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, and make the folder if necessary.

    If this process is killed, the lock is released. It works between processes on one machine, and
    over NFS with lock support. Raises UserError if another process is training there, naming it.
    """
    with ExitStack() as stack:
        with report_disk_errors(folder / LOCK):
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(folder / LOCK, "ab+", 0, opener=_open_no_link))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip()
            raise UserError(
                f"another process is training in {folder} ({holder}): "
                "wait for it, or choose another folder with --run"
            ) from error
        with report_disk_errors(folder / LOCK):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


def _open_no_link(path: str, flags: int) -> int:
    """Open without following links: if the lock were a link, another file would be emptied."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
