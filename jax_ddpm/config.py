"""The configuration of a run: frozen, nested dataclasses of plain values."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jax_ddpm.data.sources import SourceName
from jax_ddpm.diffusion import PredictionType
from jax_ddpm.errors import UserError
from jax_ddpm.errors import require as _require
from jax_ddpm.losses import LossType, Objective, Weighting
from jax_ddpm.models import ModelConfig, UNetConfig
from jax_ddpm.posthoc_ema import MAX_SIGMA_REL
from jax_ddpm.sample_config import SampleConfig as SampleConfig
from jax_ddpm.sample_config import validate_sample
from jax_ddpm.schedules import (
    ClippedLogVariance,
    ScheduleName,
    named_schedule,
)
from jax_ddpm.timesteps import TimestepSampling
from jax_ddpm.training.optim import OptimizerName
from jax_ddpm.training.state import EmaForm


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
    zero_terminal_snr: bool = False
    """Rescale the schedule so that the last timestep is pure noise, for prediction of x_0 or v."""
    prediction_type: PredictionType = "eps"
    """What the network predicts: the noise, the clean image, or v."""
    loss_type: LossType = "l2"
    weighting: Weighting = "constant"
    """Weight of each timestep: constant; snr: as if the error were that of the noise; min_snr: the
    same with a ceiling on the signal-to-noise ratio, soft_min_snr: with a smooth one;
    truncated_snr: with a floor of 1 on it; p2: with less weight where there is little noise."""
    min_snr_gamma: float = 5.0
    """The ceiling of min_snr and soft_min_snr."""
    p2_gamma: float = 1.0
    """Strength of p2: the error of the noise has the weight 1 / (p2_k + snr)^p2_gamma."""
    p2_k: float = 1.0
    """Offset of p2."""
    timestep_sampling: TimestepSampling = "uniform"
    """Which timesteps are trained: uniform; stratified, antithetic: uniform, and spread evenly over
    the batch; log_normal: the logarithm of the noise relative to the signal is normal; importance:
    by the size of their last ten losses, once every timestep has ten."""
    log_normal_mean: float = -1.2
    """Mean of log_normal."""
    log_normal_std: float = 1.2
    """Standard deviation of log_normal."""
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
    label_dropout: float = 0.0
    """Probability that a label is replaced by the network's last one, which then means "no class";
    for classifier-free guidance."""


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
    + n / ema_inv_gamma)^-ema_power for n steps after ema_update_after, as ema_pytorch, diffusers
    and k-diffusion do. delayed_ramp: (1 + n) / (10 + n). half_life: EDM's, from ema_half_life."""
    ema_every: int = 1
    """Steps between two updates of the average."""
    ema_update_after: int = 0
    """Steps for which the average is a copy (power, delayed_ramp)."""
    ema_power: float = 2 / 3
    """The exponent of power."""
    ema_inv_gamma: float = 1.0
    """Steps by which the warm-up of power is stretched."""
    ema_half_life: int = 500_000
    """Images after which a step counts half (half_life)."""
    ema_rampup: float | None = 0.05
    """Ceiling of the half-life, as a part of the images seen so far (half_life); None: no ceiling.
    """
    ema_decays: tuple[float, ...] = ()
    """Decays of more averages beside that of ema_decay, with the same warm-up; drawn from with
    sample.py --weights DECAY."""
    posthoc_ema: tuple[float, ...] = ()
    """Relative widths of power-function averages, such as 0.05 0.1; from their snapshots sample.py
    --posthoc-ema makes the average of any other width."""
    snapshot_every: int = 10_000
    """Steps between two snapshots of the averages of posthoc_ema; there is always one at the end.
    """
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
        diffusion = config.diffusion
        named_schedule(
            diffusion.schedule,
            diffusion.num_timesteps,
            zero_terminal_snr=diffusion.zero_terminal_snr,
        )
    except ValueError as error:
        raise UserError(
            f"--diffusion.num-timesteps {config.diffusion.num_timesteps} with "
            f"--diffusion.schedule {config.diffusion.schedule}: {error}"
        ) from error
    _validate_loss(config.diffusion)
    _validate_timesteps(config.diffusion)
    _validate_label_dropout(config.diffusion.label_dropout, config.model.num_labels)
    rows = config.model.num_timesteps
    enough = rows is None or config.diffusion.num_timesteps <= rows
    _require(enough, "--diffusion.num-timesteps", config.diffusion.num_timesteps,
             f"at most {rows}, the timesteps that the network knows")  # fmt: skip
    validate_sampling(config.sample, config)


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
    _require(diffusion.p2_gamma >= 0, "--diffusion.p2-gamma", diffusion.p2_gamma, "0 or more")
    _require(diffusion.p2_k > 0, "--diffusion.p2-k", diffusion.p2_k, "positive")


def _validate_timesteps(diffusion: DiffusionConfig) -> None:
    std, sampling = diffusion.log_normal_std, diffusion.timestep_sampling
    _require(std > 0, "--diffusion.log-normal-std", std, "positive")
    if diffusion.zero_terminal_snr:
        kind = diffusion.prediction_type
        _require(kind != "eps", "--diffusion.prediction-type", kind, "x_0 or v with "
                 "--diffusion.zero-terminal-snr: where no signal is left, x_0 does not follow "
                 "from eps")  # fmt: skip
        _require(sampling != "log_normal", "--diffusion.timestep-sampling", sampling, "another "
                 "with --diffusion.zero-terminal-snr: this never draws the last t")  # fmt: skip


def _validate_label_dropout(dropout: float, num_labels: int | None) -> None:
    _require(0 <= dropout < 1, "--diffusion.label-dropout", dropout, "in [0, 1)")
    several = num_labels is not None and num_labels > 1
    _require(dropout == 0 or several, "--diffusion.label-dropout", dropout,
             f"0 for a network of {num_labels or 0} labels: it needs those of the data and one "
             "more for no class (see --model)")  # fmt: skip


def validate_seed(seed: int) -> None:
    """Raise UserError unless a key can be made of all of `seed`, which takes 32 bits."""
    _require(0 <= seed < 2**32, "--seed", seed, "between 0 and 4294967295")


def validate_sampling(sample: SampleConfig, config: Config) -> None:
    """Raise UserError if a run of `config` cannot be sampled as `sample` says."""
    validate_sample(
        sample,
        config.diffusion.num_timesteps,
        zero_terminal_snr=config.diffusion.zero_terminal_snr,
        whole_timesteps=config.model.num_timesteps is not None,
    )
    require_null_label(sample, config.diffusion)


def require_null_label(sample: SampleConfig, diffusion: DiffusionConfig) -> None:
    """Raise UserError for guidance of a network that does not know what no class is."""
    if sample.guidance is not None and diffusion.label_dropout == 0:
        raise UserError(
            f"guidance {sample.guidance:g}: this run was trained without label dropout "
            "(--diffusion.label-dropout)"
        )


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
        "ema_half_life",
        "snapshot_every",
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
    _validate_averages(train)
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


def _validate_averages(train: TrainConfig) -> None:
    _require(train.ema_inv_gamma > 0, "--train.ema-inv-gamma", train.ema_inv_gamma, "positive")
    rampup = train.ema_rampup
    _require(rampup is None or rampup > 0, "--train.ema-rampup", rampup, "positive, or None")
    half_life, decays = train.ema_form == "half_life", train.ema_decays
    _require(not half_life or train.ema_every == 1, "--train.ema-every", train.ema_every,
             "1 with --train.ema-form half_life")  # fmt: skip
    _require(not (half_life and decays), "--train.ema-decays", decays,
             "empty with --train.ema-form half_life, which has no decay")  # fmt: skip
    different = len({train.ema_decay, *decays}) == 1 + len(decays)
    possible = all(0 <= decay < 1 for decay in decays)
    _require(different and possible, "--train.ema-decays", decays,
             f"different decays in [0, 1), other than --train.ema-decay {train.ema_decay}"
             )  # fmt: skip
    widths = train.posthoc_ema
    if widths:
        possible = all(0 < width < MAX_SIGMA_REL for width in widths)
        several = len(set(widths)) == len(widths) >= 2
        _require(possible and several, "--train.posthoc-ema", widths,
                 "two or more different relative widths between 0 and 0.2887")  # fmt: skip
        every = train.snapshot_every
        fits = every <= train.num_steps and every % train.log_every == 0
        _require(fits, "--train.snapshot-every", every, f"a multiple of --train.log-every "
                 f"{train.log_every}, and at most {train.num_steps} steps")  # fmt: skip


def _flag(name: str) -> str:
    return f"--train.{name.replace('_', '-')}"
