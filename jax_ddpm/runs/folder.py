"""The run folder: its files, and its configuration, which is sealed with a checksum."""

import json
import math
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import dacite

from jax_ddpm.config.run import Config, validate
from jax_ddpm.data.identity import Identity, identity_from_json, identity_to_json, list_differences
from jax_ddpm.errors import UserError, join_or
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.untrusted import explain, read_json, require_plain_tree
from jax_ddpm.models import ARCHITECTURES
from jax_ddpm.runs.checksums import is_whole, seal
from jax_ddpm.runs.formats import FORMAT, migrate
from jax_ddpm.runs.recovery import find_copy, find_steps, warn_once

CONFIG = "config.json"
FOLDERS = ("checkpoints", "samples", "ema", "tensorboard")  # those of a run
FIXED = ("model", "diffusion")  # sections that no run can change once it has begun
MAX_PIXELS = 2**28  # values in one image: height x width x channels


@dataclass(frozen=True)
class Run:
    """A run folder, its configuration, and the paths of its files."""

    folder: Path
    config: Config
    image_shape: tuple[int, int, int]
    imported_from: str | None = None
    """The implementation whose weights the run started from."""
    images: Identity | None = None
    """The images that it was trained on; None if it was made by an earlier version or is new."""
    restored: bool = field(default=False, compare=False)
    """Whether config.json could not be used, and a checkpoint's copy of it was."""

    @property
    def configuration(self) -> Path:
        """The settings, as JSON."""
        return self.folder / CONFIG

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object for each logged step."""
        return self.folder / "metrics.jsonl"

    @property
    def calls(self) -> Path:
        """One JSON object for each call of train: its steps, its time, its machine."""
        return self.folder / "calls.jsonl"

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

    @property
    def report(self) -> Path:
        """The page that shows all of it."""
        return self.folder / "report.html"


class Unusable(UserError):
    """A configuration that is missing or not the one that was written."""

    def __init__(self, cause: str, way_out: str) -> None:
        super().__init__(f"{cause}: {way_out}")
        self.cause = cause


def holds_run(folder: Path) -> bool:
    """Whether `folder` has a configuration, or checkpoints from which it can be restored."""
    return os.path.lexists(folder / CONFIG) or bool(find_steps(folder / "checkpoints"))


def describe(run: Run) -> dict[str, Any]:
    """Describe `run` in JSON values, for config.json and for every checkpoint."""
    document: dict[str, Any] = {"format": FORMAT, "image_shape": run.image_shape}
    if run.imported_from is not None:
        document["imported_from"] = run.imported_from
    if run.images is not None:
        document["images"] = identity_to_json(run.images)
    return document | {"config": to_dict(run.config)}


def write_config(run: Run) -> None:
    """Write config.json with its seal, atomically."""
    text = json.dumps(seal(describe(run)), indent=2) + "\n"
    write_atomically(run.configuration, lambda temporary: temporary.write_text(text))


def load(folder: Path) -> Run:
    """Load the run in `folder`.

    If its configuration is missing, damaged or does not match its seal, uses the copy in the newest
    checkpoint, and says so on stderr. Raises UserError if there is no run or it cannot be read.
    """
    if not holds_run(folder):
        raise UserError(f"{folder} is not a run folder: it has no config.json")
    require_plain_folder(folder)
    try:
        return read_document(folder, read_sealed(folder / CONFIG))
    except UserError as error:
        return _restore(folder, error)


def read_sealed(path: Path) -> Any:
    """Read config.json. Raises UserError if it is missing, unreadable, or its seal is wrong.

    Earlier versions wrote no seal.
    """
    if not os.path.lexists(path):
        raise Unusable(f"{path} is missing", "no checkpoint holds an intact copy of it")
    document = read_json(path, "the configuration of a run")
    if isinstance(document, dict) and "seal" in document and not is_whole(document):
        raise Unusable(
            f"{path} does not match its seal, so it was damaged or edited by hand",
            "put the original back, or start again with another --run, and give settings as flags",
        )
    return document


def _restore(folder: Path, error: UserError) -> Run:
    """Load the configuration from the newest checkpoint; raise `error` if there is none."""
    found = find_copy(folder / "checkpoints")
    if found is None:
        raise error
    step, document = found
    try:
        run = read_document(folder, document)
    except UserError:
        raise error from None
    cause = error.cause if isinstance(error, Unusable) else error
    warn_once(f"{cause}. The configuration in the checkpoint of step {step} is used instead.")
    return replace(run, restored=True)


def read_document(folder: Path, document: Any) -> Run:
    """Read what `describe` wrote. Raises UserError for anything else."""
    path = folder / CONFIG
    try:
        document = migrate(document, path)
        images = document.get("images")
        run = Run(
            folder,
            from_dict(document["config"]),
            _image_shape(document["image_shape"]),
            document.get("imported_from"),
            None if images is None else identity_from_json(images),
        )
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


def require_own_checkpoint(run: Run, step: int, about: dict[str, Any]) -> None:
    """Raise UserError if the checkpoint of `step`, described by `about`, is that of another run.

    The sealed config.json of another run of the same network would fit it, but draw other images.
    Compares what no run can change. Checkpoint 0 may hold imported weights, which take settings.
    """
    if step == 0 or "config" not in about or "image_shape" not in about:
        return
    trained = read_document(run.folder, about)
    differs = [name for name in FIXED if getattr(trained.config, name) != getattr(run.config, name)]
    if trained.images is not None and run.images is not None:
        differs += ["images"] * any(list_differences(trained.images, run.images))
    if differs:
        raise UserError(
            f"the checkpoint of step {step} was trained with another {join_or(differs)} than "
            f"{run.configuration} says, which is that of another run: put the original back, or "
            "remove it to use the copy in the newest checkpoint"
        )


def require_plain_folder(folder: Path) -> None:
    """Raise UserError for links out of a run folder, and for anything but files and folders.

    The folders of FOLDERS may be links, for example to another disk, if the owner of the run folder
    made them.
    """
    links = [folder / name for name in FOLDERS if (folder / name).is_symlink()]
    home = folder.resolve()
    outward = [link for link in links if not _follow(link).is_relative_to(home)]
    for link in outward:
        _require_own_link(link)
    for path in (folder / name for name in FOLDERS):  # or a checkpoint fails after many steps
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} must be a folder, but it is a file: remove it")
    try:
        require_plain_tree(folder, outward)
        for link in outward:
            require_plain_tree(_follow(link))
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {explain(error)}") from error


def _follow(link: Path) -> Path:
    """Where `link` leads; unlike Path.resolve, this raises nothing for a link to itself."""
    return Path(os.path.realpath(link))


def _get_owner(path: Path) -> int:
    return path.lstat().st_uid


def _require_own_link(link: Path) -> None:
    """Raise UserError unless `link`, in a run folder, may be followed to another folder."""
    target = _follow(link)
    if _get_owner(link) != _get_owner(link.parent.resolve()):
        raise UserError(
            f"{link} is a link out of the run folder, to {target}, that the owner of the folder "
            "did not make: make it yourself, or copy the files into the run folder"
        )
    if not target.is_dir():
        raise UserError(
            f"{link} is a link to {target}, which is not there: mount its disk, or remove the link"
        )


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
