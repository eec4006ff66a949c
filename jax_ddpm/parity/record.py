"""A report as plain values: what its JSON file holds and its page shows."""

import platform
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_ddpm.parity.quantities import Part, Quantity

VERSION = 1  # goes up when a key changes its meaning


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
            "identical": {dtype: sum(getattr(q, dtype).absolute == 0 for q in quantities)
                          for dtype in ("float64", "float32")},
        },
        "environment": environment(),
        "parts": [{"name": part.name, "title": part.title, "text": part.text,
                   "against": part.against} for part in parts],
        "quantities": [record_of(quantity) for quantity in quantities],
    }  # fmt: skip


def record_of(quantity: Quantity) -> dict[str, Any]:
    """A quantity as plain values; what is not finite, such as the distance to a NaN, is null."""
    record = asdict(quantity)
    for dtype in ("float64", "float32"):
        measure = getattr(quantity, dtype)
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
