"""Time training steps and sampling of one network, in JAX and PyTorch by turns."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jax_ddpm.config.run import Config
from jax_ddpm.config.sample import SampleConfig
from jax_ddpm.devices.layout import Layout, get_device_name, make_state, replicate
from jax_ddpm.errors import UserError
from jax_ddpm.interop import Network
from jax_ddpm.jobs.bench import timing
from jax_ddpm.jobs.bench.networks import NETWORKS, NetworkName, Subject, make_config
from jax_ddpm.jobs.bench.peak import count_operations, measure_peak
from jax_ddpm.jobs.build import Parts, build
from jax_ddpm.jobs.generate import generate_images, make_generate_fn
from jax_ddpm.jobs.train_setup import compile_step
from jax_ddpm.models.architecture import ImageShape
from jax_ddpm.parity.speed import (
    Peer,
    Work,
    make_their_sampling,
    make_their_steps,
    require_peers,
)


class Ours(NamedTuple):
    """Our network, ready to be measured."""

    config: Config
    parts: Parts
    params: Any
    image_shape: ImageShape


@dataclass(frozen=True)
class StepArgs:
    """Training steps of a network: forward, backward, clipping, AdamW, moving average."""

    network: NetworkName = "diffusers"
    """Which network. PyTorch runs the code of its package if that is installed, and otherwise our
    twin of it. diffusers is that of google/ddpm-cifar10-32, with 35.7 million parameters."""
    batch_size: int | None = None
    """Images per step; None: a usual number for this network."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: compute_dtype in JAX, autocast in PyTorch. Parameters are float32 in both."""
    peers: tuple[Peer, ...] = ("eager", "channels_last", "compile")
    """How PyTorch runs the network, one contestant each. None: measure only JAX."""
    steps: int = 4
    """Steps per round."""
    rounds: int = 5
    """Number of times that each contestant is measured."""
    steps_per_call: int = 1
    """Steps that JAX scans in one program."""
    out: Path | None = None
    """JSON file to write the results to."""

    @property
    def subject(self) -> Subject:
        """The network to measure."""
        return NETWORKS[self.network]

    @property
    def images(self) -> int:
        """Images in a batch."""
        return self.batch_size or self.subject.batch_size


@dataclass(frozen=True)
class SamplingArgs(StepArgs):
    """DDIM sampling with a network; --steps is the number of network evaluations."""

    steps: int = 50
    """Sampling steps, of one network evaluation each."""


def bench_step(args: StepArgs) -> list[dict[str, Any]]:
    """Measure training steps, print a table, and return its rows."""
    if args.steps % args.steps_per_call:
        raise UserError(
            f"--steps {args.steps} is not a multiple of --steps-per-call {args.steps_per_call}"
        )
    return bench(args, make_our_steps, make_their_steps, args.images * args.steps)


def bench_sampling(args: SamplingArgs) -> list[dict[str, Any]]:
    """Measure sampling, print a table, and return its rows."""
    return bench(args, make_our_sampling, make_their_sampling, args.images)


def bench(
    args: StepArgs,
    make_ours: Callable[[StepArgs, Ours], Callable[[], object]],
    make_theirs: Callable[[Peer, Work], tuple[Callable[[], object], str]],
    images: int,
) -> list[dict[str, Any]]:
    """Measure our program and those of all peers, which compute `images` images in a call."""
    subject = args.subject
    require_peers(args.peers, subject.source)
    ours = build_ours(args, subject)
    network = Network(subject.source, subject.model, ours.params, ours.parts.network.apply_fn)
    shape, labels = subject.image_shape, ours.parts.num_labels
    work = Work(network, shape, args.images, args.dtype, args.steps, labels)
    # Theirs first: our training step donates the parameters.
    theirs = {peer: make_theirs(peer, work) for peer in args.peers}
    contestants: dict[str, Callable[[], object]] = {"jax_ddpm": make_ours(args, ours)}
    contestants |= {peer: call for peer, (call, _) in theirs.items()}
    times = timing.time_in_turn(contestants, rounds=args.rounds)
    rows = timing.make_rows(times, images, "images", next(iter(theirs), None))
    training = not isinstance(args, SamplingArgs)
    count = args.steps * count_operations(ours.parts, args.images, shape, training=training)
    rows = add_share(rows, count / images, measure_peak(args.dtype))
    return report(args, rows, next((against for _, against in theirs.values()), ""))


def build_ours(args: StepArgs, subject: Subject) -> Ours:
    """Build our network for `subject`, with random parameters."""
    config = make_config(subject, args.images, args.dtype, steps_per_call=args.steps_per_call)
    parts = build(config, subject.image_shape)
    return Ours(config, parts, parts.network.init(jax.random.key(0)), subject.image_shape)


def add_share(rows: list[dict[str, Any]], per_image: float, peak: float) -> list[dict[str, Any]]:
    """Add the share of the machine's peak, given the operations `per_image` and the peak."""
    return [row | {"of peak": row["images/s"] * per_image / peak} for row in rows]


def report(args: StepArgs, rows: list[dict[str, Any]], against: str) -> list[dict[str, Any]]:
    """Print, save and return the rows of one network."""
    device, size = get_device_name(), "x".join(map(str, args.subject.image_shape))
    what = f"{args.network}: {args.images} images of {size}, {args.dtype}, {device}"
    print(f"{what}, against {against}" if against else what)
    timing.print_rows(rows)
    about = {"network": args.network, "batch": args.images, "steps": args.steps}
    about |= {"dtype": args.dtype, "against": against, "device": device, "jax": jax.__version__}
    timing.save_rows(args.out, about, rows)
    return rows


def make_our_steps(args: StepArgs, ours: Ours) -> Callable[[], object]:
    """Make a function that takes `args.steps` training steps in JAX. It donates the parameters."""
    step, key = compile_step(ours.config, ours.parts), jax.random.key(0)
    state = make_state(ours.parts.start_state, ours.params, Layout("jit"))
    per_call = () if args.steps_per_call == 1 else (args.steps_per_call,)
    size, classes = (*per_call, args.images), ours.parts.num_labels or 1
    pixels = np.random.default_rng(0).integers(0, 256, (*size, *ours.image_shape))
    labels = np.broadcast_to(np.arange(args.images) % classes, size)
    batch = replicate((pixels.astype(np.uint8), labels.astype(np.int32)), "jit")

    def run() -> None:
        nonlocal state
        for _ in range(args.steps // args.steps_per_call):
            state, metrics = step(state, batch, key)
        jax.block_until_ready((state, metrics))

    return run


def make_our_sampling(args: StepArgs, ours: Ours) -> Callable[[], object]:
    """Make a function that draws one batch in JAX."""
    settings = SampleConfig(sampler="ddim", num_steps=args.steps, frames=1)
    generate = make_generate_fn(ours.parts, settings, ours.image_shape)
    size: dict[str, Any] = {"batch_size": args.images, "num_labels": ours.parts.num_labels}
    return lambda: list(generate_images(generate, ours.params, args.images, **size))
