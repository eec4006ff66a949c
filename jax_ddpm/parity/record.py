"""A report as plain values: the content of its JSON file and its page."""

import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_ddpm.parity.quantities import Part, Quantity

VERSION = 1  # to be increased when a key changes its meaning
DTYPES = ("float64", "float32")


def make_record(
    quantities: list[Quantity],
    parts: list[Part],
    subject: str,
    seed: int,
    left_out: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Convert the whole report to plain values.

    `left_out` says why parts are missing, by their names.
    """
    failed = sum(not quantity.ok for quantity in quantities)
    verdict = "all within tolerance" if not failed else f"{failed} OUT OF TOLERANCE"
    identical = {d: sum(getattr(q, d).absolute == 0 for q in quantities) for d in DTYPES}
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
            "identical": identical,
        },
        "environment": describe_environment(),
        "parts": [
            {name: getattr(part, name) for name in ("name", "title", "text", "against")}
            for part in parts
        ],
        "left_out": dict(left_out or {}),
        "quantities": [record_quantity(quantity) for quantity in quantities],
    }


def record_quantity(quantity: Quantity) -> dict[str, Any]:
    """Convert a quantity to plain values; None stands for infinity and NaN, which JSON lacks."""
    record = asdict(quantity)
    for dtype in DTYPES:
        measure = getattr(quantity, dtype)
        record[dtype] = {name: replace_non_finite(value) for name, value in record[dtype].items()}
        record[dtype]["ok"] = measure.ok
    return record | {"ok": quantity.ok}


def replace_non_finite(value: Any) -> Any:
    """Replace infinity and NaN by None, also inside a list."""
    if isinstance(value, list):
        return [replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def describe_environment() -> dict[str, str]:
    """List what the numbers depend on: versions, machine and backend."""
    packages = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")
    return {
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": find_processor(),
        "jax_backend": jax.default_backend(),
    }


def find_processor() -> str:
    """Find the name of the processor; empty if the system does not reveal it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((text.split(":")[1].strip() for text in lines if text.startswith("model name")), "")
