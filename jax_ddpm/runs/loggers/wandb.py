"""Weights & Biases. WANDB_PROJECT, WANDB_MODE, WANDB_DIR and the like mean what they always do."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_ddpm.runs.loggers.marks import Marks


class WeightsAndBiases:
    """A run of Weights & Biases, which a resumed run continues."""

    title = "Weights & Biases' log"

    def __init__(self, folder: Path) -> None:
        self._name, self._marks = folder.resolve().name, Marks(folder / "wandb.json")
        self._run: Any = None

    def begin(self, step: int, settings: Mapping[str, Any]) -> None:
        """Begin a run of that program, or continue the one that was begun before."""
        import wandb

        self._marks.load()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "jax_ddpm"),
            name=self._name,
            id=self._marks.id,
            resume="allow",
            config=dict(settings),
            allow_val_change=True,
        )
        self._marks.name(self._run.id)

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a row, unless this step has one."""
        if self._run is not None and self._marks.advance("scalars", step):
            self._run.log(dict(values), step=step)

    def add_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Show an image, unless this step has one."""
        import wandb

        if self._run is not None and self._marks.advance(name, step):
            self._run.log({name: wandb.Image(pixels.squeeze())}, step=step)

    def close(self) -> None:
        """Send what is left."""
        if self._run is not None:
            self._run.finish()
