"""Check the values of flags against their types, and explain wrong ones in one sentence."""

from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from jax_ddpm.cli.flags import Flag, allows_none, count_values, strip_none
from jax_ddpm.config.aliases import ALIASES
from jax_ddpm.config.plain_values import list_choices, require_plain_value
from jax_ddpm.errors import UserError, check_choice, join_or

KINDS = {int: "a whole number", float: "a number", str: "text", Path: "a path"}


def check_values(flag: Flag, typed: str, values: list[str]) -> list[str]:
    """Check `values` and return them as tyro reads them; `typed` is the flag as the user wrote it.

    Aliases are replaced by our own names. Raises UserError for a missing or wrong value.
    """
    if allows_none(flag.kind) and values == ["None"]:
        return values
    is_tuple = get_origin(strip_none(flag.kind)) is tuple
    count = count_values(flag.kind) or (0 if is_tuple else 1)
    if len(values) < count:
        needs = "a value" if count == 1 else f"{count} values, each"
        raise UserError(f"{typed} needs {needs}: {describe(flag.kind)}")
    checked = [check_value(flag, typed, value) for value in values]
    has_choices = is_tuple and list_choices(flag.kind) is not None
    return [word for value in checked for word in value.split()] if has_choices else checked


def check_value(flag: Flag, typed: str, value: str) -> str:
    """Check one value of `flag`. Raises UserError unless it is plain and of the flag's type."""
    choices = list_choices(flag.kind)
    if choices is not None:
        aliases = ALIASES.get(flag.last_part.replace("-", "_").removesuffix("s"))
        return check_choice(typed, value, [str(choice) for choice in choices], aliases)
    kind = strip_tuple(flag.kind)
    try:
        require_plain_value(typed, kind(value))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{typed} is {value!r}, but it must be {describe(kind)}") from error
    return value


def describe(kind: Any) -> str:
    """Describe the values of a flag of type `kind` in words."""
    choices = list_choices(kind)
    if choices is not None:
        return join_or([str(choice) for choice in choices])
    return KINDS[strip_tuple(kind)]


def strip_tuple(kind: Any) -> Any:
    """The type of each value: of a tuple's items, or `kind` itself; without None."""
    kind = strip_none(kind)
    if get_origin(kind) in (Union, UnionType):  # one value, or one per resolution
        return strip_tuple(get_args(kind)[0])
    return get_args(kind)[0] if get_origin(kind) is tuple else kind
