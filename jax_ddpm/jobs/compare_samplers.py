"""The job of `scripts/plot.py samplers`: image quality against network evaluations."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from jaxtyping import Int
from tqdm import tqdm

from jax_ddpm import runs
from jax_ddpm.config.run import Config, SampleConfig, validate_sampling, validate_seed
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.devices.per_example import replicate_params
from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import require_writable, write_atomically
from jax_ddpm.files.figures import save_quality
from jax_ddpm.files.images import Pixels
from jax_ddpm.jobs.build import Parts, build, open_data
from jax_ddpm.jobs.generate import generate_images, make_generate_fn
from jax_ddpm.jobs.sample import load_state
from jax_ddpm.optim.averages import Params
from jax_ddpm.process.distances import Points, energy_distance
from jax_ddpm.process.grids import GridName
from jax_ddpm.samplers import SAMPLERS, SamplerName

REFERENCE = 4000  # images of the data that drawn ones are compared with, at most
GROUPS = 10  # of other images of the data, at most


@dataclass(frozen=True)
class CompareArgs:
    """Plot how far a run's images are from its data, for every sampler and number of evaluations.

    The distance is the energy distance between pixels. A band shows where it lies for as many other
    images of the data: around 0, and as wide as chance makes it.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    samplers: tuple[SamplerName, ...] = ()
    """Samplers to compare; default: all."""
    evaluations: tuple[int, ...] = (5, 10, 20, 50)
    """Network evaluations per image; a sampler takes as many steps as they allow."""
    num: int = 256
    """Images per sampler and number of evaluations."""
    spacing: GridName | None = None
    """The grid of all samplers; default: each its own, and where it has none that of the run."""
    seed: int = 0
    """Seed of all noise, the same for every sampler."""
    batch_size: int = 64
    """Images per call of the compiled program."""
    out: Path | None = None
    """PNG file to write, and beside it a JSON file of the numbers. Default: samplers.png in the run
    folder."""


class Data(NamedTuple):
    """Disjoint parts of the data, as points in [-1, 1]; each of `others` as many as are drawn."""

    reference: Points
    others: list[Points]


def compare_samplers(args: CompareArgs) -> Path:
    """Write the figure and its numbers. Raises UserError for settings that cannot work."""
    validate_seed(args.seed)
    if args.num < 2 or args.batch_size < 1:
        raise UserError(
            f"--num {args.num} must be at least 2 and --batch-size {args.batch_size} at least 1"
        )
    out = args.out or args.run / "samplers.png"
    if out.suffix != ".png":
        raise UserError(f"--out is {out}, but it must end in .png")
    run = runs.load(args.run)
    names = args.samplers or tuple(SAMPLERS)
    jobs = [(name, n, settings_of(run.config, args, name, n))
            for name in names for n in sorted(set(args.evaluations))]  # fmt: skip
    require_writable(out)
    parts = build(run.config, run.image_shape)
    params = load_state(run, parts).ema_params
    data = split(open_data(run.config.data), args.num)
    curves: dict[str, dict[int, float]] = {}
    for name, n, settings in tqdm(jobs, unit="setting"):
        drawn = points(draw(parts, params, settings, run.image_shape, args))
        curves.setdefault(name, {})[n] = energy_distance(drawn, data.reference)
    by_chance = [energy_distance(others, data.reference) for others in data.others]
    write(out, curves, by_chance, args)
    print(f"Wrote {out} and {out.with_suffix('.json')}")
    return out


def settings_of(
    config: Config, args: CompareArgs, name: SamplerName, evaluations: int
) -> SampleConfig:
    """The settings of a sampler that evaluates the network so often, or a little less often."""
    num_steps = steps_within(name, evaluations)
    spacing = args.spacing or SAMPLERS[name].spacing or config.sample.spacing
    settings = replace(
        config.sample, sampler=name, num_steps=num_steps, spacing=spacing, respacing=None,
        timesteps=None,
    )  # fmt: skip
    validate_sampling(settings, config)
    return settings


def steps_within(name: SamplerName, evaluations: int) -> int:
    """The most steps that take at most so many evaluations. Raises UserError if none does."""
    cost = SAMPLERS[name].evaluations
    fitting = [steps for steps in range(1, evaluations + 1) if cost(steps) <= evaluations]
    if not fitting:
        raise UserError(
            f"--evaluations {evaluations} is too few for {name}: its first step takes {cost(1)}"
        )
    return fitting[-1]


def draw(
    parts: Parts,
    params: Params,
    settings: SampleConfig,
    image_shape: tuple[int, int, int],
    args: CompareArgs,
) -> Pixels:
    """The images of one setting, uint8 [n, h, w, c]."""
    batches = generate_images(
        make_generate_fn(parts, settings, image_shape),
        replicate_params(params, min(args.batch_size, args.num)),
        args.num,
        seed=args.seed,
        batch_size=args.batch_size,
        num_labels=parts.num_labels,
    )
    return np.concatenate([batch.images for batch in batches])


def split(source: ImageSource, num: int) -> Data:
    """Images evenly spread over the data. Raises UserError if there are fewer than 2 num."""
    total = len(source.images)
    if total < 2 * num:
        raise UserError(f"--num {num} images need twice as many of the data, which has {total}")
    chosen = np.linspace(0, total - 1, min(total, REFERENCE + num)).astype(int)
    chosen = np.random.default_rng(0).permutation(chosen)
    spare = np.random.default_rng(1).permutation(np.setdiff1d(np.arange(total), chosen))
    groups = [chosen[:num], *(spare[i : i + num] for i in range(0, len(spare) - num + 1, num))]

    def flat(indices: Int[np.ndarray, " n"]) -> Points:
        return points(np.stack([source.images[int(i)] for i in indices]))

    return Data(flat(chosen[num:]), [flat(group) for group in groups[:GROUPS]])


def points(images: Pixels) -> Points:
    """uint8 images [n, h, w, c] as points [n, d] in [-1, 1]."""
    return images.reshape(len(images), -1) / 127.5 - 1


def write(
    out: Path, curves: Mapping[str, Mapping[int, float]], by_chance: list[float], args: CompareArgs
) -> None:
    """The figure, and the numbers as JSON beside it."""
    document: dict[str, Any] = {
        "energy_distance": curves,
        "data_against_data": by_chance,
        "images": args.num,
        "spacing": args.spacing,
        "seed": args.seed,
    }
    text = json.dumps(document, indent=2) + "\n"
    write_atomically(out.with_suffix(".json"), lambda temporary: temporary.write_text(text))
    dashed = {name for name, entry in SAMPLERS.items() if entry.stochastic}
    save_quality(out, curves, by_chance, dashed)
