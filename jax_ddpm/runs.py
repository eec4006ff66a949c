"""The run folder: where files go, its configuration, and the lock against a second writer."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import dacite

from jax_ddpm.config import Config
from jax_ddpm.errors import UserError
from jax_ddpm.files import write_atomically
from jax_ddpm.formats import FORMAT, migrated
from jax_ddpm.models import ARCHITECTURES

MAY_DIFFER = {"run", "train.parallel", "train.fsdp"}  # settings that do not change what a run computes


@dataclass(frozen=True)
class Run:
    """A run folder, what its config.json says, and the files in it."""

    folder: Path
    config: Config
    image_shape: tuple[int, int, int]
    imported_from: str | None = None
    """The implementation whose weights the run began with."""

    @property
    def checkpoints(self) -> Path:
        """The folder of all checkpoints."""
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.folder / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.folder / "tensorboard"

    @property
    def samples(self) -> Path:
        """The folder of the sample grids drawn on the way."""
        return self.folder / "samples"

    @property
    def snapshots(self) -> Path:
        """The folder of the averages that are stored for reconstruction."""
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
        """The loss over the steps."""
        return self.folder / "loss.png"


def open_for_training(config: Config, image_shape: tuple[int, int, int]) -> Run:
    """The run folder of `config`, made if it is not there.

    A run of imported weights that has not been trained yet takes the settings of `config`, but for
    the network. Raises UserError if the folder holds something else, or a run with other settings.
    """
    folder = config.folder
    run = Run(folder, config, image_shape)
    if (folder / "config.json").exists():
        stored = load(folder)
        run = replace(run, imported_from=stored.imported_from)
        if stored.imported_from is None or stored.metrics.exists():
            _require_same(stored, run)
            return run
        _require_same(replace(stored, config=replace(config, model=stored.config.model)), run)
    else:
        require_free(folder, "--run")
    write_config(run)
    return run


def require_free(folder: Path, flag: str) -> None:
    """Raise UserError if there is something in `folder`, which is not a run; `flag` names it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists and is not a run folder (it has no config.json): "
            f"choose another with {flag}"
        )


def describe(run: Run) -> dict[str, Any]:
    """What config.json and every checkpoint say of `run`."""
    document: dict[str, Any] = {"format": FORMAT, "image_shape": run.image_shape}
    if run.imported_from is not None:
        document["imported_from"] = run.imported_from
    return document | {"config": to_dict(run.config)}


def write_config(run: Run) -> None:
    """Write config.json."""
    text = json.dumps(describe(run), indent=2) + "\n"
    write_atomically(run.folder / "config.json", lambda temporary: temporary.write_text(text))


def load(folder: Path) -> Run:
    """The run in `folder`. Raises UserError if it holds none, or its config.json cannot be read."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.json")
    try:
        document = json.loads(path.read_text())
        document = migrated(document, path)
        height, width, channels = (int(n) for n in document["image_shape"])
        imported_from = document.get("imported_from")
        return Run(folder, from_dict(document["config"]), (height, width, channels), imported_from)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, dacite.DaciteError) as error:
        raise UserError(f"{path} is not the configuration of a run: {error}") from error


def to_dict(config: Config) -> dict[str, Any]:
    """`config` as JSON values; paths become strings."""
    values = json.loads(json.dumps(asdict(config), default=str))
    names = {kind: name for name, kind in ARCHITECTURES.items()}
    values["model"] = {"architecture": names[type(config.model)], **values["model"]}
    return values


def from_dict(values: dict[str, Any]) -> Config:
    """The Config that `to_dict` made `values` of. Raises for anything else: see `load`."""
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
            f"{given.folder} was made with {_flag(name)} {old}, not {new}: "
            "repeat its flags to continue it, or choose another folder with --run"
        )
    if stored.image_shape != given.image_shape:
        raise UserError(
            f"{given.folder} was made with images of shape {stored.image_shape}, the data has "
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


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold the run folder's lock. Raises UserError if another process trains in it."""
    with (run.folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is training in {run.folder}: "
                "wait for it, or choose another folder with --run"
            ) from error
        yield
