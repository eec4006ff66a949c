"""The configuration of a run: frozen, nested dataclasses of plain values."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from jax_ddpm.data.sources import SourceName
from jax_ddpm.diffusion import PredictionType
from jax_ddpm.errors import UserError
from jax_ddpm.losses import LossType, Objective, Weighting
from jax_ddpm.models import ModelConfig, UNetConfig
from jax_ddpm.schedules import (
    ClippedLogVariance,
    ScheduleName,
    Spacing,
    named_schedule,
    space_timesteps,
    timestep_grid,
)
from jax_ddpm.training.optim import OptimizerName
from jax_ddpm.training.state import EmaForm

SamplerName = Literal["ddpm", "ddim"]


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from."""

    name: SourceName = "embedded"
    """embedded: images that ship with the package. fashion_mnist: a folder of IDX files. folder: a
    folder of pictures, with subfolders as classes."""
    path: Path | None = None
    """The folder that holds the data."""
    image_size: int | None = None
    """Side to which pictures are cut and resized; None: as they are."""
    channels: Literal[1, 3] | None = None
    """1: grey, 3: colour; None: as they are (a folder: colour)."""
    random_flip: bool = True
    """Mirror each image left to right with probability 1/2."""


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process and the training objective."""

    schedule: ScheduleName = "linear"
    num_timesteps: int = 1000
    """T, the length of the chain."""
    prediction_type: PredictionType = "eps"
    """What the network predicts: the noise, the clean image, or v."""
    loss_type: LossType = "l2"
    weighting: Weighting = "constant"
    """Weight of each timestep: constant; snr: as if the error were that of the noise; min_snr: the
    same with a ceiling on the signal-to-noise ratio."""
    min_snr_gamma: float = 5.0
    """The ceiling of min_snr."""
    objective: Objective = "simple"
    """simple: the weighted error; vlb: the variational bound; hybrid: the error, and the bound for
    a learned variance."""
    vb_weight: float | None = None
    """Weight of the bound; default: T for vlb, T/1000 for hybrid."""
    variance: Literal["fixed", "learned_range", "learned"] = "fixed"
    """Variance of the reverse process: fixed (see sample.variance); or the network's second half,
    read as a place between the two fixed ones or as a logarithm."""
    clipped_log_variance: ClippedLogVariance = "second_entry"
    """Logarithm of the posterior variance at t = 0: that of t = 1, or of 1e-20 (floor)."""
    rescale_timesteps: bool = False
    """Tell the network t * 1000 / T instead of t."""
    offset_noise: float = 0.0
    """Strength of an offset per channel that is added to the noise in training."""


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, and how often the run reports and saves."""

    num_steps: int = 800_000
    batch_size: int = 128
    """Images per step, over all devices."""
    accumulate: int = 1
    """Parts into which each device's batch is cut, one after the other, to save memory."""
    learning_rate: float = 2e-4
    """The highest learning rate."""
    warmup_steps: int = 5000
    """Steps over which the learning rate grows linearly from 0."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up; linear and cosine end at 0."""
    optimizer: OptimizerName = "adam"
    """adam_tensorflow: eps outside the bias correction.
    muon: orthogonalised momentum for kernels; learns most per step, at a fifth more time."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay (adamw only)."""
    max_grad_norm: float | None = 1.0
    """Clip the gradient to this global norm."""
    clip_eps: float = 0.0
    """Added to the norm where the gradient is clipped: 1e-6 in PyTorch."""
    ema_decay: float = 0.9999
    """Decay of the moving average of the parameters."""
    ema_form: EmaForm = "constant"
    """How the decay grows to ema_decay. ramp: (1 + step) / (10 + step), TensorFlow's. power: 1 - (1
    + n)^-ema_power for n steps after ema_update_after, ema_pytorch's and diffusers'. delayed_ramp:
    (1 + n) / (10 + n)."""
    ema_every: int = 1
    """Steps between two updates of the average."""
    ema_update_after: int = 0
    """Steps for which the average is a copy (power, delayed_ramp)."""
    ema_power: float = 2 / 3
    """The exponent of power."""
    log_every: int = 100
    """Steps between two lines of metrics.jsonl; an interrupted run stops at such a step."""
    sample_every: int = 10_000
    """Steps between two sample grids."""
    checkpoint_every: int = 10_000
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""
    keep_best: bool = False
    """Keep also the checkpoint of lowest mean loss since the one before, and draw the final images
    from it."""
    parallel: Literal["auto", "jit", "pmap"] = "auto"
    """auto: pmap over all local devices if there are several, else jit."""


@dataclass(frozen=True)
class SampleConfig:
    """How images are drawn."""

    sampler: SamplerName = "ddpm"
    num_steps: int = 1000
    """Network evaluations per image, at most T."""
    spacing: Spacing = "leading"
    """Which timesteps are visited if there are fewer than T."""
    respacing: str | None = None
    """Timesteps visited, as OpenAI's programs name them: "250", "10,15,20" (counts in sections of
    equal length) or "ddim50"; in place of num_steps and spacing."""
    variance: Literal["fixed_small", "fixed_large"] = "fixed_large"
    """Variance of the ancestral sampler: beta (fixed_large) or beta-tilde (fixed_small)."""
    eta: float = 0.0
    """Noise of the DDIM sampler: 0 is deterministic, 1 is ancestral sampling."""
    clip_x_0: bool = True
    """Clip each predicted clean image to [-1, 1]."""
    frames: int = 25
    """Frames of the GIF."""
    stretch: bool = False
    """Stretch the contrast of each image to the full range, where images are not clipped."""


@dataclass(frozen=True)
class Config:
    """Everything that determines a run."""

    preset: str = "fashion-cpu"
    """The settings that all other flags change."""
    run: Path | None = None
    """Folder of the run; the same command again continues it. Default: runs/PRESET."""
    seed: int = 0
    """Seed of the initial parameters, the order of the data, and all noise."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=UNetConfig)
    """The network: the preset names the architecture, the flags its settings."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.run or Path("runs") / self.preset


def validate(config: Config) -> None:
    """Raise UserError, in one sentence, for the first value that cannot work."""
    validate_seed(config.seed)
    try:
        config.model.check()
    except ValueError as error:
        raise UserError(str(error)) from error
    _validate_train(config.train)
    try:
        named_schedule(config.diffusion.schedule, config.diffusion.num_timesteps)
    except ValueError as error:
        raise UserError(
            f"--diffusion.num-timesteps {config.diffusion.num_timesteps} with "
            f"--diffusion.schedule {config.diffusion.schedule}: {error}"
        ) from error
    _validate_loss(config.diffusion)
    rows = config.model.num_timesteps
    enough = rows is None or config.diffusion.num_timesteps <= rows
    _require(enough, "--diffusion.num-timesteps", config.diffusion.num_timesteps,
             f"at most {rows}, the timesteps that the network knows")  # fmt: skip
    validate_sample(config.sample, config.diffusion.num_timesteps)


def _validate_loss(diffusion: DiffusionConfig) -> None:
    learned, objective = diffusion.variance != "fixed", diffusion.objective
    fits = objective == "vlb" or learned == (objective == "hybrid")
    expected = f"hybrid or vlb with --diffusion.variance {diffusion.variance}"
    if not learned:
        expected = "simple or vlb with a fixed variance (hybrid needs a learned one)"
    _require(fits, "--diffusion.objective", objective, expected)
    gamma, offset = diffusion.min_snr_gamma, diffusion.offset_noise
    _require(gamma > 0, "--diffusion.min-snr-gamma", gamma, "positive")
    _require(offset >= 0, "--diffusion.offset-noise", offset, "0 or more")
    weight = diffusion.vb_weight
    _require(weight is None or weight > 0, "--diffusion.vb-weight", weight, "positive")


def validate_seed(seed: int) -> None:
    """Raise UserError unless a key can be made of all of `seed`, which takes 32 bits."""
    _require(0 <= seed < 2**32, "--seed", seed, "between 0 and 4294967295")


def validate_sample(sample: SampleConfig, num_timesteps: int) -> None:
    """Raise UserError if a chain of `num_timesteps` cannot be sampled so."""
    try:
        sampling_timesteps(sample, num_timesteps)
    except ValueError as error:
        raise UserError(str(error)) from error
    _require(sample.frames >= 2, "the number of frames", sample.frames, "at least 2")
    _require(0 <= sample.eta <= 1, "eta", sample.eta, "between 0 and 1")


def sampling_timesteps(sample: SampleConfig, num_timesteps: int) -> Int[np.ndarray, " S+1"]:
    """The timesteps that are visited, descending, ending in -1. Raises ValueError for none."""
    if sample.respacing is not None:
        return space_timesteps(num_timesteps, sample.respacing)
    return timestep_grid(num_timesteps, sample.num_steps, sample.spacing)


def _validate_train(train: TrainConfig) -> None:
    for name in (
        "num_steps",
        "batch_size",
        "accumulate",
        "ema_every",
        "log_every",
        "sample_every",
        "checkpoint_every",
        "keep_checkpoints",
    ):
        value = getattr(train, name)
        _require(value >= 1, _flag(name), value, "at least 1")
    for name in ("checkpoint_every", "sample_every"):
        value = getattr(train, name)
        multiple = value % train.log_every == 0
        _require(multiple, _flag(name), value, f"a multiple of --train.log-every {train.log_every}")
    parts = train.batch_size % train.accumulate == 0
    _require(parts, "--train.accumulate", train.accumulate, f"a divisor of {train.batch_size}")
    _require(0 <= train.warmup_steps <= train.num_steps, "--train.warmup-steps", train.warmup_steps,
             f"between 0 and --train.num-steps {train.num_steps}")  # fmt: skip
    _require(train.learning_rate > 0, "--train.learning-rate", train.learning_rate, "positive")
    _require(0 <= train.ema_decay < 1, "--train.ema-decay", train.ema_decay, "in [0, 1)")
    _require(train.ema_power > 0, "--train.ema-power", train.ema_power, "positive")
    after = train.ema_update_after
    _require(after >= 0, "--train.ema-update-after", after, "0 or more")
    _require(train.clip_eps >= 0, "--train.clip-eps", train.clip_eps, "0 or more")
    _require(all(0 <= b < 1 for b in train.betas), "--train.betas", train.betas, "in [0, 1)")
    _require(train.weight_decay >= 0, "--train.weight-decay", train.weight_decay, "0 or more")
    norm = train.max_grad_norm
    _require(norm is None or norm > 0, "--train.max-grad-norm", norm, "positive, or None")
    decays = train.optimizer == "adamw" or train.weight_decay == 0
    _require(
        decays,
        "--train.weight-decay",
        train.weight_decay,
        "0 with --train.optimizer adam (use adamw)",
    )


def _flag(name: str) -> str:
    return f"--train.{name.replace('_', '-')}"


def _require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise UserError(f"{name} is {value}, but it must be {expected}")
