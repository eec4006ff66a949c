"""What every setting must be, whatever it means: finite, of a size that can be, and printable."""

import math
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from jax_ddpm.errors import require

MAX_INT = 2**32  # the seeds are the largest numbers that mean something
MAX_TEXT = 1000
MAX_ITEMS = 10_000


class Limits(NamedTuple):
    """The size of the largest number, and the length of the longest tuple."""

    number: int = MAX_INT
    items: int = MAX_ITEMS


ANY = Limits()
NETWORK = Limits(2**20, 16)  # a network is built layer by layer, before anything else can say no


def require_plain(settings: Any, prefix: str = "--", limits: Limits = ANY) -> None:
    """Raise UserError for the first value in a dataclass that is not plain, named by its flag."""
    for field in fields(settings):
        name, value = f"{prefix}{field.name.replace('_', '-')}", getattr(settings, field.name)
        if is_dataclass(value):
            require_plain(value, f"{name}.", NETWORK if name == "--model" else limits)
        else:
            require_plain_value(name, value, limits)


def require_plain_value(name: str, value: Any, limits: Limits = ANY) -> None:
    """Raise UserError unless every number in `value` is finite and every text short and printable.

    `value`: a number, a text, a path, None, or a tuple of such; `name` is what it is called.
    """
    if isinstance(value, tuple):
        items = len(value)
        require(items <= limits.items, name, f"{items} values", f"at most {limits.items}")
        for item in value:
            require_plain_value(name, item, limits)
    elif isinstance(value, float):
        require(math.isfinite(value), name, value, "a finite number")
    elif isinstance(value, int):
        fits = abs(value) <= limits.number
        require(fits, name, _short(value), f"at most {limits.number:,}")
    elif value is not None:
        text = str(value)
        printable = len(text) <= MAX_TEXT and text.isprintable()
        require(printable, name, repr(text)[:40], f"at most {MAX_TEXT} printable characters")


def _short(value: int) -> str:
    return str(value) if abs(value) < 10**30 else "an integer of more than 30 digits"
