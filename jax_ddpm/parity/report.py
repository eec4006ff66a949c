"""The command: computing, printing and writing a report."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import torch
from tqdm import tqdm

from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.interop import Network, Source, from_torch
from jax_ddpm.interop.files import read_arguments, read_weights
from jax_ddpm.parity.chapters import PartName, library_parts, network_parts
from jax_ddpm.parity.page import render
from jax_ddpm.parity.quantities import Part, Quantity, measure_part
from jax_ddpm.parity.record import as_record


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
        subject, parts = str(args.weights), network_parts(network)
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


def read_network(args: Args) -> Network:
    """The network of a checkpoint, its parameters in float32."""
    if not (args.weights and args.source):
        raise UserError(
            "--weights FILE and --source NAME belong together (--config FILE may follow)"
        )
    config = read_arguments(args.weights, args.config)
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
    ulp = "-" if single.ulp is None else f"{single.ulp:.1f}"
    verdict = "ok" if quantity.ok else "OUT OF TOLERANCE"
    return LINE.format(
        quantity.what, f"{double.relative:.1e}", f"{single.relative:.1e}",
        f"{single.absolute:.1e}", ulp, f"{single.tolerance:.0e}", verdict,
    )  # fmt: skip
