"""The command: which parts there are, computing them, printing, and what is written."""

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
import torch
from tqdm import tqdm
from twins import twin_networks

from jax_ddpm.convert import ImportArgs, read_arguments
from jax_ddpm.errors import UserError
from jax_ddpm.files import write_atomically
from jax_ddpm.interop import Network, Source, from_torch
from jax_ddpm.interop.files import read_weights
from report.network import network_pairs
from report.page import render
from report.peers import references
from report.process import forward_process, losses, schedule_tables
from report.quantities import Measure, Part, Quantity, measure_part
from report.sampling import chains, sampler_steps
from report.training import lockstep

VERSION = 1  # of the JSON; goes up when a key changes its meaning
PartName = Literal["schedules", "process", "losses", "network", "steps", "chains", "training"]


@dataclass(frozen=True)
class Args:
    """Without --weights: every quantity of the library against torch_ref, the PyTorch reference.

    With --weights: that checkpoint's network against the package it comes from, else torch_ref.
    """

    out: Path = Path("parity")
    """Folder for report.json and report.html."""
    weights: Path | None = None
    """A checkpoint: .safetensors, .pt, .pth, .bin, .ckpt or .npz."""
    source: Source | None = None
    """The implementation that wrote the checkpoint."""
    config: Path | None = None
    """JSON file of that implementation's constructor arguments, where shapes do not tell them.
    Default: the one of the same name beside the weights, or config.json as diffusers writes it."""
    seed: int = 0
    """Seed of all random inputs."""
    parts: tuple[PartName, ...] = get_args(PartName)
    """Which parts to compute."""


def report(args: Args) -> bool:
    """Compute, print and write everything; whether all is within tolerance."""
    prepare()
    subject, parts = "the library", library_parts(args.parts)
    if args.weights or args.source or args.config:
        network = read_network(args)
        subject, parts = str(args.weights), list(network_parts(network))
    quantities = list(compute(parts, args.seed))
    record = as_record(quantities, parts, subject, args.seed)
    text = json.dumps(record, indent=1, allow_nan=False)
    write_atomically(args.out / "report.json", lambda path: path.write_text(text))
    page = render(record)
    write_atomically(args.out / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    print(f"\n{record['summary']['sentence']}")
    print(f"Wrote {args.out / 'report.html'} and {args.out / 'report.json'}")
    return all(quantity.ok for quantity in quantities)


def prepare() -> None:
    """Double precision where asked, full products in single; torch's threads would only wait."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")
    torch.set_num_threads(1)


def library_parts(names: tuple[str, ...]) -> list[Part]:
    """The chapters of the report on the library."""
    everything = [
        Part("schedules", "Noise schedules", "Every table of every schedule, T = 1000. In float32, "
             "each is the float64 table cast once.", "torch_ref", schedule_tables),
        Part("process", "Forward process", "The same images and noise through both, at t = 0, 1, "
             "250, 998 and 999 of the linear schedule.", "torch_ref", forward_process),
        Part("losses", "Training losses", "Per example, for every prediction type.", "torch_ref",
             losses),
        Part("network", "Network", "A small U-Net with the same random weights, run once: the "
             "output of every block on the way, so that later blocks also carry the rounding of "
             "earlier ones, and the gradient of the mean squared output with respect to the input "
             "and to every parameter.", "torch_ref", library_network),
        Part("steps", "Sampler steps", "One step from each of five levels, to the neighbour, over "
             "a jump and to the clean image, with the same noise.", "torch_ref", sampler_steps),
        Part("chains", "Whole chains", "From the same x_T with the same noise, through the same "
             "U-Net at every step; every image on the way is compared.", "torch_ref", chains),
        Part("training", "Training in lock-step", "From the same parameters on the same batches, "
             "timesteps and noise.", "torch_ref", lockstep),
    ]  # fmt: skip
    return [part for part in everything if part.name in names]


def library_network(dtype: str, seed: int) -> Iterator[Any]:
    """The small U-Net of the tests as if its weights came from a file."""
    theirs, _, _ = twin_networks("float32", seed=seed)
    weights = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    network = from_torch(weights, "torch_ref", {"num_groups": 4, "dropout": 0.0})
    (reference,) = references(network)
    yield from network_pairs(network, reference, "U-Net", dtype, seed)


def network_parts(network: Network) -> Iterator[Part]:
    """The one chapter of a checkpoint, or two where no one reference can do both precisions."""
    for i, reference in enumerate(references(network)):
        pairs = partial(network_pairs, network, reference, "given network")
        text = (f"Random images at several t through the checkpoint's network as {reference.against} "
                "computes it and as ours: the output of every block that both have, and all "
                "gradients.")  # fmt: skip
        title = f"Network against {reference.against}"
        yield Part(f"network_{i}" if i else "network", title, text, reference.against, pairs,
                   reference.dtypes)  # fmt: skip


def read_network(args: Args) -> Network:
    """The network of a checkpoint, its parameters in float32."""
    if not (args.weights and args.source):
        raise UserError(
            "--weights FILE and --source NAME belong together (--config FILE may follow)"
        )
    config = read_arguments(ImportArgs(args.weights, args.source, args.out, args.config))
    network = from_torch(read_weights(args.weights), args.source, config)
    params = jax.tree.map(lambda p: np.asarray(p).astype(np.float32), network.params)
    return replace(network, params=params)


def compute(parts: list[Part], seed: int) -> Iterator[Quantity]:
    """Every quantity of `parts`, each printed as soon as it is there."""
    with tqdm(total=len(parts), unit="part", leave=False, disable=None) as bar:
        for part in parts:
            bar.set_description(part.title)
            bar.write(f"\n{part.title}, jax_ddpm against {part.against}\n{HEAD}", file=sys.stdout)
            group = None
            for quantity in measure_part(part, seed):
                if quantity.group != group:
                    group = quantity.group
                    bar.write(f"  {group}", file=sys.stdout)
                bar.write(line(quantity), file=sys.stdout)
                yield quantity
            bar.update()


LINE = "    {:<46} {:>9} {:>9} {:>9} {:>8} {:>9}  {}"
HEAD = LINE.format("", "float64", "float32", "absolute", "ULP", "tolerance", "").rstrip()


def line(quantity: Quantity) -> str:
    """A quantity as a line of text; absolute, ULP and tolerance are those of float32."""
    double, single = quantity.float64, quantity.float32
    relative = [f"{m.relative:.1e}" if m else "" for m in (double, single)]
    last = quantity.measures[-1]
    ulp = "-" if last.ulp is None else f"{last.ulp:.1f}"
    rest = f"{last.absolute:.1e}", ulp, f"{last.tolerance:.0e}"
    return LINE.format(quantity.what, *relative, *rest, "ok" if quantity.ok else "OUT OF TOLERANCE")


def as_record(
    quantities: list[Quantity], parts: list[Part], subject: str, seed: int
) -> dict[str, Any]:
    """The report as plain values: what the JSON file holds and the page shows."""
    failed = sum(not quantity.ok for quantity in quantities)
    verdict = "all within tolerance" if not failed else f"{failed} OUT OF TOLERANCE"
    return {
        "version": VERSION,
        "subject": subject,
        "seed": seed,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "ok": not failed,
        "summary": {
            "sentence": f"{len(quantities)} quantities, {verdict}.",
            "quantities": len(quantities),
            "out_of_tolerance": failed,
            "identical": {dtype: sum(is_identical(q, dtype) for q in quantities)
                          for dtype in ("float64", "float32")},
        },
        "environment": environment(),
        "parts": [{"name": part.name, "title": part.title, "text": part.text,
                   "against": part.against} for part in parts],
        "quantities": [record_of(quantity) for quantity in quantities],
    }  # fmt: skip


def is_identical(quantity: Quantity, dtype: str) -> bool:
    """Whether the two are equal bit for bit in this precision."""
    measure: Measure | None = getattr(quantity, dtype)
    return measure is not None and measure.absolute == 0


def record_of(quantity: Quantity) -> dict[str, Any]:
    """A quantity as plain values; what is not finite, such as the distance to a NaN, is null."""
    record = asdict(quantity)
    for dtype in ("float64", "float32"):
        measure = getattr(quantity, dtype)
        if measure is not None:
            record[dtype] = {name: finite(value) for name, value in record[dtype].items()}
            record[dtype]["ok"] = measure.ok
    return record | {"ok": quantity.ok}


def finite(value: Any) -> Any:
    """None in place of infinities and NaN, also in a list."""
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def environment() -> dict[str, str]:
    """What the numbers depend on."""
    packages = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")
    return {
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "jax_backend": jax.default_backend(),
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((text.split(":")[1].strip() for text in lines if text.startswith("model name")), "")
