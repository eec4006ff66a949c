"""Training settings and their checks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jax_ddpm.config.plain_values import make_check
from jax_ddpm.models.remat import Remat
from jax_ddpm.optim.averages import EmaForm
from jax_ddpm.optim.optimizers import OptimizerName
from jax_ddpm.optim.posthoc_ema import MAX_SIGMA_REL
from jax_ddpm.quality.measures import NUM_SPLITS
from jax_ddpm.training.feed import DataOnDevice

Criterion = Literal["loss", "validation", "distance"]
LoggerName = Literal["tensorboard", "wandb", "mlflow", "none"]
NO_LOGGER: LoggerName = "none"
AT_LEAST_ONE = (
    "num_steps",
    "num_epochs",
    "max_steps",
    "batch_size",
    "accumulate",
    "steps_per_call",
    "max_bad_steps",
    "ema_every",
    "ema_half_life",
    "snapshot_every",
    "log_every",
    "validate_every",
    "validate_images",
    "evaluate_every",
    "sample_every",
    "sample_images",
    "sample_batch_size",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "fsdp",
)


@dataclass(frozen=True)
class TrainConfig:
    """The optimiser, the averages, and how often the run reports and saves."""

    num_steps: int = 800_000
    """Training steps."""
    num_epochs: int | None = None
    """How often each training image is seen. Replaces num_steps; a grid and a checkpoint are made
    after each epoch, and log_every is fitted to it. None: num_steps counts."""
    init_from: Path | None = None
    """Begin with the parameters of another run (its folder) or of a weight file, in any form that
    `jax-ddpm convert` reads. What fits by name and shape is taken; the rest is drawn at random, and
    named. None: draw all of them."""
    init_weights: Literal["average", "raw"] = "average"
    """Which parameters init_from takes: averaged ones, if there are any, or the raw ones."""
    max_steps: int | None = None
    """Stop and save after this many steps of this call, to train in slices; None: no limit."""
    batch_size: int = 128
    """Images per step, over all devices."""
    accumulate: int = 1
    """Cut each device's batch into this many parts and process them one after the other, to save
    memory."""
    steps_per_call: int = 1
    """Steps in one call of the compiled program; more than one saves time if steps are short."""
    data_on_device: DataOnDevice = "auto"
    """Whether the images stay on the devices. always: every device holds all of them and picks a
    batch at each step. never: each batch is sent. auto: always if the images are in memory and take
    at most 1 GiB, else never."""
    remat: Remat = "none"
    """Recompute features in the backward pass instead of storing them, which is slower but saves
    memory. nothing_saveable: store only the inputs of each block. dots_saveable: also store matrix
    products. dots_and_convs_saveable: also store the outputs of convolutions."""
    max_bad_steps: int = 10
    """Steps whose loss or gradient is not finite are skipped. Training stops after this many in a
    row, which is checked every log_every steps."""
    learning_rate: float = 2e-4
    """Peak learning rate."""
    warmup_steps: int = 5000
    """Steps over which the learning rate grows linearly from 0."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after the warm-up; linear and cosine end at 0."""
    optimizer: OptimizerName = "adam"
    """adam_tensorflow: Adam with eps outside the bias correction. adamw: Adam with decoupled weight
    decay. muon: orthogonalised momentum for kernels; it learns most per step, but a step takes a
    fifth longer."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates for the first and second moments."""
    weight_decay: float = 0.0
    """Decoupled weight decay (adamw only)."""
    max_grad_norm: float | None = 1.0
    """Clip the gradient to this global norm; None: no clipping."""
    clip_eps: float = 0.0
    """Added to the gradient norm when clipping; PyTorch adds 1e-6."""
    ema_decay: float = 0.9999
    """Decay of the moving average of the parameters; 0: no average."""
    ema_form: EmaForm = "constant"
    """How the decay grows to ema_decay. constant: it does not grow. ramp: (1 + step) / (10 + step),
    as in TensorFlow. power: 1 - (1 + n / ema_inv_gamma)^-ema_power, n steps after ema_update_after,
    as in ema_pytorch, diffusers and k-diffusion. delayed_ramp: (1 + n) / (10 + n). half_life:
    computed from ema_half_life, as in EDM."""
    ema_every: int = 1
    """Steps between two updates of the average."""
    ema_update_after: int = 0
    """Steps for which the average is a copy of the parameters (power, delayed_ramp)."""
    ema_power: float = 2 / 3
    """Exponent of the decay's growth (power)."""
    ema_inv_gamma: float = 1.0
    """Number of steps that stretches the decay's growth (power)."""
    ema_half_life: int = 500_000
    """Number of images after which a step's weight in the average is halved (half_life)."""
    ema_rampup: float | None = 0.05
    """Upper limit of the half-life as a fraction of the images seen so far (half_life); None: no
    limit."""
    ema_decays: tuple[float, ...] = ()
    """Decays of further averages, which grow like ema_decay; use them with `jax-ddpm sample
    --weights DECAY`."""
    posthoc_ema: tuple[float, ...] = ()
    """Relative widths of power-function averages, such as 0.05 0.1. Snapshots of these averages are
    kept; `jax-ddpm sample --posthoc-ema WIDTH` makes an average of any width from them."""
    snapshot_every: int = 10_000
    """Steps between two snapshots for posthoc_ema; the last step always makes one."""
    log_every: int = 100
    """Steps between two lines of metrics.jsonl."""
    logger: tuple[LoggerName, ...] | None = None
    """Programs that show curves, samples and settings, one or several: tensorboard, wandb (Weights
    & Biases), mlflow, or none. Each must be installed. None: TensorBoard if it is installed."""
    validate_every: int | None = None
    """Steps between two validation losses, for data.holdout or data.validation; None: one with each
    checkpoint."""
    validate_images: int = 1000
    """At most this many images give a validation loss. Each has the same noise and timestep every
    time, and the timesteps are spread evenly."""
    evaluate_every: int | None = None
    """Steps between two evaluations of images drawn with the averaged weights, as `jax-ddpm
    evaluate` measures them: frechet, kernel and score; None: no evaluation."""
    evaluate_images: int = 1000
    """Number of images drawn for an evaluation. A distance depends on it."""
    evaluate_features: str | None = None
    """Features to compare images in. fashion: the classifier of Fashion-MNIST that ships, for grey
    images of 28x28. inception: those of FID. A file: Inception with these weights. None: fashion if
    it fits, or inception."""
    sample_every: int = 10_000
    """Steps between two image grids of samples."""
    sample_images: int = 64
    """Images in each of these grids."""
    sample_at_start: bool = False
    """Also draw a grid before the first step, with the untrained network."""
    sample_batch_size: int = 64
    """How many of them are drawn at a time. Fewer take less memory. If the memory is too small for
    that many, half as many are tried, and so on."""
    checkpoint_every: int = 10_000
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Number of the newest checkpoints to keep."""
    keep_every: int | None = None
    """Also keep the checkpoint at every multiple of this many steps; None: keep no others."""
    keep_best: bool = False
    """Also keep the best checkpoint (see best_by), and draw the final images from it."""
    best_by: Criterion | None = None
    """The best checkpoint is the one with the lowest value of this. loss: the mean loss since the
    checkpoint before. validation: the validation loss (see data.holdout). distance: the Frechet
    distance (see evaluate_every). None: validation if there is a validation loss, or loss."""
    parallel: Literal["auto", "jit", "pmap", "mesh"] = "auto"
    """jit: one device. pmap: data parallel on all devices. mesh: one sharded program, which can
    shard the parameters too (see fsdp). auto: pmap if there are several devices, else jit."""
    fsdp: int = 1
    """With parallel mesh, the number of devices that parameters, averages and moments are sharded
    over; 1: every device holds all of them. Must divide the number of devices."""


def validate_train(train: TrainConfig) -> None:
    """Raise UserError for the first value that cannot work."""
    check = make_check(train, "--train.")
    for name in AT_LEAST_ONE:
        value = getattr(train, name)
        check(name, value is None or value >= 1, "at least 1")
    sharded = train.fsdp == 1 or train.parallel == "mesh"
    only_mesh = f"1 with --train.parallel {train.parallel}: only mesh shards the parameters"
    check("fsdp", sharded, only_mesh)
    parts = train.batch_size % train.accumulate == 0
    check("accumulate", parts, f"a divisor of --train.batch-size {train.batch_size}")
    names = train.logger or ()
    alone = NO_LOGGER not in names or len(names) == 1
    check("logger", alone and len(set(names)) == len(names), "different programs, or none alone")
    _validate_intervals(train)
    _validate_evaluation(train)
    _validate_optimizer(train)
    _validate_averages(train)
    _validate_snapshots(train)


def _validate_intervals(train: TrainConfig) -> None:
    check = make_check(train, "--train.")
    log, save, calls = train.log_every, train.checkpoint_every, train.steps_per_call
    check("log_every", log % calls == 0, f"a multiple of --train.steps-per-call {calls}")
    for name in ("checkpoint_every", "sample_every", "validate_every", "evaluate_every"):
        fits = (getattr(train, name) or log) % log == 0
        check(name, fits, f"a multiple of --train.log-every {log}")
    kept = train.keep_every is None or train.keep_every % save == 0
    check("keep_every", kept, f"a multiple of --train.checkpoint-every {save}")


def _validate_evaluation(train: TrainConfig) -> None:
    check, least = make_check(train, "--train."), 2 * NUM_SPLITS
    check("evaluate_images", train.evaluate_images >= least, f"at least {least}")
    wanted = train.evaluate_every is not None
    without = "left out without --train.evaluate-every"
    check("evaluate_features", wanted or train.evaluate_features is None, without)
    check("best_by", wanted or train.best_by != "distance", without)
    kept = train.keep_best or train.best_by is None
    check("best_by", kept, "left out without --train.keep-best")


def _validate_optimizer(train: TrainConfig) -> None:
    check, num_steps = make_check(train, "--train."), train.num_steps
    fits = 0 <= train.warmup_steps <= num_steps
    check("warmup_steps", fits, f"between 0 and --train.num-steps {num_steps}")
    check("learning_rate", train.learning_rate > 0, "positive")
    check("betas", all(0 <= beta < 1 for beta in train.betas), "in [0, 1)")
    norm = train.max_grad_norm
    check("max_grad_norm", norm is None or norm > 0, "positive, or None")
    check("clip_eps", train.clip_eps >= 0, "0 or more")
    check("weight_decay", train.weight_decay >= 0, "0 or more")
    decays = train.optimizer == "adamw" or train.weight_decay == 0
    check("weight_decay", decays, f"0 with --train.optimizer {train.optimizer}: only adamw has it")


def _validate_averages(train: TrainConfig) -> None:
    check = make_check(train, "--train.")
    check("ema_decay", 0 <= train.ema_decay < 1, "in [0, 1)")
    check("ema_power", train.ema_power > 0, "positive")
    check("ema_inv_gamma", train.ema_inv_gamma > 0, "positive")
    check("ema_update_after", train.ema_update_after >= 0, "0 or more")
    rampup = train.ema_rampup
    check("ema_rampup", rampup is None or rampup > 0, "positive, or None")
    by_half_life, decays = train.ema_form == "half_life", train.ema_decays
    check(
        "ema_every", not by_half_life or train.ema_every == 1, "1 with --train.ema-form half_life"
    )
    without = "empty with --train.ema-form half_life, which has no decay"
    check("ema_decays", not (by_half_life and decays), without)
    different = len({train.ema_decay, *decays}) == 1 + len(decays)
    possible = all(0 <= decay < 1 for decay in decays)
    check(
        "ema_decays",
        different and possible,
        f"different decays in [0, 1), other than --train.ema-decay {train.ema_decay}",
    )


def _validate_snapshots(train: TrainConfig) -> None:
    check, widths = make_check(train, "--train."), train.posthoc_ema
    if not widths:
        return
    possible = all(0 < width < MAX_SIGMA_REL for width in widths)
    several = len(set(widths)) == len(widths) >= 2
    check(
        "posthoc_ema",
        possible and several,
        "two or more different relative widths between 0 and 0.2887",
    )
    fits = train.snapshot_every <= train.num_steps and train.snapshot_every % train.log_every == 0
    check(
        "snapshot_every",
        fits,
        f"a multiple of --train.log-every {train.log_every}, and at most {train.num_steps} steps",
    )
