"""How a run is trained: the settings, and which of them cannot work."""

from dataclasses import dataclass
from typing import Literal

from jax_ddpm.errors import require as _require
from jax_ddpm.models.remat import Remat
from jax_ddpm.optim.averages import EmaForm
from jax_ddpm.optim.optimizers import OptimizerName
from jax_ddpm.optim.posthoc_ema import MAX_SIGMA_REL
from jax_ddpm.training.feed import DataOnDevice


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, and how often the run reports and saves."""

    num_steps: int = 800_000
    max_steps: int | None = None
    """Stop and save after so many steps of this call, for a run in slices; None: go on to the end.
    """
    batch_size: int = 128
    """Images per step, over all devices."""
    accumulate: int = 1
    """Parts into which each device's batch is cut, one after the other, to save memory."""
    steps_per_call: int = 1
    """Steps that one call of the compiled program takes: more where a step is short."""
    data_on_device: DataOnDevice = "auto"
    """Where the images lie. always: all on every device, and each step picks its own there. never:
    each batch is sent. auto: as always, if they are in memory and at most 1 GiB."""
    remat: Remat = "none"
    """Compute features again in the backward pass instead of keeping them: slower, less memory.
    nothing_saveable: keep what goes into each block. dots_saveable: keep matrix products as well,
    dots_and_convs_saveable: convolutions too."""
    max_bad_steps: int = 10
    """Stop after so many steps in a row whose loss or gradient is not a finite number; such a step
    is skipped. Looked at every log_every steps."""
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
    """Steps between two lines of metrics.jsonl."""
    sample_every: int = 10_000
    """Steps between two sample grids."""
    checkpoint_every: int = 10_000
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""
    keep_every: int | None = None
    """Keep also the checkpoints of the multiples of this many steps, for ever; None: no others."""
    keep_best: bool = False
    """Keep also the checkpoint of lowest mean loss since the one before, and draw the final images
    from it."""
    parallel: Literal["auto", "jit", "pmap", "mesh"] = "auto"
    """jit: one device. pmap: data parallel on all devices. mesh: the same as one program on arrays
    that are split, which the parameters can be too. auto: pmap if there are several devices."""
    fsdp: int = 1
    """Devices over which parameters, averages and moments are split, with parallel mesh; 1: each
    device has them whole. It must divide the number of devices."""


def validate_train(train: TrainConfig) -> None:
    """Raise UserError, in one sentence, for the first value that cannot work."""
    for name in (
        "num_steps",
        "batch_size",
        "accumulate",
        "steps_per_call",
        "max_bad_steps",
        "ema_every",
        "log_every",
        "sample_every",
        "checkpoint_every",
        "keep_checkpoints",
        "ema_half_life",
        "snapshot_every",
        "fsdp",
    ):
        value = getattr(train, name)
        _require(value >= 1, _flag(name), value, "at least 1")
    split = train.fsdp == 1 or train.parallel == "mesh"
    _require(split, "--train.fsdp", train.fsdp, f"1 with --train.parallel {train.parallel}: only "
             "mesh splits the parameters")  # fmt: skip
    for name in ("checkpoint_every", "sample_every"):
        value = getattr(train, name)
        multiple = value % train.log_every == 0
        _require(multiple, _flag(name), value, f"a multiple of --train.log-every {train.log_every}")
    for name in ("max_steps", "keep_every"):
        value = getattr(train, name)
        _require(value is None or value >= 1, _flag(name), value, "at least 1, or None")
    steps = train.keep_every
    saved = steps is None or steps % train.checkpoint_every == 0
    _require(saved, "--train.keep-every", steps,
             f"a multiple of --train.checkpoint-every {train.checkpoint_every}")  # fmt: skip
    every, calls = train.log_every, train.steps_per_call
    _require(every % calls == 0, "--train.log-every", every,
             f"a multiple of --train.steps-per-call {calls}")  # fmt: skip
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
