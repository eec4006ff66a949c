"""Compare samplers: image quality against network evaluations."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jax_ddpm import runs
from jax_ddpm.config.jobs import CompareJob
from jax_ddpm.config.run import Config, SampleConfig, validate_sampling, validate_seed
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.devices.per_example import replicate_params
from jax_ddpm.errors import UserError, check_choice, require
from jax_ddpm.files.atomic import require_writable, write_atomically
from jax_ddpm.files.figures import save_quality
from jax_ddpm.files.images import Pixels
from jax_ddpm.jobs.build import Parts, build, open_data
from jax_ddpm.jobs.generate import generate_images, make_generate_fn
from jax_ddpm.jobs.messages import make_bar
from jax_ddpm.jobs.parameters import load_params
from jax_ddpm.optim.averages import Params
from jax_ddpm.process.distances import Points, energy_distance
from jax_ddpm.samplers import SAMPLERS, SamplerName

REFERENCE = 4000  # the most images from the data to compare with
GROUPS = 10  # the most groups of other images from the data


class Data(NamedTuple):
    """Disjoint parts of the data, as points in [-1, 1].

    Each group in `others` has as many images as are drawn from the run.
    """

    reference: Points
    others: list[Points]


def compare_samplers(folder: Path, job: CompareJob) -> Path:
    """Plot the distance between a run's images and its data, per sampler and number of evaluations.

    It is the energy distance between pixels. A band shows its value for groups of other images from
    the data, of the same number: values inside the band are due to chance. The numbers go into a
    JSON file beside the figure. Raises UserError for settings that cannot work.
    """
    validate_seed(job.seed)
    require(job.num >= 2, "--num", job.num, "at least 2")
    require(job.batch_size >= 1, "--batch-size", job.batch_size, "at least 1")
    out = job.out or folder / "samplers.png"
    require(out.suffix == ".png", "--out", out, "a file that ends in .png")
    run = runs.load(folder)
    chosen = job.samplers or list_samplers(run.config)
    names = [check_choice("--samplers", name, SAMPLERS) for name in chosen]
    numbers = sorted(set(job.evaluations))
    cases = [
        (name, n, choose_settings(run.config, job, name, n)) for name in names for n in numbers
    ]
    require_writable(out)
    parts = build(run.config, run.image_shape)
    params, _ = load_params(run, parts)
    data = split_data(open_data(run.config.data), job.num)
    curves: dict[str, dict[int, float]] = {}
    with make_bar(len(cases), "setting") as bar:
        for name, n, settings in cases:
            bar.set_postfix_str(f"{name}, {n} evaluations")  # each setting is compiled first
            drawn = to_points(draw_images(parts, params, settings, run.image_shape, job))
            curves.setdefault(name, {})[n] = energy_distance(drawn, data.reference)
            bar.update()
    by_chance = [energy_distance(others, data.reference) for others in data.others]
    write_comparison(out, curves, by_chance, job)
    print(f"Wrote {out} and {out.with_suffix('.json')}")
    return out


def list_samplers(config: Config) -> list[SamplerName]:
    """The samplers whose steps the run's network can follow."""
    whole_timesteps = config.model.num_timesteps is not None
    return [n for n, entry in SAMPLERS.items() if not (whole_timesteps and entry.looks_between)]


def choose_settings(
    config: Config, job: CompareJob, name: SamplerName, evaluations: int
) -> SampleConfig:
    """The settings for a sampler that may evaluate the network at most `evaluations` times."""
    num_steps = most_steps(name, evaluations)
    spacing = job.spacing or SAMPLERS[name].spacing or config.sample.spacing
    settings = replace(config.sample, sampler=name, num_steps=num_steps, spacing=spacing)
    settings = replace(settings, respacing=None, timesteps=None)
    validate_sampling(settings, config)
    return settings


def most_steps(name: SamplerName, evaluations: int) -> int:
    """The most steps possible in `evaluations`. Raises UserError if one step takes more."""
    cost = SAMPLERS[name].evaluations
    fitting = [steps for steps in range(1, evaluations + 1) if cost(steps) <= evaluations]
    if not fitting:
        raise UserError(
            f"--evaluations {evaluations} is too few for {name}: its first step takes {cost(1)}"
        )
    return fitting[-1]


def draw_images(
    parts: Parts,
    params: Params,
    settings: SampleConfig,
    image_shape: tuple[int, int, int],
    job: CompareJob,
) -> Pixels:
    """Draw the images for one setting, uint8 [n, h, w, c]."""
    batches = generate_images(
        make_generate_fn(parts, settings, image_shape),
        replicate_params(params, min(job.batch_size, job.num)),
        job.num,
        seed=job.seed,
        batch_size=job.batch_size,
        num_labels=parts.num_labels,
    )
    return np.concatenate([batch.images for batch in batches])


def split_data(source: ImageSource, num: int) -> Data:
    """Pick images spread evenly over the data. Raises UserError for fewer than 2 * num images."""
    total = len(source.images)
    require(total >= 2 * num, "--num", num, f"at most half the {total} images of the data")
    chosen = np.linspace(0, total - 1, min(total, REFERENCE + num)).astype(int)
    chosen = np.random.default_rng(0).permutation(chosen)
    spare = np.random.default_rng(1).permutation(np.setdiff1d(np.arange(total), chosen))
    groups = [chosen[:num], *(spare[i : i + num] for i in range(0, len(spare) - num + 1, num))]

    def flat(indices: Int[np.ndarray, " n"]) -> Points:
        return to_points(np.stack([source.images[int(i)] for i in indices]))

    return Data(flat(chosen[num:]), [flat(group) for group in groups[:GROUPS]])


def to_points(images: Pixels) -> Points:
    """Flatten uint8 images [n, h, w, c] to points [n, h * w * c] in [-1, 1]."""
    return images.reshape(len(images), -1) / 127.5 - 1


def write_comparison(
    out: Path, curves: Mapping[str, Mapping[int, float]], by_chance: list[float], job: CompareJob
) -> None:
    """Write the figure to `out`, and the numbers as JSON beside it."""
    document: dict[str, Any] = {
        "energy_distance": curves,
        "data_against_data": by_chance,
        "images": job.num,
        "spacing": job.spacing,
        "seed": job.seed,
    }
    text = json.dumps(document, indent=2) + "\n"
    write_atomically(out.with_suffix(".json"), lambda temporary: temporary.write_text(text))
    dashed = {name for name, entry in SAMPLERS.items() if entry.claims.stochastic}
    save_quality(out, curves, by_chance, dashed)
