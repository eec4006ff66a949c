"""Rounds of several contestants in turn, and their medians and ratios."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jax_ddpm.files.atomic import write_atomically

Times = dict[str, list[float]]


def in_turn(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1
) -> Times:
    """Seconds that each call took: in every round each contestant once, after `warmup` calls.

    A contestant returns when its work is done, on the accelerator too. Says how long each took to
    warm up, most of which is compilation.
    """
    for name, call in contestants.items():
        print(f"{name}: warm after {sum(seconds(call) for _ in range(warmup)):.1f} s", flush=True)
    times: Times = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            times[name].append(seconds(call))
    return times


def seconds(call: Callable[[], object]) -> float:
    """How long `call` takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def table(times: Times, work: float, unit: str, rival: str | None = None) -> list[dict[str, Any]]:
    """One row per contestant: the median rate in `unit` per second, its range, and the ratio.

    `work` is what one call does. The ratio is the median over the rounds of how much faster the
    contestant was than `rival` in the same round.
    """
    rows = []
    for name, taken in times.items():
        rates = sorted(work / s for s in taken)
        row = {"contestant": name, f"{unit}/s": statistics.median(rates)}
        row |= {"lowest": rates[0], "highest": rates[-1]}
        if rival is not None:
            ratios = [theirs / ours for theirs, ours in zip(times[rival], taken, strict=True)]
            row[f"times {rival}"] = statistics.median(ratios)
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows of equal columns as a table."""
    cells = [list(rows[0])] + [[_text(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def save(path: Path | None, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write what was measured as JSON, if a file is asked for."""
    if path is not None:
        text = json.dumps({**about, "rows": rows}, indent=2) + "\n"
        write_atomically(path, lambda temporary: temporary.write_text(text))
        print(f"Wrote {path}")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
