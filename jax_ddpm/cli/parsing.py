"""Turn a command line into a dataclass: we check the flags, and tyro converts the values."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any, Generic, NamedTuple, TypeVar

import tyro

from jax_ddpm.cli.arguments import Arguments, Short, read_arguments
from jax_ddpm.cli.flags import read_flags
from jax_ddpm.cli.help import Help, show_help, wants_help
from jax_ddpm.errors import UserError, flag_name, join_or, nearest

T = TypeVar("T")


class Parsed(NamedTuple, Generic[T]):
    """The dataclass that a command line fills, and how the user typed the flags."""

    flags: T
    arguments: Arguments

    def changes(self, section: str, prefix: str = "--") -> dict[str, Any]:
        """The fields of the dataclass `section` that the user gave, with their values."""
        values = getattr(self.flags, section)
        names = {name: flag_name(name, prefix) for name in vars(values)}
        return {n: getattr(values, n) for n, flag in names.items() if flag in self.arguments.given}

    @contextmanager
    def naming_flags_as_typed(self) -> Iterator[None]:
        """In a UserError raised inside, replace flags by the names that the user typed."""
        try:
            yield
        except UserError as error:
            raise UserError(self.arguments.name_as_typed(str(error))) from error


def parse(
    kind: type[T],
    args: Sequence[str],
    help_: Help,
    *,
    default: T | None = None,
    short: Short | None = None,
) -> Parsed[T]:
    """Make an instance of the dataclass `kind` from `args`; other fields are as in `default`.

    `short` maps short flags to the words they stand for. Raises UserError for a mistake. Prints
    help and exits if `args` ask for it.
    """
    known: dict[str, Any] = {} if default is None else {"default": default}
    flags, short = list(read_flags(kind, **known)), short or {}
    if asked := wants_help(args):
        show_help(help_, flags, short, everything=asked == "--help-all")
        raise SystemExit(0)
    arguments = read_arguments(args, flags, short)
    said = StringIO()
    try:
        with redirect_stderr(said):
            values = tyro.cli(
                kind, args=arguments.words, config=(tyro.conf.AvoidSubcommands,), **known
            )
    except SystemExit as end:  # a safeguard: our own checks refuse every mistake we know of
        raise UserError(f"the command line cannot be read: {said.getvalue()}") from end
    return Parsed(values, arguments)


def choose(command: str, args: Sequence[str], names: Collection[str], help_: Help) -> str:
    """The first argument, which must be one of `names`. Prints help and exits if asked to.

    Raises UserError for any other first argument, and for none.
    """
    if args and args[0] in names:
        return args[0]
    if wants_help(args):
        show_help(help_, (), {}, everything=False)
        raise SystemExit(0)
    possible = join_or(list(names))
    if not args:
        raise UserError(f"{command} needs a word after it: {possible} (see {command} --help)")
    near = nearest(args[0], names)
    hint = f": did you mean {near}?" if near else ""
    raise UserError(f"{command} takes {possible}, not {args[0]!r}{hint}")
