"""Time several contestants by turns, in rounds, and compare their median rates."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jax_ddpm.files.atomic import write_atomically

Times = dict[str, list[float]]


def time_in_turn(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1
) -> Times:
    """Time each contestant once per round, after `warmup` calls. Returns seconds per call.

    A contestant must return only when its work is done, on the accelerator too. Prints how long
    each took to warm up, which is mostly compilation.
    """
    for name, call in contestants.items():
        took = sum(measure_seconds(call) for _ in range(warmup))
        print(f"{name}: warm after {took:.1f} s", flush=True)
    times: Times = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            times[name].append(measure_seconds(call))
    return times


def measure_seconds(call: Callable[[], object]) -> float:
    """Measure how long `call` takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def make_rows(
    times: Times, work: float, unit: str, rival: str | None = None
) -> list[dict[str, Any]]:
    """Make one row per contestant: the median rate in `unit` per second, its range, and a ratio.

    `work` is the number of units in one call. The ratio says how many times faster the contestant
    was than `rival` in the same round, as the median over the rounds.
    """
    rows = []
    for name, seconds in times.items():
        rates = sorted(work / s for s in seconds)
        row = {"contestant": name, f"{unit}/s": statistics.median(rates)}
        row |= {"lowest": rates[0], "highest": rates[-1]}
        if rival is not None:
            ratios = [theirs / ours for theirs, ours in zip(times[rival], seconds, strict=True)]
            row[f"times {rival}"] = statistics.median(ratios)
        rows.append(row)
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print rows with the same keys as a table."""
    cells = [list(rows[0])] + [[_format(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def save_rows(path: Path | None, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the rows and `about`, how they were measured, as JSON, unless `path` is None."""
    if path is not None:
        text = json.dumps({**about, "rows": rows}, indent=2) + "\n"
        write_atomically(path, lambda temporary: temporary.write_text(text))
        print(f"Wrote {path}")


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
