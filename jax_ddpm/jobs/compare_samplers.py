"""Compare samplers: image quality against network evaluations."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jax_ddpm import runs
from jax_ddpm.config.jobs import EMA, CompareJob, Weights
from jax_ddpm.config.run import Config, SampleConfig, validate_sampling, validate_seed
from jax_ddpm.config.sample import choose_spacing, describe_low_start
from jax_ddpm.devices.per_example import compile_per_example, replicate_params, round_up
from jax_ddpm.errors import UserError, check_choice, require, require_suffix
from jax_ddpm.files.atomic import require_writable, write_atomically
from jax_ddpm.files.figures import save_quality
from jax_ddpm.files.images import Pixels, stretch_to_uint8, to_uint8
from jax_ddpm.jobs.build import Parts, build, list_levels, make_sampler, open_data
from jax_ddpm.jobs.generate import image_keys, image_labels, make_denoiser
from jax_ddpm.jobs.messages import make_bar, tell, tell_if_slow
from jax_ddpm.jobs.parameters import check_weights, load_params
from jax_ddpm.jobs.rulers import Ruler, make_ruler
from jax_ddpm.optim.averages import Params
from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers import SAMPLERS, Sampler, SamplerName, SamplerState, draw_noise, run_chain

Curves = dict[str, dict[int, float]]  # sampler -> evaluations -> distance


class Case(NamedTuple):
    """One sampler with one number of evaluations."""

    name: SamplerName
    evaluations: int
    settings: SampleConfig


def compare_samplers(folder: Path, job: CompareJob, weights: Weights = EMA) -> Path:
    """Plot the distance between a run's images and its data, per sampler and number of evaluations.

    It is the Frechet distance in the features that ship, or in those that `job` names. A band shows
    its value for groups of other images from the data, of the same number: values inside the band
    are due to chance. The numbers go into a JSON file beside the figure. Raises UserError for
    settings that cannot work.
    """
    out = job.out or folder / "samplers.png"
    check_job(job, out)
    run = runs.load(folder)
    check_weights(run.config, weights)
    cases = list_cases(run.config, job)
    require_writable(out)
    parts = build(run.config, run.image_shape)
    params, _ = load_params(run, parts, weights)
    with tell_if_slow("Measuring the data itself"):
        ruler = make_ruler(open_data(run.config.data), job.num, job.features, job.batch_size)
    curves: Curves = {}
    with make_bar(sum(case.evaluations for case in cases) * job.num, "evaluation") as bar:
        for case, images in draw_cases(parts, params, run.image_shape, cases, job):
            curves.setdefault(case.name, {})[case.evaluations] = ruler.measure(images)
            bar.set_postfix_str(f"{case.name}, {case.evaluations} evaluations")
            bar.update(case.evaluations * job.num)
    write_comparison(out, curves, ruler, job)
    print(f"Wrote {out} and {out.with_suffix('.json')}")
    return out


def check_job(job: CompareJob, out: Path) -> None:
    """Raise UserError for numbers and files that cannot work."""
    validate_seed(job.seed)
    require(job.num >= 2, "--num", job.num, "at least 2")
    require(job.batch_size >= 1, "--batch-size", job.batch_size, "at least 1")
    require_suffix(out, ".png")


def list_cases(config: Config, job: CompareJob) -> list[Case]:
    """The samplers and numbers of evaluations to compare; says which of them start low."""
    names = [
        check_choice("--samplers", name, SAMPLERS) for name in job.samplers or list_samplers(config)
    ]
    cases = [
        Case(name, n, choose_settings(config, job, name, n))
        for name in names
        for n in sorted(set(job.evaluations))
    ]
    num_timesteps = config.diffusion.num_timesteps
    lows = [describe_low_start(case.settings, num_timesteps) for case in cases]
    for low in dict.fromkeys(filter(None, lows)):
        tell(f"Note: {low}")
    return cases


def list_samplers(config: Config) -> list[SamplerName]:
    """The samplers whose steps the run's network can follow."""
    whole = config.whole_timesteps
    return [name for name, entry in SAMPLERS.items() if not (whole and entry.looks_between)]


def choose_settings(
    config: Config, job: CompareJob, name: SamplerName, evaluations: int
) -> SampleConfig:
    """The settings for a sampler that may evaluate the network at most `evaluations` times."""
    num_steps = most_steps(name, evaluations)
    spacing = job.spacing or choose_spacing(name, config.sample)
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


def draw_cases(
    parts: Parts,
    params: Params,
    image_shape: tuple[int, int, int],
    cases: list[Case],
    job: CompareJob,
) -> Iterator[tuple[Case, Pixels]]:
    """Draw the images of every case, uint8 [n, h, w, c]. Cases of one sampler share programs."""
    size = min(job.batch_size, job.num)
    params = replicate_params(params, size)
    most = max(case.settings.num_steps for case in cases)
    programs: dict[Any, Any] = {}
    for case in cases:
        fixed = case.settings.num_steps if needs_num_steps(case.settings) else None
        if (case.name, fixed) not in programs:
            programs[case.name, fixed] = make_program(parts, case.settings, image_shape)
        levels = pad_levels(list_levels(parts, case.settings), fixed or most)
        batches = []
        for first in range(0, job.num, size):
            indices = first + np.arange(round_up(size, params))
            labels = image_labels(parts.num_labels, (), indices)
            examples = image_keys(job.seed, indices), labels
            batches.append(np.asarray(programs[case.name, fixed](params, examples, levels))[:size])
        yield case, np.concatenate(batches)[: job.num]


def needs_num_steps(settings: SampleConfig) -> bool:
    """Whether the sampler itself, not only its grid, depends on the number of steps."""
    return SAMPLERS[settings.sampler].counts_steps or settings.churn > 0


def make_program(parts: Parts, settings: SampleConfig, image_shape: tuple[int, int, int]) -> Any:
    """Compile (params, (keys, labels), levels) -> images, for levels from `pad_levels`."""
    dtype, num_steps = parts.schedule.betas.dtype, settings.num_steps
    to_pixels = stretch_to_uint8 if settings.stretch else to_uint8
    sampler = make_sampler(settings, parts.diffusion, parts.schedule, num_steps)

    def generate(params: Any, examples: Any, levels: Level) -> Array:
        keys, labels = examples
        x_T, noise_fn = draw_noise(keys, image_shape, dtype)
        x_0, _ = run_chain(
            skip_padding(sampler),
            make_denoiser(parts, settings, params, labels),
            levels,
            x_T,
            noise_fn,
            self_condition=parts.self_condition,
        )
        return to_pixels(x_0)

    return compile_per_example(generate)


def pad_levels(levels: Level, num_steps: int) -> Level:
    """Repeat the first level, so that all grids have the same shape: that of `num_steps` steps."""
    missing = num_steps + 1 - len(levels.t)
    return Level(*(jnp.concatenate([jnp.repeat(a[:1], missing), a]) for a in levels))


def skip_padding(sampler: Sampler) -> Sampler:
    """The sampler, which now does nothing in a step from a level to itself."""

    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        def advance() -> tuple[SamplerState, Prediction]:
            return sampler.step(state, noise, cur, nxt, denoise_fn)

        empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(advance)[1])
        return jax.lax.cond(cur.t == nxt.t, lambda: (state, empty), advance)

    return sampler._replace(step=step)


def write_comparison(out: Path, curves: Curves, ruler: Ruler, job: CompareJob) -> None:
    """Write the figure to `out`, and the numbers as JSON beside it."""
    document = {
        "distance": ruler.name,
        "samplers": curves,
        "data_against_data": ruler.by_chance,
        "images": job.num,
        "spacing": job.spacing,
        "seed": job.seed,
    }
    text = json.dumps(document, indent=2) + "\n"
    write_atomically(out.with_suffix(".json"), lambda temporary: temporary.write_text(text))
    panels: dict[str, Curves] = {}
    for name, curve in curves.items():
        kind = "stochastic" if SAMPLERS[name].claims.stochastic else "deterministic"
        panels.setdefault(kind, {})[name] = curve
    save_quality(out, panels, ruler.by_chance, ruler.name)
