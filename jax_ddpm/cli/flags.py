"""The flags of a command, read from its dataclass: names, types, defaults and help."""

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin

import tyro

from jax_ddpm.errors import flag_name

T = TypeVar("T")
_FLAT = "the fields of this dataclass become flags without a section"
Flat = Annotated[T, tyro.conf.arg(name=""), _FLAT]


class Flag(NamedTuple):
    """A flag such as --train.num-steps, or a positional argument such as RUN."""

    name: str
    kind: Any
    """The type of its value."""
    default: Any
    """MISSING if it must be given."""
    help: str

    @property
    def is_positional(self) -> bool:
        """Whether it is given by position, without a name."""
        return not self.name.startswith("-")

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value: --flag or --no-flag."""
        return strip_none(self.kind) is bool

    @property
    def is_list(self) -> bool:
        """Whether it takes any number of values."""
        return count_values(self.kind) is None and get_origin(strip_none(self.kind)) is tuple

    @property
    def is_required(self) -> bool:
        """Whether it has no default."""
        return self.default in (MISSING, tyro.MISSING)

    @property
    def last_part(self) -> str:
        """The name without dashes and section, such as num-steps."""
        return self.name.lstrip("-").rpartition(".")[2]


def read_flags(kind: Any, default: Any = MISSING, prefix: str = "--") -> Iterator[Flag]:
    """List the flags of a dataclass and of the dataclasses inside it, in order.

    Defaults come from the instance `default`, if there is one, else from the fields.
    """
    hints, docs = typing.get_type_hints(kind, include_extras=True), read_docs(kind)
    for field in fields(kind):
        hint, *marks = _split_annotation(hints[field.name])
        value = getattr(default, field.name, MISSING)
        value = _default_of(field) if value is MISSING else value
        inner = type(value) if is_dataclass(value) else hint
        name = flag_name(field.name, prefix)
        if is_dataclass(inner):
            yield from read_flags(inner, value, prefix if _FLAT in marks else f"{name}.")
        else:
            shown = field.name.upper() if tyro.conf.Positional in marks else name
            yield Flag(shown, hint, value, docs.get(field.name, ""))


@cache
def read_docs(kind: Any) -> dict[str, str]:
    """Read the docstring below each field of a dataclass and its bases, each as one line."""
    found: dict[str, str] = {}
    bases: list[Any] = [base for base in kind.__mro__ if is_dataclass(base)]
    for base in reversed(bases):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        body = getattr(definition, "body", [])
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                found[ast.unparse(field.target)] = " ".join(ast.literal_eval(text.value).split())
    return found


def strip_none(kind: Any) -> Any:
    """Remove None from the type `kind`: int | None becomes int."""
    if not allows_none(kind):
        return kind
    return Union[tuple(part for part in get_args(kind) if part is not type(None))]  # noqa: UP007


def allows_none(kind: Any) -> bool:
    """Whether the type `kind` includes None."""
    return get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind)


def count_values(kind: Any) -> int | None:
    """How many values a flag of this type takes; None: any number."""
    kind = strip_none(kind)
    if kind is bool:
        return 0
    if get_origin(kind) in (Union, types.UnionType):  # one value, or one per resolution
        return None
    if get_origin(kind) is not tuple:
        return 1
    parts = get_args(kind)
    return None if parts[-1] is Ellipsis else len(parts)


def turn_off(switch: Flag) -> str:
    """The flag that turns a switch off: --no-dry-run, --sample.no-clip-x-0."""
    section, dot, last = switch.name.removeprefix("--").rpartition(".")
    return f"--{section}{dot}no-{last}"


def _default_of(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _split_annotation(hint: Any) -> tuple[Any, ...]:
    """The type and the marks of Annotated[type, *marks]."""
    return get_args(hint) if get_origin(hint) is Annotated else (hint,)
