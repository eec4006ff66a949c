"""Measure the time from the command to the first training step, with a cold and a warm cache."""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jax_ddpm.config.presets import find_preset
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.bench import timing

POLL = 0.005  # seconds between two looks at the log
SUMMARY = "Run folder: "  # the last line that training prints before it makes its state
IMPORTS = "import jax_ddpm.jobs.train"


@dataclass(frozen=True)
class StartArgs:
    """Seconds from `jax-ddpm train` to the first training step, with an empty and a full cache."""

    preset: str = "fashion-cpu"
    """Preset to train, for one step."""
    path: Path | None = None
    """The images, if they are not those that ship with the package."""
    rounds: int = 3
    """Number of starts with a warm cache; the first, with an empty one, is measured once."""
    out: Path | None = None
    """JSON file to write the results to."""


def bench_start(args: StartArgs) -> list[dict[str, Any]]:
    """Start training several times, print a table, and return its rows."""
    find_preset(args.preset)
    with tempfile.TemporaryDirectory() as folder:
        starts = [measure_start(args, Path(folder), i) for i in range(1 + args.rounds)]
    rows = list(make_rows(starts))
    timing.print_rows(rows)
    timing.save_rows(args.out, {"preset": args.preset}, rows)
    return rows


def make_rows(starts: list[dict[str, float]]) -> Iterator[dict[str, Any]]:
    """Yield a row for the start with an empty cache, and one with the medians of the others."""
    cold, *warm = starts
    yield {"cache": "empty", **cold}
    if warm:
        medians = {part: float(np.median([start[part] for start in warm])) for part in cold}
        yield {"cache": "full", **medians}


def measure_start(args: StartArgs, folder: Path, number: int) -> dict[str, float]:
    """Train for one step in a new run folder; return the seconds until each event.

    The first, the end of the imports, is measured in a process of its own.
    """
    imports = [sys.executable, "-c", IMPORTS]
    found = {"s, imports": timing.measure_seconds(lambda: subprocess.run(imports, check=True))}
    run, cache = folder / f"run_{number}", folder / "cache"
    cache.mkdir(mode=0o700, exist_ok=True)
    words = ["train", "--preset", args.preset, "--run", run, "--compile-cache", cache]
    words += ["--train.max-steps", 1, "--train.log-every", 1]
    words += [] if args.path is None else ["--data.path", args.path]
    command = [sys.executable, "-u", "-m", "jax_ddpm", *map(str, words)]
    begin, seen = time.perf_counter(), [0.0]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        reader = threading.Thread(target=note_summary, args=(child.stdout, seen))
        reader.start()
        log = run / "metrics.jsonl"
        while child.poll() is None and not (log.is_file() and log.stat().st_size):
            time.sleep(POLL)
        end = time.perf_counter()
        reader.join()
    if not log.is_file():
        raise UserError(f"`jax-ddpm train --preset {args.preset}` took no step: see above")
    return found | {"s, network and images": seen[-1] - begin, "s, first step": end - begin}


def note_summary(lines: Iterable[str], seen: list[float]) -> None:
    """Note when the summary of the run is printed, and read on until the output ends."""
    seen += [time.perf_counter() for line in lines if line.startswith(SUMMARY)]
