"""The configuration of a run: frozen, nested dataclasses of plain values."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from jax_ddpm.config.aliases import ALIASES
from jax_ddpm.config.plain_values import make_check, require_plain
from jax_ddpm.config.sample import SampleConfig as SampleConfig
from jax_ddpm.config.sample import validate_sample
from jax_ddpm.config.train import Criterion, validate_train
from jax_ddpm.config.train import TrainConfig as TrainConfig
from jax_ddpm.data.pictures import Crop, Resize
from jax_ddpm.data.sources import SourceName
from jax_ddpm.errors import UserError, join_or, require
from jax_ddpm.models import ModelConfig, UNetConfig
from jax_ddpm.process.objectives import Objective
from jax_ddpm.process.pixel_losses import LossType
from jax_ddpm.process.predictions import PredictionType
from jax_ddpm.process.schedules import (
    ENDS_IN_NOISE,
    Betas,
    ClippedLogVariance,
    ScheduleName,
    list_schedules_with,
    make_schedule,
    named_betas,
    rescale_zero_terminal_snr,
)
from jax_ddpm.process.timesteps import TimestepSampling
from jax_ddpm.process.weighting import Weighting

MAX_SIDE, MAX_TIMESTEPS, MAX_WHITE = 65_536, 1_000_000, 2**31 - 1


@dataclass(frozen=True)
class SourceConfig:
    """Where the images come from."""

    name: SourceName = "embedded"
    """embedded: images that ship with the package. idx: a folder of IDX files. fashion_mnist: the
    same, by default from the folder of Debian's package. arrays: an .npz or .npy file. folder: a
    folder of pictures, with one subfolder per class. parquet: Parquet files, as Hugging Face stores
    images. cifar10: an archive from CIFAR-10's home page. Any other name: a data set prepared by
    TensorFlow Datasets, such as celeb_a or lsun/bedroom."""
    path: Path | None = None
    """The folder or file that holds the data."""
    image_size: int | None = None
    """Side to which pictures are cropped and resized; None: keep their size."""
    channels: Literal[1, 3] | None = None
    """1: grey, 3: colour; None: as stored (colour for a folder)."""
    crop: Crop = "center"
    """Which square of a picture is kept for image_size. center: the middle one. random: a new one
    at every step. none: the whole picture, squeezed into a square."""
    resize: Resize = "bicubic"
    """Filter for resizing. box_bicubic: halve with a box filter first, as OpenAI does."""
    skip_bad: bool = False
    """Leave out unreadable files of a folder instead of refusing the folder."""
    follow_links: bool = False
    """Allow links in a folder that lead out of it, such as to pictures on another disk."""
    max_value: int | None = None
    """The value in the files that means white, such as 1 for masks of 0 and 1, or 4095 for 12 bits
    in a format of 16; None: the largest that the format can hold, 255 or 65535."""


@dataclass(frozen=True)
class DataConfig(SourceConfig):
    """Where the images come from, and how training augments them."""

    random_flip: bool = True
    """Mirror each image left to right with probability 1/2."""
    holdout: float = 0.0
    """Fraction of the training images, such as 0.05, that is never trained on and gives a
    validation loss. Which images these are does not depend on the seed."""
    validation: str | None = None
    """Images for a validation loss. test: the data's own test images. Anything else: the path of a
    folder or file like data.path."""


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process and the training objective."""

    schedule: ScheduleName = "linear"
    """The noise schedule."""
    beta_start: float | None = None
    """The first beta, for a schedule that is built from two betas; None: the schedule's own."""
    beta_end: float | None = None
    """The last beta, or the only one of const; None: the schedule's own."""
    cosine_s: float | None = None
    """The offset s of the cosine schedules, which keeps the first betas from being too small; None:
    0.008."""
    betas: tuple[float, ...] | None = None
    """The betas themselves, one for each of the T timesteps, for a schedule without a name. They
    replace the schedule."""
    num_timesteps: int = 1000
    """T, the length of the chain."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that the last timestep is pure noise; for x_0 or v prediction."""
    prediction_type: PredictionType = "eps"
    """What the network predicts: the noise (eps), the clean image (x_0) or v."""
    loss_type: LossType = "l2"
    """Error of the prediction: squared, absolute or Huber."""
    weighting: Weighting = "constant"
    """Weight of each timestep. constant: 1. snr: the weight that turns the error into an error of
    eps. min_snr: snr, but with the signal-to-noise ratio capped; soft_min_snr: with a smooth cap.
    truncated_snr: with the ratio at least 1. p2: less weight where there is little noise."""
    min_snr_gamma: float = 5.0
    """The cap of min_snr and soft_min_snr."""
    p2_gamma: float = 1.0
    """Strength of p2: the error of eps has weight 1 / (p2_k + snr)^p2_gamma."""
    p2_k: float = 1.0
    """Offset of p2."""
    timestep_sampling: TimestepSampling = "uniform"
    """How timesteps are drawn in training. uniform: all equally often. stratified, antithetic:
    uniform, and spread evenly over the batch. log_normal: log(sigma/signal) is normal. importance:
    in proportion to the size of their last ten losses, once every timestep has ten."""
    log_normal_mean: float = -1.2
    """Mean of log_normal."""
    log_normal_std: float = 1.2
    """Standard deviation of log_normal."""
    objective: Objective = "simple"
    """simple: the weighted error. vlb: the variational bound. hybrid: the error, plus the bound for
    a learned variance."""
    vb_weight: float | None = None
    """Weight of the bound; None: T for vlb, T/1000 for hybrid."""
    variance: Literal["fixed", "learned_range", "learned"] = "fixed"
    """Variance of the reverse process. fixed: see sample.variance. learned_range, learned: from the
    second half of the network's output, read as a position between the two fixed variances or as
    the logarithm of the variance."""
    clipped_log_variance: ClippedLogVariance = "second_entry"
    """What replaces the logarithm of the posterior variance at t = 0, where the variance is zero.
    second_entry: the value at t = 1. floor: the logarithm of 1e-20."""
    rescale_timesteps: bool = False
    """Give the network t * 1000 / T instead of t."""
    offset_noise: float = 0.0
    """Strength of a random offset that training adds to each channel of the noise."""
    label_dropout: float = 0.0
    """Probability that a label is replaced by the network's last label, which then means "no
    class"; for classifier-free guidance."""

    @property
    def schedule_numbers(self) -> dict[str, float | None]:
        """The numbers of the schedule; None: its own."""
        return {name: getattr(self, name) for name in ("beta_start", "beta_end", "cosine_s")}

    @property
    def has_own_betas(self) -> bool:
        """Whether the schedule's name alone does not say what the betas are."""
        return self.betas is not None or any(n is not None for n in self.schedule_numbers.values())

    def __post_init__(self) -> None:
        """Replace other common names of a prediction type or schedule by ours."""
        for name in ("prediction_type", "schedule"):
            value = getattr(self, name)
            object.__setattr__(self, name, ALIASES[name].get(value, value))

    @property
    def ends_in_noise(self) -> bool:
        """Whether the image is gone at the last timestep."""
        return self.zero_terminal_snr or self.schedule in ENDS_IN_NOISE


@dataclass(frozen=True)
class Config:
    """Everything that determines a run."""

    preset: str = "fashion-cpu"
    """The configuration to start from; all other flags change it."""
    run: Path | None = None
    """Folder of the run; run the same command again to resume it. None: runs/PRESET."""
    seed: int = 0
    """Seed of the initial parameters, the order of the data, and all noise."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=UNetConfig)
    """The network: the preset chooses the architecture, flags change its settings."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.run or Path("runs") / self.preset

    @property
    def whole_timesteps(self) -> bool:
        """Whether the network has a table of times and takes no levels between the timesteps."""
        return self.model.num_timesteps is not None


def validate(config: Config) -> None:
    """Raise UserError for the first value that cannot work."""
    require_plain(config)
    validate_seed(config.seed)
    try:
        config.model.check()
    except ValueError as error:
        raise UserError(str(error)) from error
    validate_train(config.train)
    _validate_data(config.data, config.train)
    _validate_schedule(config.diffusion)
    _validate_loss(config.diffusion)
    _validate_timesteps(config.diffusion)
    _validate_network(config)
    validate_sampling(config.sample, config, "--sample.")


def _validate_data(data: DataConfig, train: TrainConfig) -> None:
    check, size = make_check(data, "--data."), data.image_size
    check("image_size", size is None or 1 <= size <= MAX_SIDE, f"between 1 and {MAX_SIDE}")
    white = data.max_value
    check("max_value", white is None or 1 <= white <= MAX_WHITE, f"between 1 and {MAX_WHITE}")
    fixed = data.crop != "random" or train.data_on_device != "always"
    check(
        "crop",
        fixed,
        "center or none with --train.data-on-device always: images on the devices are cropped once",
    )
    check("holdout", 0 <= data.holdout < 1, "at least 0 and less than 1")
    both = data.holdout > 0 and data.validation is not None
    check("validation", not both, "left out with --data.holdout")
    _validate_validation(train, has_images=data.holdout > 0 or data.validation is not None)


def _validate_validation(train: TrainConfig, has_images: bool) -> None:
    check, every = make_check(train, "--train."), train.validate_every
    check(
        "validate_every",
        every is None or has_images,
        "left out without images for it: add --data.holdout 0.05 or --data.validation PATH",
    )
    _validate_best(train, has_images)


def _validate_best(train: TrainConfig, has_images: bool) -> None:
    """Check that every checkpoint has the value that the best one is found by."""
    check, save = make_check(train, "--train."), train.checkpoint_every
    without = "another without images for it: add --data.holdout 0.05 or --data.validation PATH"
    check("best_by", has_images or train.best_by != "validation", without)
    criterion = choose_criterion(train, has_images)
    name = {"validation": "validate_every", "distance": "evaluate_every"}.get(criterion)
    if name and train.keep_best:
        fits = save % (getattr(train, name) or save) == 0
        expected = f"a divisor of --train.checkpoint-every {save} with --train.keep-best"
        check(name, fits, expected)


def choose_criterion(train: TrainConfig, has_images: bool) -> Criterion:
    """What the best checkpoint has the lowest value of; `has_images`: for a validation loss."""
    return train.best_by or ("validation" if has_images else "loss")


def _validate_schedule(diffusion: DiffusionConfig) -> None:
    timesteps = diffusion.num_timesteps
    check = make_check(diffusion, "--diffusion.")
    check("num_timesteps", timesteps <= MAX_TIMESTEPS, f"at most {MAX_TIMESTEPS:,}")
    betas, zero = diffusion.betas, diffusion.zero_terminal_snr
    if betas is not None:
        expected = f"{len(betas)}, the number of --diffusion.betas"
        check("num_timesteps", timesteps == len(betas), expected)
        ends_in_noise = bool(betas) and betas[-1] == 1
        expected = "True because the last of --diffusion.betas is 1"
        check("zero_terminal_snr", zero or not ends_in_noise, expected)
    _validate_schedule_numbers(diffusion)
    try:
        make_schedule(make_betas(diffusion))
    except ValueError as error:
        chosen = f"schedule {diffusion.schedule}" if betas is None else f"betas ({len(betas)})"
        raise UserError(
            f"--diffusion.num-timesteps {timesteps} with --diffusion.{chosen}: {error}"
        ) from error


def _validate_schedule_numbers(diffusion: DiffusionConfig) -> None:
    check, name = make_check(diffusion, "--diffusion."), diffusion.schedule
    for number, value in diffusion.schedule_numbers.items():
        if value is not None:
            users = list_schedules_with(number)
            check(number, diffusion.betas is None, "left out with --diffusion.betas")
            expected = f"left out with --diffusion.schedule {name}: it is for {join_or(users)}"
            check(number, name in users, expected)
            if number == "cosine_s":
                check(number, value >= 0, "0 or more")
            else:
                check(number, 0 < value < 1, "above 0 and below 1")


def make_betas(diffusion: DiffusionConfig) -> Betas:
    """The betas of the chain, in float64. Raises ValueError if the schedule is not valid at T."""
    zero = diffusion.zero_terminal_snr
    if diffusion.betas is None:
        name, timesteps = diffusion.schedule, diffusion.num_timesteps
        numbers = diffusion.schedule_numbers
        return named_betas(name, timesteps, zero_terminal_snr=zero, **numbers)
    betas = np.asarray(diffusion.betas, np.float64)
    return rescale_zero_terminal_snr(betas) if zero else betas


def _validate_loss(diffusion: DiffusionConfig) -> None:
    check = make_check(diffusion, "--diffusion.")
    learned, objective = diffusion.variance != "fixed", diffusion.objective
    expected = "simple or vlb with a fixed variance (hybrid needs a learned one)"
    if learned:
        expected = f"hybrid or vlb with --diffusion.variance {diffusion.variance}"
    check("objective", objective == "vlb" or learned == (objective == "hybrid"), expected)
    check("min_snr_gamma", diffusion.min_snr_gamma > 0, "positive")
    check("offset_noise", diffusion.offset_noise >= 0, "0 or more")
    weight = diffusion.vb_weight
    check("vb_weight", weight is None or weight > 0, "positive")
    check("p2_gamma", diffusion.p2_gamma >= 0, "0 or more")
    check("p2_k", diffusion.p2_k > 0, "positive")


def _validate_timesteps(diffusion: DiffusionConfig) -> None:
    check = make_check(diffusion, "--diffusion.")
    check("log_normal_std", diffusion.log_normal_std > 0, "positive")
    ends_in_noise = diffusion.ends_in_noise
    noisy = "with --diffusion.zero-terminal-snr"
    if not diffusion.zero_terminal_snr:
        noisy = f"with --diffusion.schedule {diffusion.schedule}, which ends in pure noise"
    check(
        "prediction_type",
        not ends_in_noise or diffusion.prediction_type != "eps",
        f"x_0 or v {noisy}: in pure noise, x_0 does not follow from eps",
    )
    check(
        "timestep_sampling",
        not ends_in_noise or diffusion.timestep_sampling != "log_normal",
        f"another sampling {noisy}: log_normal never draws the last timestep",
    )


def _validate_network(config: Config) -> None:
    """Check that the network has enough timesteps and, for label dropout, a "no class" label."""
    check, model = make_check(config.diffusion, "--diffusion."), config.model
    dropout, labels = config.diffusion.label_dropout, model.num_labels or 0
    check("label_dropout", 0 <= dropout < 1, "in [0, 1)")
    check(
        "label_dropout",
        dropout == 0 or labels > 1,
        f"0 for a network with {labels} labels: label dropout needs one label more than the data "
        'has, for "no class" (see --model)',
    )
    rows = model.num_timesteps
    enough = rows is None or config.diffusion.num_timesteps <= rows
    check("num_timesteps", enough, f"at most {rows}, the length of the network's table of times")


def validate_seed(seed: int) -> None:
    """Raise UserError unless `seed` fits in the 32 bits of a key's seed."""
    require(0 <= seed < 2**32, "--seed", seed, "between 0 and 4294967295")


def validate_sampling(
    sample: SampleConfig, config: Config, prefix: Literal["--", "--sample."] = "--"
) -> None:
    """Raise UserError if a run of `config` cannot be sampled with the settings `sample`.

    `prefix` starts the flag of each setting.
    """
    require_plain(sample, prefix)
    validate_sample(
        sample,
        config.diffusion.num_timesteps,
        zero_terminal_snr=config.diffusion.ends_in_noise,
        whole_timesteps=config.whole_timesteps,
        prefix=prefix,
    )
    if sample.guidance is not None and config.diffusion.label_dropout == 0:
        raise UserError(
            f"{prefix}guidance {sample.guidance:g}: this run was trained without label dropout "
            "(--diffusion.label-dropout)"
        )
