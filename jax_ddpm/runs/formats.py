"""Read older formats of config.json and of the description in a checkpoint."""

from pathlib import Path
from typing import Any

from jax_ddpm.errors import UserError

FORMAT = 4


def check_format(number: object, where: object) -> None:
    """Raise UserError unless this version can read format `number`, found in `where`."""
    if isinstance(number, bool) or number not in range(1, FORMAT + 1):
        newer = isinstance(number, int) and number > FORMAT
        hint = ": it was written by a newer version of this package, so update it"
        raise UserError(
            f"{where} has format {number}, but this version reads 1 to {FORMAT}"
            f"{hint if newer else ''}"
        )


def migrate(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """Convert `document` to the current format.

    Format 2 added a choice of architectures and of warm-ups of the moving average. Format 3 added
    checksums to checkpoints. Format 4 dropped the networks' own use_checkpoint.

    Raises UserError for an unknown format.
    """
    number = document["format"]
    check_format(number, path)
    config = dict(document["config"])
    if number < 2:
        config = _migrate_from_1(config)
    if number < 4:
        config = _migrate_from_3(config)
    return {**document, "format": FORMAT, "config": config}


def _migrate_from_1(config: dict[str, Any]) -> dict[str, Any]:
    train = dict(config["train"])
    train["ema_form"] = "ramp" if train.pop("ema_warmup") else "constant"
    return {**config, "model": {"architecture": "unet", **config["model"]}, "train": train}


def _migrate_from_3(config: dict[str, Any]) -> dict[str, Any]:
    """Replace `model.use_checkpoint` by `train.remat`, which does the same for every network."""
    model, train = dict(config["model"]), dict(config["train"])
    if model.pop("use_checkpoint", False) and train.get("remat", "none") == "none":
        train["remat"] = "nothing_saveable"
    return {**config, "model": model, "train": train}
