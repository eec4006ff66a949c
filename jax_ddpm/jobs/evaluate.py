"""The evaluation job: the likelihood of images under a run's model, as numbers and a figure."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jax_ddpm import runs
from jax_ddpm.config.jobs import EMA, EvaluateJob, Weights
from jax_ddpm.config.run import validate_seed
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.devices.per_example import replicate_params, round_up
from jax_ddpm.devices.processes import is_main_process
from jax_ddpm.errors import UserError, flag_name, require, require_suffix
from jax_ddpm.files.atomic import require_writable, write_atomically
from jax_ddpm.files.figures import save_likelihood
from jax_ddpm.jobs.build import Parts, build, open_data
from jax_ddpm.jobs.generate import image_keys
from jax_ddpm.jobs.likelihood import LikelihoodFn, flow_timesteps, make_bound_fn, make_flow_fn
from jax_ddpm.jobs.messages import announce_compilation, make_bar, tell, tell_if_slow
from jax_ddpm.jobs.parameters import check_weights, load_params
from jax_ddpm.process.diffusion import Variance
from jax_ddpm.process.grids import space_timesteps

NUM_IMAGES = 256  # by default, if there are as many

Values = dict[str, Float[np.ndarray, "n *S"]]


def evaluate_run(folder: Path, job: EvaluateJob, weights: Weights = EMA) -> Path:
    """Compute the likelihood of a run's images, write JSON and PNG, and return the JSON file.

    Raises UserError for a folder that is not a trained run, and for settings that cannot work.
    """
    out = job.out or folder / "evaluation" / "likelihood.json"
    require_suffix(out, ".json")
    validate_seed(job.seed)
    check_numbers(job)
    run = runs.load(folder)
    check_weights(run.config, weights)
    plan = make_plan(job, run)
    with tell_if_slow("Opening the images"):
        source = open_images(job, run)
    num = job.num or min(NUM_IMAGES, len(source.images))
    if is_main_process():
        require_writable(out)
    parts = build(run.config, run.image_shape)
    with tell_if_slow("Loading the checkpoint"):
        params, description = load_params(run, parts, weights)
    kind = "test" if job.split == "test" else "training"
    data = f"{num} {kind} images of {run.config.data.name}"
    tell(f"{data}, {plan.how}, {description}")
    likelihood_fn = announce_compilation(plan.make(parts), "the likelihood")
    values = collect(likelihood_fn, params, parts, source, num, job)
    about = {"method": job.method, "how": plan.how, "images": data, "parameters": description}
    write_report(out, about | {"seed": job.seed} | summarize(values, plan.timesteps))
    return out


def check_numbers(job: EvaluateJob) -> None:
    """Raise UserError for numbers below 1, and for settings of the other method."""
    for name in ("num", "batch_size", "steps", "probes"):
        value = getattr(job, name)
        require(value is None or value >= 1, flag_name(name), value, "at least 1")
    other = {"bound": ("steps", "probes"), "ode": ("respacing", "variance")}[job.method]
    for name in other:
        if getattr(job, name) is not None:
            method = "ode" if job.method == "bound" else "bound"
            raise UserError(
                f"--{name} {getattr(job, name)} needs --method {method} (this is {job.method})"
            )


class Plan(NamedTuple):
    """How the likelihood is computed: in words, at which timesteps, and with which settings."""

    how: str
    timesteps: Int[np.ndarray, " S"]
    """Ascending: the timesteps of the bound's terms, or the points between the flow's steps."""
    method: Literal["bound", "ode"]
    clip_x_0: bool
    variance: Variance
    num_probes: int

    def make(self, parts: Parts) -> LikelihoodFn:
        """Make the compiled program that computes the likelihood."""
        if self.method == "bound":
            grid = np.append(self.timesteps[::-1], -1)
            return make_bound_fn(
                parts, variance=self.variance, clip_x_0=self.clip_x_0, timesteps=grid
            )
        return make_flow_fn(
            parts, clip_x_0=self.clip_x_0, timesteps=self.timesteps, num_probes=self.num_probes
        )


def make_plan(job: EvaluateJob, run: runs.Run) -> Plan:
    """Make the plan for `job`. Raises UserError for timesteps that the run's chain lacks."""
    T, bound = run.config.diffusion.num_timesteps, job.method == "bound"
    variance = choose_variance(job, run)
    clip = job.clip_x_0 if job.clip_x_0 is not None else bound and run.config.sample.clip_x_0
    probes = job.probes or 1
    if bound:
        try:
            timesteps = space_timesteps(T, job.respacing or str(T))[-2::-1]
        except ValueError as error:
            raise UserError(f"--respacing {job.respacing}: {error}") from error
        how = f"variational bound of {len(timesteps)} terms, variance {variance}"
    else:
        steps = job.steps or min(200, T - 1)
        require(1 <= steps <= T - 1, "--steps", steps, f"between 1 and T - 1 = {T - 1}")
        timesteps = flow_timesteps(T, steps)
        how = f"probability flow in {steps} steps, {probes} probe(s) per image"
    how += ", x_0 clipped" if clip else ", x_0 not clipped"
    return Plan(how, timesteps, job.method, clip, variance, probes)


def choose_variance(job: EvaluateJob, run: runs.Run) -> Variance:
    """Choose the variance of the reverse process.

    Raises UserError if the user chose a variance but the run has learned its own.
    """
    learned = run.config.diffusion.variance
    if learned == "fixed":
        return job.variance or run.config.sample.variance
    if job.variance is not None:
        raise UserError(
            f"--variance {job.variance}: leave it out, because this run has learned its variance"
        )
    return learned


def open_images(job: EvaluateJob, run: runs.Run) -> ImageSource:
    """Open the images of the run's data. Raises UserError for too few, or of another size."""
    source = open_data(run.config.data, job.split)
    count = len(source.images)
    fits = job.num is None or job.num <= count
    require(fits, "--num", job.num, f"at most {count}, the number of images")
    if source.image_shape != run.image_shape:
        raise UserError(
            f"the data has images of {source.image_shape}, but {run.folder} was trained on "
            f"{run.image_shape}"
        )
    return source


def collect(
    likelihood_fn: LikelihoodFn,
    params: Any,
    parts: Parts,
    source: ImageSource,
    num: int,
    job: EvaluateJob,
) -> Values:
    """Collect the results of `likelihood_fn` for `num` images, with a progress bar."""
    done: list[Values] = []
    size = min(job.batch_size, num)
    params = replicate_params(params, size)
    with make_bar(num, "img") as bar:
        for indices in split_evenly(len(source.images), num, job.batch_size):
            padded = np.resize(indices, round_up(size, params))  # one shape compiles once
            pixels = np.stack([source.images[i] for i in padded])
            labels = None
            if parts.num_labels is not None:
                labels = np.array([source.labels[int(i)] for i in padded])
            found = likelihood_fn(params, (pixels, labels, image_keys(job.seed, padded)))
            done.append({k: np.asarray(v, np.float64)[: len(indices)] for k, v in found.items()})
            bits = np.concatenate([batch["bits"] for batch in done])
            bar.set_postfix_str(f"{bits.mean():.3f} bits/dim")
            bar.update(len(indices))
    return {name: np.concatenate([batch[name] for batch in done]) for name in done[0]}


def split_evenly(num_images: int, num: int, batch_size: int) -> Iterator[Int[np.ndarray, " b"]]:
    """Yield the indices of `num` images, spread evenly over all of them, in batches."""
    indices = np.arange(num) * num_images // num
    yield from (indices[first : first + batch_size] for first in range(0, num, batch_size))


def summarize(values: Values, timesteps: Int[np.ndarray, " S"]) -> dict[str, Any]:
    """Average over the images, in bits per dimension, and for the bound also by timestep."""
    bits, n = values["bits"], len(values["bits"])
    error = float(bits.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    report: dict[str, Any] = {
        "num_images": n,
        "bits_per_dimension": float(bits.mean()),
        "standard_error": error,
    }
    if "terms" in values:
        terms = values["terms"].mean(axis=0)
        report |= {
            "prior": float(values["prior"].mean()),
            "decoder": float(terms[0]),
            "rest": float(terms[1:].sum()),
        }
        by_t = {name: values[name].mean(axis=0) for name in ("terms", "x_0_mse", "eps_mse")}
        report |= {name: value.tolist() for name, value in by_t.items()}
    return report | {"timesteps": timesteps.tolist(), "bits_of_each_image": bits.tolist()}


def write_report(out: Path, report: dict[str, Any]) -> None:
    """Write `report` as JSON with a figure beside it, and print the main numbers.

    Only process 0 writes and prints.
    """
    if not is_main_process():
        return
    text = json.dumps(report, indent=1) + "\n"
    write_atomically(out, lambda temporary: temporary.write_text(text))
    save_likelihood(out.with_suffix(".png"), report)
    error = report["standard_error"]
    margin = "" if error is None else f" +- {error:.4f}"
    print(f"{report['bits_per_dimension']:.4f}{margin} bits/dim")
    if "terms" in report:
        parts = ("prior", "decoder", "rest")
        print(", ".join(f"{name} {report[name]:.4g}" for name in parts))
    print(f"Wrote {out} and {out.with_suffix('.png').name}")
