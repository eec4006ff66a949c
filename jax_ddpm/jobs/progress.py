"""What the loop carries from step to step beside the state; so a resumed run logs the same rows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Progress(NamedTuple):
    """Metrics of the steps since the last row, and the rows' losses since the last checkpoint.

    Checkpoints that were asked for, by a signal or --train.max-steps, do not count as the last.
    """

    window: tuple[dict[str, Any], ...] = ()
    losses: tuple[float, ...] = ()

    @property
    def num_steps(self) -> int:
        """How many steps `window` is of."""
        return len(join_metrics(self.window)["loss"]) if self.window else 0


def join_metrics(window: Sequence[Any]) -> dict[str, Any]:
    """The metrics of several calls, each of one or more steps, as one array per name."""
    rows = jax.device_get(tuple(window))
    return {name: np.concatenate([np.atleast_1d(row[name]) for row in rows]) for name in rows[0]}


def to_json(progress: Progress) -> dict[str, Any]:
    """`progress` as JSON values, with all digits; NaN and infinity too."""
    window = join_metrics(progress.window) if progress.window else {}
    numbers = {name: [repr(float(v)) for v in values] for name, values in window.items()}
    return {"window": numbers, "losses": [repr(float(loss)) for loss in progress.losses]}


def from_json(values: dict[str, Any] | None) -> Progress:
    """What `to_json` made `values` of; None, as in older checkpoints: nothing."""
    if not values:
        return Progress()
    window = {name: np.array(list(map(float, v))) for name, v in values["window"].items()}
    return Progress((window,) if window else (), tuple(map(float, values["losses"])))
