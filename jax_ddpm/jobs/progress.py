"""Metrics that the training loop carries, so that a resumed run logs the same rows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Progress(NamedTuple):
    """Metrics of the steps since the last row, and losses of the rows since the last checkpoint.

    Checkpoints on request, by a signal or --train.max-steps, do not count.
    """

    window: tuple[dict[str, Any], ...] = ()
    losses: tuple[float, ...] = ()

    def add(self, metrics: dict[str, Any]) -> "Progress":
        """Add the metrics of one call of the train step."""
        return self._replace(window=(*self.window, metrics))

    def close_row(self, loss: float) -> "Progress":
        """Note the mean `loss` of the row just written, and start a new row."""
        return Progress((), (*self.losses, loss))


def join_metrics(window: Sequence[Any]) -> dict[str, Any]:
    """Join the metrics of several calls, of one or more steps each, to one array per name."""
    rows = jax.device_get(tuple(window))
    return {name: np.concatenate([np.atleast_1d(row[name]) for row in rows]) for name in rows[0]}


def to_json(progress: Progress) -> dict[str, Any]:
    """Convert `progress` to JSON values with every digit, including NaN and infinity."""
    window = join_metrics(progress.window) if progress.window else {}
    numbers = {name: [repr(float(v)) for v in values] for name, values in window.items()}
    return {"window": numbers, "losses": [repr(float(loss)) for loss in progress.losses]}


def from_json(values: dict[str, Any] | None) -> Progress:
    """Convert back what `to_json` returned; None, as in older checkpoints, is no progress."""
    if not values:
        return Progress()
    window = {name: np.array(list(map(float, v))) for name, v in values["window"].items()}
    return Progress((window,) if window else (), tuple(map(float, values["losses"])))
