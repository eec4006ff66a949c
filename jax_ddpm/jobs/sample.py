"""The sampling job: from parameters, or a run folder, to images."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jax_ddpm import runs
from jax_ddpm.config.run import validate_sampling, validate_seed
from jax_ddpm.config.sample import SampleConfig
from jax_ddpm.devices.layout import shapes_to_load
from jax_ddpm.devices.per_example import replicate_params
from jax_ddpm.devices.processes import is_main_process
from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import require_writable, write_atomically
from jax_ddpm.files.images import Pixels, make_image_grid, save_gif, save_png
from jax_ddpm.jobs.build import Parts, build, make_sampler, make_sampling_levels
from jax_ddpm.jobs.classifier import load_classifier, require_classifier
from jax_ddpm.jobs.edit import (
    EditArgs,
    interpolation_settings,
    kind_of,
    make_edit,
    repaint_settings,
    require_sense,
)
from jax_ddpm.jobs.generate import (
    Edit,
    GradientOf,
    Samples,
    collect,
    generate_images,
    make_generate_fn,
)
from jax_ddpm.process.grids import GridName
from jax_ddpm.process.guidance import classifier_gradient
from jax_ddpm.runs.averages import check_selection, select_params
from jax_ddpm.runs.checkpoint import find_best_step, open_checkpoints, restore
from jax_ddpm.samplers import SAMPLERS, SamplerName
from jax_ddpm.training.state import TrainState

SUFFIXES = (".png", ".gif", ".npz")


@dataclass(frozen=True)
class SampleArgs(EditArgs):
    """The sampling job; settings left out are those of the run."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    num: int = 64
    """Number of images."""
    out: Path | None = None
    """File to write: .png (a grid), .gif (the grid as it emerges from noise) or .npz (arr_0: uint8
    [n, h, w, c]). Default: samples/seed_SEED.png in the run folder; with pictures given,
    samples/inpaint_seed_SEED.png and the like."""
    trajectory: bool = False
    """Also write the way from noise to the images: a GIF beside --out."""
    seed: int = 0
    """Seed of all noise; image i of a seed is the same whatever --num and --batch-size are."""
    sampler: SamplerName | None = None
    steps: int | None = None
    """Steps per image. Each is one evaluation of the network; heun takes two in all but the last,
    plms two in the first, pndm four in each of the first three."""
    spacing: GridName | None = None
    """Which timesteps are visited if there are fewer than T; log_snr, karras: levels between them.
    """
    timesteps: str | None = None
    """The timesteps visited, such as "999,850,736,645,545,455,343,233,124,24"."""
    variance: Literal["fixed_small", "fixed_large"] | None = None
    """Variance of ddpm."""
    eta: float | None = None
    """Noise of ddim: 0 is deterministic."""
    churn: float | None = None
    """Noise of heun, S_churn of Karras et al. 2022: 0 is deterministic."""
    churn_min: float | None = None
    """The lowest sigma/signal at which there is churn."""
    churn_max: float | None = None
    """The highest sigma/signal at which there is churn."""
    churn_noise: float | None = None
    """Standard deviation of the noise of churn."""
    clip_x_0: bool | None = None
    """Clip each predicted clean image to [-1, 1]."""
    dynamic_threshold: float | None = None
    """Clip each predicted clean image to this quantile of its pixels' sizes, such as 0.995."""
    rederive_eps: bool | None = None
    """Take the noise from the clipped clean image, not from the network."""
    respacing: str | None = None
    """Timesteps visited, as OpenAI's programs name them: "250", "10,15,20" or "ddim50"."""
    label: int | None = None
    """Class of all images, for a network that was trained with labels; default: all in turn."""
    guidance: float | None = None
    """Scale of guidance by the class: 1 is the network told the class, more goes further that way;
    with --classifier, the scale of its gradient. Needs a run with diffusion.label-dropout, or
    --classifier."""
    guidance_interval: tuple[float, float] | None = None
    """The lowest and the highest timestep at which there is guidance."""
    guidance_rescale: float | None = None
    """Between 0 and 1: how far each guided output is given the contrast of the one without."""
    classifier: str | None = None
    """FILE.py:FUNCTION, a function of your own that guides: log_prob(x_t, t, label) in JAX, one log
    probability of the label per noisy image. The file is run."""
    weights: str = "ema"
    """ema: the moving average of the parameters; raw: the parameters themselves; or a decay of the
    run, train.ema-decay or one of train.ema-decays."""
    posthoc_ema: float | None = None
    """Relative width of an average that is made of the run's snapshots (see train.posthoc-ema)."""
    posthoc_step: int | None = None
    """The step whose average that is; default: that of the last snapshot."""
    checkpoint: Literal["newest", "best"] = "newest"
    """best: the one of lowest training loss, of a run with train.keep-best."""
    frames: int | None = None
    """Frames of a GIF."""
    stretch: bool | None = None
    """Stretch the contrast of each image to the full range."""
    dtype: Literal["float32", "float64"] = "float32"
    """float64: noise, tables and network in double precision, to compare with PyTorch's images."""
    batch_size: int = 64
    """Images per call of the compiled program."""

    def settings(self, of_run: SampleConfig) -> SampleConfig:
        """The run's settings, changed by the flags that were given.

        Another sampler than the run's comes with its own grid.
        """
        if self.sampler not in (None, of_run.sampler):
            own = SAMPLERS[self.sampler].spacing
            of_run = replace(of_run, spacing=own or of_run.spacing)
        given = {f.name: getattr(self, f.name, None) for f in fields(SampleConfig)}
        given["num_steps"] = self.steps
        if any(a is not None for a in (self.steps, self.spacing, self.timesteps, self.respacing)):
            of_run = replace(of_run, respacing=None, timesteps=None)
        return replace(
            of_run, **{name: value for name, value in given.items() if value is not None}
        )


def sample_run(args: SampleArgs) -> Path:
    """Draw images from the newest checkpoint of a run, write them to a file, and return its path.

    Raises UserError for a folder that is no trained run and for settings that cannot work.
    """
    kind = kind_of(args)
    name = f"seed_{args.seed}.png" if kind is None else f"{kind}_seed_{args.seed}.png"
    out = args.out or args.run / "samples" / name
    check_output(out)
    run = runs.load(args.run)
    settings = checked_settings(args, run)
    if is_main_process():
        require_writable(out)
    with jax.enable_x64(args.dtype == "float64"):
        samples = draw_samples(args, run, settings)
    columns = args.num if kind == "interpolate" else None
    for path in dict.fromkeys([out, out.with_suffix(".gif")] if args.trajectory else [out]):
        write_samples(path, samples, columns)
        print(f"Wrote {path}")
    return out


def checked_settings(args: SampleArgs, run: runs.Run) -> SampleConfig:
    """The settings that `args` asks for. Raises UserError for what cannot work, before any work."""
    if args.num < 1 or args.batch_size < 1:
        raise UserError(
            f"--num {args.num} and --batch-size {args.batch_size} must both be at least 1"
        )
    validate_seed(args.seed)
    require_one_grid(args)
    check_selection(run.config, args.weights, args.posthoc_ema, args.posthoc_step)
    require_sense(args, args.num)
    require_latents(args)
    settings = interpolation_settings(args, args.settings(run.config.sample))
    if args.classifier is not None:
        require_plain_guidance(args, run)
        settings = replace(settings, guidance=None, guidance_interval=None, guidance_rescale=0.0)
    validate_sampling(settings, run.config)
    return settings


def require_one_grid(args: SampleArgs) -> None:
    """Raise UserError if several flags say which levels are visited."""
    given = [f"--{name} {getattr(args, name)}" for name in ("steps", "spacing", "respacing",
             "timesteps") if getattr(args, name) is not None]  # fmt: skip
    listed = args.respacing is not None or args.timesteps is not None
    if listed and len(given) > 1:
        raise UserError(f"{' and '.join(given)} each say which timesteps are visited: give one")


def require_latents(args: SampleArgs) -> None:
    """Raise UserError for a sampler between whose noises there is no interpolation."""
    if args.interpolate is None or args.interpolation == "stochastic":
        return
    if args.sampler not in (None, "ddim") or args.eta:
        given = f"--eta {args.eta:g}" if args.eta else f"--sampler {args.sampler}"
        raise UserError(
            f"{given}: interpolation ddim goes by --sampler ddim with --eta 0, which can be traced "
            "back; other samplers take --interpolation stochastic"
        )


def require_plain_guidance(args: SampleArgs, run: runs.Run) -> None:
    """Raise UserError for what a classifier's guidance does not know or do."""
    for name in ("guidance_interval", "guidance_rescale"):
        if getattr(args, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} is of guidance without a classifier: leave it out"
            )
    if run.config.diffusion.zero_terminal_snr:
        raise UserError("--classifier needs some signal in x_T: not diffusion.zero-terminal-snr")
    if run.config.model.num_labels is None and args.label is None:
        raise UserError("--classifier needs --label N, the class that it shall see")


def draw_samples(args: SampleArgs, run: runs.Run, settings: SampleConfig) -> Samples:
    """The images that `args` asks for."""
    parts = build(run.config, run.image_shape, "float64" if args.dtype == "float64" else None)
    if args.classifier is None or parts.num_labels is not None:
        require_label(args.label, parts.num_labels)
    edit = edit_of(args, parts, settings, run.image_shape)
    gradient_of = None if args.classifier is None else classifier_of(args, run.image_shape)
    state = load_state(run, parts, best=args.checkpoint == "best")
    generate = make_generate_fn(
        parts, settings, run.image_shape, edit=edit, gradient_of=gradient_of
    )
    steps = len(edit.levels(make_sampling_levels(settings, parts.schedule)).t) - 1
    how = f"{settings.sampler} in {steps} steps"
    params, what = select_params(run, state, args.weights, args.posthoc_ema, args.posthoc_step)
    print(f"{args.num} images by {how}, {what}")
    params = jax.tree.map(lambda leaf: leaf.astype(args.dtype), params)
    batches = generate_images(
        generate,
        replicate_params(params, min(args.batch_size, args.num)),
        args.num,
        seed=args.seed,
        batch_size=args.batch_size,
        num_labels=parts.num_labels,
        label=args.label,
        edit=edit,
    )
    return collect(batches, args.num)


def edit_of(
    args: SampleArgs, parts: Parts, settings: SampleConfig, image_shape: tuple[int, int, int]
) -> Edit:
    """What is done with the images that `args` gives. Raises UserError for what makes no sense."""
    edit = make_edit(
        args,
        image_shape,
        num=args.num,
        timesteps=np.asarray(make_sampling_levels(settings, parts.schedule).t),
        num_timesteps=parts.schedule.num_timesteps,
        self_condition=parts.self_condition,
    )
    if args.interpolate is not None and parts.num_labels is not None and args.label is None:
        raise UserError("--interpolate needs --label N for a network that was trained with labels")
    sampler = make_sampler(settings, parts.diffusion, parts.schedule, num_steps=1)
    remembers = jax.tree.leaves(sampler.init(jnp.zeros((1, *image_shape))).memory)
    if remembers and repaint_settings(args) is not None:
        raise UserError(
            f"--repaint-jump goes back up, which --sampler {settings.sampler} cannot: it builds on "
            "the steps before (ddpm and ddim do not)"
        )
    return edit


def classifier_of(args: SampleArgs, image_shape: tuple[int, int, int]) -> GradientOf:
    """labels -> the gradient of the user's classifier, scaled. Raises UserError if it is none."""
    assert args.classifier is not None
    log_prob = load_classifier(args.classifier)
    require_classifier(log_prob, args.classifier, image_shape, args.dtype)
    scale = 1.0 if args.guidance is None else args.guidance
    return lambda labels: classifier_gradient(log_prob, labels, scale)


def require_label(label: int | None, num_labels: int | None) -> None:
    """Raise UserError for a label that the network does not have."""
    if label is None:
        return
    if num_labels is None:
        raise UserError(f"--label {label}: this run was trained without labels")
    if not 0 <= label < num_labels:
        raise UserError(f"--label {label} must be between 0 and {num_labels - 1}")


def load_state(run: runs.Run, parts: Parts, *, best: bool = False) -> TrainState:
    """The newest whole checkpoint of `run`, or that of lowest loss, on one device."""
    if not run.checkpoints.is_dir():
        raise UserError(f"{run.folder} has no checkpoint yet: train it first")
    like = shapes_to_load(jax.eval_shape(parts.init_state, jax.random.key(0)))
    with open_checkpoints(run.checkpoints) as checkpoints:
        step = find_best_step(checkpoints) if best else None
        if best and step is None:
            raise UserError(f"{run.folder} was trained without --train.keep-best: there is no best")
        return restore(checkpoints, like, step=step)


def check_output(out: Path) -> None:
    """Raise UserError unless `out` names a PNG, GIF or NPZ file."""
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {out} must end in .png (a grid), .gif or .npz")


def write_samples(out: Path, samples: Samples, columns: int | None = None) -> None:
    """Write `samples` as a grid (PNG), an animated grid (GIF) or an array (NPZ), by suffix.

    A grid has `columns` columns, by default as many as rows. Of several processes one writes.
    """
    if not is_main_process():
        return
    match out.suffix.lower():
        case ".png":
            save_png(out, make_image_grid(samples.images, columns=columns))
        case ".gif":
            save_gif(out, [make_image_grid(frame, columns=columns) for frame in samples.frames])
        case ".npz":
            write_atomically(out, lambda temporary: _save_npz(temporary, samples.images))


def _save_npz(path: Path, images: Pixels) -> None:
    with path.open("wb") as file:  # given a name, NumPy would append .npz to it
        np.savez_compressed(file, images)
