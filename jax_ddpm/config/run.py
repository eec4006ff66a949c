"""The configuration of a run: frozen, nested dataclasses of plain values."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jax_ddpm.config.plain_values import require_plain
from jax_ddpm.config.sample import SampleConfig as SampleConfig
from jax_ddpm.config.sample import validate_sample
from jax_ddpm.config.train import TrainConfig as TrainConfig
from jax_ddpm.config.train import validate_train
from jax_ddpm.data.pictures import Crop, Resize
from jax_ddpm.data.sources import SourceName
from jax_ddpm.errors import UserError
from jax_ddpm.errors import require as _require
from jax_ddpm.models import ModelConfig, UNetConfig
from jax_ddpm.process.objectives import Objective
from jax_ddpm.process.pixel_losses import LossType
from jax_ddpm.process.predictions import PredictionType
from jax_ddpm.process.schedules import ClippedLogVariance, ScheduleName, named_schedule
from jax_ddpm.process.timesteps import TimestepSampling
from jax_ddpm.process.weighting import Weighting

MAX_SIDE, MAX_TIMESTEPS = 65_536, 1_000_000


@dataclass(frozen=True)
class SourceConfig:
    """Where the images come from."""

    name: SourceName = "embedded"
    """embedded: images that ship with the package. idx: a folder of IDX files; fashion_mnist: the
    same, by default Debian's. arrays: an .npz or .npy file. folder: a folder of pictures, with
    subfolders as classes. Any other: a data set prepared by TensorFlow Datasets, such as cifar10 or
    lsun/bedroom."""
    path: Path | None = None
    """The folder or file that holds the data."""
    image_size: int | None = None
    """Side to which pictures are cut and resized; None: as they are."""
    channels: Literal[1, 3] | None = None
    """1: grey, 3: colour; None: as they are (a folder: colour)."""
    crop: Crop = "center"
    """The square of a picture that image_size leaves: its centre; random: another one at every
    step; none: the whole picture, squeezed."""
    resize: Resize = "bicubic"
    """Filter that makes pictures of image_size. box_bicubic: halved with a box first, as OpenAI
    does."""
    skip_bad: bool = False
    """Leave out files of a folder that cannot be read, instead of refusing the folder."""


@dataclass(frozen=True)
class DataConfig(SourceConfig):
    """The images, and what training does to them."""

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
    require_plain(config)
    validate_seed(config.seed)
    try:
        config.model.check()
    except ValueError as error:
        raise UserError(str(error)) from error
    validate_train(config.train)
    _validate_data(config.data, config.train)
    timesteps = config.diffusion.num_timesteps
    possible = timesteps <= MAX_TIMESTEPS
    _require(possible, "--diffusion.num-timesteps", timesteps, f"at most {MAX_TIMESTEPS:,}")
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
    validate_sampling(config.sample, config, "--sample.")


def _validate_data(data: DataConfig, train: TrainConfig) -> None:
    size = data.image_size
    fits = size is None or 1 <= size <= MAX_SIDE
    _require(fits, "--data.image-size", size, f"between 1 and {MAX_SIDE}")
    moves = data.crop == "random" and train.data_on_device == "always"
    _require(not moves, "--data.crop", "random", "center or none with --train.data-on-device "
             "always: what lies on the devices is cut once")  # fmt: skip


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


def validate_sampling(
    sample: SampleConfig, config: Config, prefix: Literal["--", "--sample."] = "--"
) -> None:
    """Raise UserError if a run of `config` cannot be sampled as `sample` says.

    `prefix`: what the flags of these settings begin with.
    """
    validate_sample(
        sample,
        config.diffusion.num_timesteps,
        zero_terminal_snr=config.diffusion.zero_terminal_snr,
        whole_timesteps=config.model.num_timesteps is not None,
        prefix=prefix,
    )
    require_null_label(sample, config.diffusion, prefix)


def require_null_label(
    sample: SampleConfig, diffusion: DiffusionConfig, prefix: str = "--"
) -> None:
    """Raise UserError for guidance of a network that does not know what no class is."""
    if sample.guidance is not None and diffusion.label_dropout == 0:
        raise UserError(
            f"{prefix}guidance {sample.guidance:g}: this run was trained without label dropout "
            "(--diffusion.label-dropout)"
        )
