"""The format of config.json and of what a checkpoint says of itself, and the older ones."""

from pathlib import Path
from typing import Any

from jax_ddpm.errors import UserError

FORMAT = 3


def check_format(number: object, where: object) -> None:
    """Raise UserError unless `number`, the format of `where`, is one that this version reads."""
    if isinstance(number, bool) or number not in range(1, FORMAT + 1):
        newer = isinstance(number, int) and number > FORMAT
        hint = ": it was written by a newer version, which this one must be brought up to"
        raise UserError(
            f"{where} has format {number}, this version reads 1 to {FORMAT}{hint if newer else ''}"
        )


def migrate(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """`document` in the format of this version. Raises UserError if it has none that is known.

    Format 1 had one architecture and one warm-up of the moving average; format 2 had no checksums
    in its checkpoints, and is otherwise the same.
    """
    check_format(document["format"], path)
    if document["format"] > 1:
        return {**document, "format": FORMAT}
    config = dict(document["config"])
    config["model"] = {"architecture": "unet", **config["model"]}
    train = dict(config["train"])
    train["ema_form"] = "ramp" if train.pop("ema_warmup") else "constant"
    return {**document, "format": FORMAT, "config": {**config, "train": train}}
