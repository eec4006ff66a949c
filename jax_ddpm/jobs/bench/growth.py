"""How seconds and memory grow with the batch, the steps of sampling, and the size of the images."""

import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_ddpm.devices.layout import get_device_name
from jax_ddpm.jobs.bench import timing
from jax_ddpm.jobs.bench.networks import NetworkName, Subject, make_config
from jax_ddpm.jobs.bench.step import (
    SamplingArgs,
    StepArgs,
    build_ours,
    make_our_sampling,
    make_our_steps,
)
from jax_ddpm.jobs.memory import measure_step_memory

MIB = 2**20
FIXED = "pulfer"  # takes images of one size
RESIDENT = Path("/proc/self/statm")  # Linux only; the second number is in pages


@dataclass(frozen=True)
class GrowthArgs:
    """Seconds and memory over the batch, the steps of sampling and the size of the images."""

    network: NetworkName = "fashion-cpu"
    """Which network. Those for images of a fixed size are measured at that size only."""
    batch_sizes: tuple[int, ...] = (4, 8, 16, 32, 64)
    """Images per batch."""
    sampling_steps: tuple[int, ...] = (10, 25, 50, 100)
    """Steps of DDIM, for 16 images."""
    image_sizes: tuple[int, ...] = (16, 32, 48, 64)
    """Sides of the images in pixels."""
    images: tuple[int, ...] = (64, 1024)
    """Numbers of images to draw, 16 at a time and in 2 steps, to compare the memory of the
    process."""
    rounds: int = 3
    """Number of times that each point is measured."""
    out: Path | None = None
    """JSON file to write the results to."""


class Curve(NamedTuple):
    """What grows with what."""

    what: str
    over: str
    points: dict[int, float]

    def make_rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row per point, with the value that the straight line through all has there."""
        slope, start = fit_line(self.points)
        for x, y in self.points.items():
            line = start + slope * x
            yield {"what": self.what, "over": self.over, "at": x, "value": y, "line": line}


def fit_line(points: dict[int, float]) -> tuple[float, float]:
    """Fit a line with the smallest relative errors; return its slope and where it starts."""
    x, y = np.array(list(points), float), np.array(list(points.values()))
    slope, start = np.polyfit(x, y, 1, w=1 / y) if len(x) > 1 else (y[0] / x[0], 0.0)
    return float(slope), float(start)


def bench_growth(args: GrowthArgs) -> list[dict[str, Any]]:
    """Measure all curves, print their lines, and return their points as rows."""
    curves = list(measure_curves(args))
    rows = [row for curve in curves for row in curve.make_rows()]
    timing.print_rows(rows)
    for curve in curves:
        slope, start = fit_line(curve.points)
        print(f"{curve.what} over {curve.over}: {start:.4g} + {slope:.4g} for each")
    about = {"network": args.network, "device": get_device_name(), "jax": jax.__version__}
    timing.save_rows(args.out, about, rows)
    return rows


def measure_curves(args: GrowthArgs) -> Iterator[Curve]:
    """Measure one curve after the other."""
    if RESIDENT.is_file():  # first, because later programs leave memory behind
        yield Curve("MiB of the process", "images drawn", measure_drawing(args))
    step, sampling = StepArgs(args.network, 16, steps=2), SamplingArgs(args.network, 16)
    batches = args.batch_sizes
    by_size = [replace(step, batch_size=size) for size in batches]
    yield make_curve("s/training step", "images in a batch", batches, by_size, args.rounds)
    yield Curve("MiB in a training step", "images in a batch", measure_memory(args))
    by_steps = [replace(sampling, steps=steps) for steps in args.sampling_steps]
    yield make_curve("s to draw 16", "steps of DDIM", args.sampling_steps, by_steps, args.rounds)
    if args.network != FIXED:
        subjects = {side**2: reshape(step.subject, side) for side in args.image_sizes}
        calls = {at: make_ours(step, subject) for at, subject in subjects.items()}
        seconds = {at: time_one(call, args.rounds) / step.steps for at, call in calls.items()}
        yield Curve("s/training step of 16", "pixels of an image", seconds)


def reshape(subject: Subject, side: int) -> Subject:
    """The same network for square images of another size."""
    return subject._replace(image_shape=(side, side, subject.image_shape[-1]))


def make_curve(
    what: str, over: str, at: Sequence[int], args: Sequence[StepArgs], rounds: int
) -> Curve:
    """Time a call for each of `args`, which differ in what is `at`."""
    points = {}
    for x, each in zip(at, args, strict=True):
        seconds = time_one(make_ours(each, each.subject), rounds)
        points[x] = seconds if isinstance(each, SamplingArgs) else seconds / each.steps
    return Curve(what, over, points)


def make_ours(args: StepArgs, subject: Subject) -> Callable[[], object]:
    """Make our contestant for `subject`, a training step or sampling as `args` say."""
    make = make_our_sampling if isinstance(args, SamplingArgs) else make_our_steps
    return make(args, build_ours(args, subject))


def time_one(call: Callable[[], object], rounds: int) -> float:
    """The median of the seconds of a call, after one to warm up."""
    call()
    return float(np.median([timing.measure_seconds(call) for _ in range(rounds)]))


def measure_memory(args: GrowthArgs) -> dict[int, float]:
    """Measure the memory that a training step takes with each batch, from compiled programs."""
    subject = StepArgs(args.network).subject
    configs = {size: make_config(subject, size, "float32") for size in args.batch_sizes}
    return {
        size: measure_step_memory(config, subject.image_shape).peak / MIB
        for size, config in configs.items()
    }


def measure_drawing(args: GrowthArgs) -> dict[int, float]:
    """Measure the memory of this process after it has drawn some images, and more.

    The images are drawn as `jax-ddpm sample` draws them, and dropped.
    """
    few = SamplingArgs(args.network, 16, steps=2)
    draw, found = make_ours(few, few.subject), {}
    for count in args.images:
        for _ in range(-(-count // few.images)):
            draw()
        found[count] = int(RESIDENT.read_text().split()[1]) * resource.getpagesize() / MIB
    return found
