"""The evaluation job: from a run folder to numbers and figures of what the run is worth."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float, Int
from tqdm import tqdm

from jax_ddpm import runs
from jax_ddpm.config.run import validate_seed
from jax_ddpm.data.sources import ImageSource, Split
from jax_ddpm.devices.per_example import replicate_params, round_up
from jax_ddpm.devices.processes import is_main_process
from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import require_writable, write_atomically
from jax_ddpm.files.figures import save_likelihood
from jax_ddpm.jobs.build import Parts, build, open_data
from jax_ddpm.jobs.generate import image_keys
from jax_ddpm.jobs.likelihood import LikelihoodFn, flow_timesteps, make_bound_fn, make_flow_fn
from jax_ddpm.jobs.sample import load_state
from jax_ddpm.process.diffusion import Variance
from jax_ddpm.process.grids import space_timesteps
from jax_ddpm.runs.averages import check_selection, select_params

Values = dict[str, Float[np.ndarray, "n *S"]]


@dataclass(frozen=True)
class EvaluateArgs:
    """The evaluation job."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    likelihood: bool = False
    """How probable the run's own images are under its network, in bits per dimension."""
    method: Literal["bound", "ode"] = "bound"
    """bound: the variational bound, term by term; ode: the likelihood of the probability flow."""
    num: int = 256
    """Number of images, spread evenly over the data."""
    split: Split = "train"
    """Which images of the data: those of the training, or those set aside for tests."""
    respacing: str | None = None
    """bound: timesteps visited, such as "250", "10,15,20" or "ddim50"; default: all."""
    variance: Literal["fixed_small", "fixed_large"] | None = None
    """bound: variance of the reverse process, where it is not learned; default: sample.variance."""
    steps: int | None = None
    """ode: steps of Heun's method, each two network evaluations; default: 200, or all of T."""
    probes: int | None = None
    """ode: random directions per image that estimate the divergence; default: 1."""
    clip_x_0: bool | None = None
    """Clip each predicted clean image to [-1, 1]; default: bound: as the run does; ode: no."""
    weights: str = "ema"
    """ema, raw, or a decay of the run's averages."""
    checkpoint: Literal["newest", "best"] = "newest"
    """best: the one of lowest training loss, of a run with train.keep-best."""
    batch_size: int = 16
    """Images per call of the compiled program."""
    seed: int = 0
    """Seed of all noise; that of an image depends on nothing else but its place in the data."""
    out: Path | None = None
    """JSON file to write; the figure goes beside it. Default: evaluation/likelihood.json in the run
    folder."""


def evaluate_run(args: EvaluateArgs) -> Path:
    """Evaluate a run, write JSON and PNG, and return the path of the former.

    Raises UserError for a folder that is no trained run and for settings that cannot work.
    """
    if not args.likelihood:
        raise UserError("say what to evaluate: --likelihood")
    out = args.out or args.run / "evaluation" / "likelihood.json"
    if out.suffix != ".json":
        raise UserError(f"--out is {out}, but it must end in .json")
    validate_seed(args.seed)
    require_positive(args)
    run = runs.load(args.run)
    check_selection(run.config, args.weights, None, None)
    plan = plan_of(args, run)
    source = images_of(args, run)
    if is_main_process():
        require_writable(out)
    parts = build(run.config, run.image_shape)
    state = load_state(run, parts, best=args.checkpoint == "best")
    params, what = select_params(run, state, args.weights)
    kind = "test" if args.split == "test" else "training"
    data = f"{args.num} {kind} images of {run.config.data.name}"
    print(f"{data}, {plan.how}, {what}")
    values = collect(plan.make(parts), params, parts, source, args)
    report = {"method": args.method, "how": plan.how, "images": data, "parameters": what,
              "seed": args.seed} | summary(values, plan.timesteps)  # fmt: skip
    write_report(out, report)
    return out


def require_positive(args: EvaluateArgs) -> None:
    """Raise UserError for numbers below 1, and for flags of the method that was not chosen."""
    for name in ("num", "batch_size", "steps", "probes"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}, but it must be at least 1")
    other = ("steps", "probes") if args.method == "bound" else ("respacing", "variance")
    for name in other:
        if getattr(args, name) is not None:
            method = "ode" if args.method == "bound" else "bound"
            raise UserError(f"--{name} {getattr(args, name)} is for --method {method}")


class Plan(NamedTuple):
    """How the likelihood is computed: in words, at which timesteps, and as settings."""

    how: str
    timesteps: Int[np.ndarray, " S"]
    """Ascending: of the terms, or between the steps."""
    method: Literal["bound", "ode"]
    clip_x_0: bool
    variance: Variance
    num_probes: int

    def make(self, parts: Parts) -> LikelihoodFn:
        """The compiled program."""
        if self.method == "bound":
            grid = np.append(self.timesteps[::-1], -1)
            return make_bound_fn(
                parts, variance=self.variance, clip_x_0=self.clip_x_0, timesteps=grid
            )
        return make_flow_fn(
            parts, clip_x_0=self.clip_x_0, timesteps=self.timesteps, num_probes=self.num_probes
        )


def plan_of(args: EvaluateArgs, run: runs.Run) -> Plan:
    """What `args` asks for. Raises UserError for what cannot be done with the run's chain."""
    T, bound = run.config.diffusion.num_timesteps, args.method == "bound"
    variance = variance_of(args, run)
    clip = args.clip_x_0 if args.clip_x_0 is not None else bound and run.config.sample.clip_x_0
    probes = args.probes or 1
    if bound:
        try:
            timesteps = space_timesteps(T, args.respacing or str(T))[-2::-1]
        except ValueError as error:
            raise UserError(f"--respacing {args.respacing}: {error}") from error
        how = f"variational bound of {len(timesteps)} terms, variance {variance}"
    else:
        if T < 2 or (args.steps or 1) > T - 1:
            raise UserError(f"--steps {args.steps or 1} must be between 1 and T - 1 = {T - 1}")
        timesteps = flow_timesteps(T, args.steps or min(200, T - 1))
        how = f"probability flow in {len(timesteps) - 1} steps, {probes} probe(s) per image"
    how += ", x_0 clipped" if clip else ", x_0 not clipped"
    return Plan(how, timesteps, args.method, clip, variance, probes)


def variance_of(args: EvaluateArgs, run: runs.Run) -> Variance:
    """The variance of the reverse process. Raises UserError for one given beside a learned one."""
    learned = run.config.diffusion.variance
    if learned == "fixed":
        return args.variance or run.config.sample.variance
    if args.variance is not None:
        raise UserError(f"--variance {args.variance}: this run has learned its variance")
    return learned


def images_of(args: EvaluateArgs, run: runs.Run) -> ImageSource:
    """The images of the run's data. Raises UserError if they are too few, or not the run's size."""
    data = run.config.data
    source = open_data(data, args.split)
    if args.num > len(source.images):
        raise UserError(f"--num {args.num} is more than the {len(source.images)} images there are")
    if source.image_shape != run.image_shape:
        raise UserError(
            f"the data has images of {source.image_shape}, but {run.folder} was made with "
            f"{run.image_shape}"
        )
    return source


def collect(
    likelihood_fn: LikelihoodFn, params: Any, parts: Parts, source: ImageSource, args: EvaluateArgs
) -> Values:
    """What `likelihood_fn` says of each image, batch by batch, with a progress bar."""
    done: list[Values] = []
    size = min(args.batch_size, args.num)
    params = replicate_params(params, size)
    with tqdm(total=args.num, unit="img", disable=not is_main_process()) as bar:
        for indices in batches_of(len(source.images), args.num, args.batch_size):
            padded = np.resize(indices, round_up(size, params))  # one shape, one program
            pixels = np.stack([source.images[i] for i in padded])
            labels = None
            if parts.num_labels is not None:
                labels = np.array([source.labels[int(i)] for i in padded])
            found = likelihood_fn(params, (pixels, labels, image_keys(args.seed, padded)))
            done.append({k: np.asarray(v, np.float64)[: len(indices)] for k, v in found.items()})
            bits = np.concatenate([batch["bits"] for batch in done])
            bar.set_postfix_str(f"{bits.mean():.3f} bits/dim")
            bar.update(len(indices))
    return {name: np.concatenate([batch[name] for batch in done]) for name in done[0]}


def batches_of(num_images: int, num: int, batch_size: int) -> Iterator[Int[np.ndarray, " b"]]:
    """The numbers of `num` images, spread evenly over all, in batches."""
    indices = np.arange(num) * num_images // num
    yield from (indices[first : first + batch_size] for first in range(0, num, batch_size))


def summary(values: Values, timesteps: Int[np.ndarray, " S"]) -> dict[str, Any]:
    """Means over the images, in bits per dimension; of the bound also by t."""
    bits, n = values["bits"], len(values["bits"])
    error = float(bits.std(ddof=1) / math.sqrt(n)) if n > 1 else None  # of one image: not known
    report: dict[str, Any] = {
        "num_images": n, "bits_per_dimension": float(bits.mean()), "standard_error": error,
    }  # fmt: skip
    if "terms" in values:
        terms = values["terms"].mean(axis=0)
        report |= {"prior": float(values["prior"].mean()), "decoder": float(terms[0]),
                   "rest": float(terms[1:].sum())}  # fmt: skip
        by_t = {name: values[name].mean(axis=0) for name in ("terms", "x_0_mse", "eps_mse")}
        report |= {name: value.tolist() for name, value in by_t.items()}
    return report | {"timesteps": timesteps.tolist(), "bits_of_each_image": bits.tolist()}


def write_report(out: Path, report: dict[str, Any]) -> None:
    """Write `report` as JSON and its figure beside it, and print the main numbers.

    Of several processes one does.
    """
    if not is_main_process():
        return
    text = json.dumps(report, indent=1) + "\n"
    write_atomically(out, lambda temporary: temporary.write_text(text))
    save_likelihood(out.with_suffix(".png"), report)
    error = report["standard_error"]
    spread = "" if error is None else f" +- {error:.4f}"
    print(f"{report['bits_per_dimension']:.4f}{spread} bits/dim")
    if "terms" in report:
        parts = ("prior", "decoder", "rest")
        print(", ".join(f"{name} {report[name]:.4g}" for name in parts))
    print(f"Wrote {out} and {out.with_suffix('.png').name}")
