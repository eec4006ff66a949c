"""Checks that apply to every setting: finite, of a reasonable size, and printable."""

import math
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from jax_ddpm.errors import check_choice, flag_name, join_or, require

MAX_INT = 2**32  # seeds are the largest numbers that make sense
MAX_TEXT = 1000
MAX_ITEMS = 10_000


class Limits(NamedTuple):
    """The largest number and the longest tuple that are accepted."""

    number: int = MAX_INT
    items: int = MAX_ITEMS


ANY = Limits()
NETWORK = Limits(2**20, 16)  # a network is built layer by layer before anything else can refuse it


def require_plain(settings: Any, prefix: str = "--", limits: Limits = ANY) -> None:
    """Raise UserError for the first value in a dataclass that is not plain, naming its flag.

    A plain value is finite, of a reasonable size, and one of the choices if its type lists any.
    """
    for field in fields(settings):
        flag, value = flag_name(field.name, prefix), getattr(settings, field.name)
        if is_dataclass(value):
            require_plain(value, f"{flag}.", NETWORK if flag == "--model" else limits)
        else:
            require_plain_value(flag, value, limits)
    kind: Any = type(settings)
    for name, choices in _fields_with_choices(kind).items():
        for value in _flatten(getattr(settings, name)):
            require_one_of(flag_name(name, prefix), value, choices)


def require_plain_value(flag: str, value: Any, limits: Limits = ANY) -> None:
    """Raise UserError unless numbers in `value` are finite and strings short and printable.

    `value` is a number, a string, a path, None, or a tuple of these.
    """
    if isinstance(value, tuple):
        items = len(value)
        require(items <= limits.items, flag, f"{items} values", f"at most {limits.items}")
        for item in value:
            require_plain_value(flag, item, limits)
    elif isinstance(value, float):
        require(math.isfinite(value), flag, value, "a finite number")
    elif isinstance(value, int):
        fits = abs(value) <= limits.number
        require(fits, flag, _shorten(value), f"at most {limits.number:,}")
    elif value is not None:
        text = str(value)
        printable = len(text) <= MAX_TEXT and text.isprintable()
        require(printable, flag, repr(text)[:40], f"at most {MAX_TEXT} printable characters")


def require_one_of(flag: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise UserError unless `value` is None or one of `choices`."""
    if isinstance(value, str):
        check_choice(flag, value, choices)
    elif value is not None:
        require(value in choices, flag, value, join_or([str(choice) for choice in choices]))


def list_choices(kind: Any) -> tuple[Any, ...] | None:
    """The choices of a Literal type, also inside `| None` or a tuple; None for any other type."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [part for part in get_args(kind) if part is not type(None)]
        return list_choices(kinds[0]) if len(kinds) == 1 else None
    return list_choices(get_args(kind)[0]) if get_origin(kind) is tuple else None


def make_check(settings: Any, prefix: str) -> Callable[..., None]:
    """Return a function `check(name, ok, expected, flag=None)` for the fields of `settings`.

    Unless `ok`, it raises UserError: "FLAG is VALUE, but it must be EXPECTED".
    """

    def check(name: str, ok: bool, expected: str, flag: str | None = None) -> None:
        require(ok, flag or flag_name(name, prefix), getattr(settings, name), expected)

    return check


@cache
def _fields_with_choices(kind: Any) -> dict[str, tuple[Any, ...]]:
    hints = typing.get_type_hints(kind)
    found = {field.name: list_choices(hints[field.name]) for field in fields(kind)}
    return {name: choices for name, choices in found.items() if choices}


def _flatten(value: Any) -> Iterator[Any]:
    yield from value if isinstance(value, tuple) else (value,)


def _shorten(value: int) -> str:
    return str(value) if abs(value) < 10**30 else "an integer of more than 30 digits"
