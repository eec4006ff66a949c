"""The parity job, which compares both frameworks, prints every difference and writes a report."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
from tqdm.auto import tqdm

from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.interop import Network, PeerName, from_torch
from jax_ddpm.interop.files import read_arguments, read_weights
from jax_ddpm.parity.packages import require_packages
from jax_ddpm.parity.page import render_page
from jax_ddpm.parity.parts import LIBRARY, PartName, make_network_parts
from jax_ddpm.parity.quantities import Part, Quantity, measure_part
from jax_ddpm.parity.record import make_record

ALL_PARTS = tuple(part.name for part in LIBRARY)


@dataclass(frozen=True)
class ParityArgs:
    """Compare JAX with PyTorch, quantity by quantity.

    Without --weights, compares the whole library with torch_ref, the PyTorch reference. With
    --weights, compares that checkpoint's network with the package it comes from, or with torch_ref
    if the package is not installed.
    """

    out: Path = Path("parity")
    """Folder for report.json and report.html."""
    weights: Path | None = None
    """A checkpoint: .safetensors, .pt, .pth, .bin, .ckpt or .npz."""
    source: PeerName | None = None
    """The implementation that wrote the checkpoint."""
    config: Path | None = None
    """JSON file with the constructor arguments that the weights do not reveal. None: the file of
    the same name beside the weights, or diffusers' config.json."""
    prefix: str | None = None
    """Where the weights are in the checkpoint, if several sets fit, such as ema.model."""
    seed: int = 0
    """Seed of all random inputs."""
    parts: tuple[PartName, ...] = ALL_PARTS
    """Parts of the library to compare."""


def write_report(args: ParityArgs) -> bool:
    """Compare, print and write everything; return whether all differences are within tolerance.

    Raises UserError if PyTorch is missing, and for weights without a source or vice versa.
    """
    require_packages("a comparison with PyTorch", "torch")
    with use_full_precision():
        subject, parts = "the library", [part for part in LIBRARY if part.name in args.parts]
        if args.weights or args.source or args.config or args.prefix:
            require_all_parts(args)
            network = read_network(args)
            subject, parts = str(args.weights), make_network_parts(network)
        parts, left_out = leave_out_parts(parts)
        quantities = list(compare_parts(parts, args.seed))
    record = make_record(quantities, parts, subject, args.seed, left_out)
    text = json.dumps(record, indent=1, allow_nan=False)
    write_atomically(args.out / "report.json", lambda path: path.write_text(text))
    page = render_page(record)
    write_atomically(args.out / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    for reason in left_out.values():
        print(f"\n{reason}")
    print(f"\n{record['summary']['sentence']}")
    print(f"Wrote {args.out / 'report.html'} and {args.out / 'report.json'}")
    return all(quantity.ok for quantity in quantities)


def require_all_parts(args: ParityArgs) -> None:
    """Raise UserError if the user chose parts of the library, which --weights replaces."""
    if args.parts != ALL_PARTS:
        raise UserError(
            f"--parts {' '.join(args.parts)} has no effect with --weights, which compares the "
            "network of a checkpoint: leave it out"
        )


def leave_out_parts(parts: list[Part]) -> tuple[list[Part], dict[str, str]]:
    """Leave out the parts whose package is not installed.

    Also returns the name of each such part, with a sentence about it. Raises UserError if no part
    remains.
    """
    left_out = {
        part.name: f"{part.title}: not compared, because {part.against} is not installed "
        f"(pip install {part.against})"
        for part in parts
        if find_spec(part.package) is None
    }
    remaining = [part for part in parts if part.name not in left_out]
    if left_out and not remaining:
        raise UserError("; ".join(left_out.values()))
    return remaining, left_out


@contextmanager
def use_full_precision() -> Iterator[None]:
    """Allow float64, compute float32 products in full precision, and limit PyTorch to one thread.

    With more threads, PyTorch would be slower, because the networks are tiny.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            yield
    finally:
        torch.set_num_threads(threads)


def read_network(args: ParityArgs) -> Network:
    """Read the network of a checkpoint, with parameters cast to float32."""
    if not (args.weights and args.source):
        raise UserError("give both --weights FILE and --source NAME; all else is optional")
    config = read_arguments(args.weights, args.config)
    weights = read_weights(args.weights)
    network = from_torch(weights, args.source, config, prefix=args.prefix)
    params = jax.tree.map(lambda p: np.asarray(p).astype(np.float32), network.params)
    return replace(network, params=params)


def compare_parts(parts: list[Part], seed: int) -> Iterator[Quantity]:
    """Compare every quantity of `parts`, and print each as soon as it is compared."""
    with tqdm(total=len(parts), unit="part", leave=False, disable=None) as bar:
        for part in parts:
            bar.set_description(part.title)
            bar.write(f"\n{part.title}, jax_ddpm against {part.against}\n{HEAD}", file=sys.stdout)
            group = None
            for quantity in measure_part(part, seed):
                if quantity.group != group:
                    group = quantity.group
                    bar.write(f"  {group}", file=sys.stdout)
                bar.write(format_line(quantity), file=sys.stdout)
                yield quantity
            bar.update()


LINE = "    {:<46} {:>9} {:>9} {:>9} {:>8} {:>9}  {}"
HEAD = LINE.format("", "float64", "float32", "absolute", "ULP", "tolerance", "").rstrip()


def format_line(quantity: Quantity) -> str:
    """Format a quantity as a line; absolute difference, ULP and tolerance refer to float32."""
    double, single = quantity.float64, quantity.float32
    return LINE.format(
        quantity.what,
        f"{double.relative:.1e}",
        f"{single.relative:.1e}",
        f"{single.absolute:.1e}",
        "-" if single.ulp is None else f"{single.ulp:.1f}",
        f"{single.tolerance:.0e}",
        "ok" if quantity.ok else "OUT OF TOLERANCE",
    )
