"""--help prints examples and the most important flags; --help-all prints every flag."""

import shutil
import textwrap
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from jax_ddpm.cli.arguments import Short, find_flag
from jax_ddpm.cli.flags import Flag, count_values, turn_off
from jax_ddpm.cli.values import strip_tuple
from jax_ddpm.config.plain_values import list_choices

INDENT = " " * 8
METAVARS = {int: "N", float: "X", str: "TEXT"}


class Help(NamedTuple):
    """What the help of a command says besides describing its flags."""

    usage: str
    summary: str
    examples: tuple[tuple[str, str], ...]
    """Pairs of a command line and what it does."""
    flags: tuple[str, ...]
    """The most important flags, which may be short ones."""
    more: str = ""
    """A closing paragraph."""
    defaults: str = ""
    """Where the defaults come from, if not from the command."""
    of_run: Collection[str] = ()
    """The flags whose defaults come from a run that is not known yet."""


def wants_help(args: Sequence[str]) -> str | None:
    """The first argument that asks for help, if there is one."""
    return next((arg for arg in args if arg in ("-h", "--help", "--help-all")), None)


def show_help(help_: Help, flags: Sequence[Flag], short: Short, *, everything: bool) -> None:
    """Print the help of a command, with the most important flags or with `everything`."""
    shown = [f._replace(default="the run's") if f.name in help_.of_run else f for f in flags]
    print("\n".join(format_help(help_, shown, short, everything=everything)))


def format_help(
    help_: Help, flags: Sequence[Flag], short: Short, *, everything: bool
) -> Iterator[str]:
    """The lines that `show_help` prints."""
    yield from (
        f"usage: {help_.usage}",
        "",
        *wrap(help_.summary),
        "",
        "examples:",
    )
    yield from (line for example in help_.examples for line in format_entry(*example))
    if positional := [flag for flag in flags if flag.is_positional]:
        yield from ("", "arguments:", *(line for flag in positional for line in format_flag(flag)))
    named = [flag for flag in flags if not flag.is_positional]
    whose = f" (defaults: {help_.defaults})" if help_.defaults else ""
    names = help_.flags or [flag.name for flag in named]
    if everything:
        yield from ("", f"all flags{whose}:")
        yield from (line for flag in named for line in format_flag(flag))
        yield from (
            f"  {name} is short for {' '.join(words)}" for name, words in short.items() if words
        )
    elif named:
        yield from ("", f"flags{whose}:")
        for name in names:
            meaning = short.get(name, ())
            flag = find_flag(meaning[0] if meaning else name, flags)[0]
            yield from format_flag(flag, name if meaning else "", meaning)
        if len(named) > len(names):
            yield from ("", f"--help-all lists all {len(named)} flags.")
    if help_.more:
        yield from ("", *wrap(help_.more))


def format_flag(flag: Flag, short: str = "", meaning: Sequence[str] = ()) -> Iterator[str]:
    """The help of a flag, or of the flag `short` that stands for it and perhaps a value."""
    if len(meaning) > 1:
        yield from format_entry(short, f"Short for {' '.join(meaning)}.")
        return
    names = [f"{name}{format_values(flag)}" for name in (short, flag.name) if name]
    if flag.is_switch and flag.default is not False:
        names.append(turn_off(flag))
    text = flag.help
    if choices := list_choices(flag.kind):
        text = f"{text} Choices: {', '.join(map(str, choices))}."
    if not flag.is_required:
        text = f"{text} (default: {format_default(flag.default)})"
    yield from format_entry(", ".join(names), text.strip())


def format_entry(head: str, text: str) -> list[str]:
    """The line `head`, with `text` wrapped and indented below it."""
    return [
        f"  {head}",
        *wrap(text, INDENT),
    ]


def format_values(flag: Flag) -> str:
    """The placeholders after a flag: a space and a word for each value."""
    if flag.is_positional or flag.is_switch:
        return ""
    word = "NAME" if list_choices(flag.kind) else METAVARS.get(strip_tuple(flag.kind), "PATH")
    count = count_values(flag.kind)
    return f" {word} ..." if count is None else f" {word}" * count


def format_default(value: Any) -> str:
    """A default value as the user would type it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(format_default, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def wrap(text: str, indent: str = "") -> list[str]:
    """Wrap `text` to lines that fit the terminal."""
    wrapper = textwrap.TextWrapper(
        find_width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    return wrapper.wrap(text)


def find_width() -> int:
    """The width of the help: the terminal's, but between 60 and 98 characters."""
    return min(max(shutil.get_terminal_size().columns - 2, 60), 98)
