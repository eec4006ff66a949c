"""Read a command line: complete short and partial flags, and explain each mistake in a sentence."""

import difflib
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jax_ddpm.cli.flags import Flag, allows_none, count_values, turn_off
from jax_ddpm.cli.values import check_values, describe
from jax_ddpm.errors import UserError, join_or

Short = Mapping[str, Sequence[str]]  # short flag -> the words it stands for


class Arguments(NamedTuple):
    """A command line with complete flags and checked values."""

    words: list[str]
    """The words for tyro to parse, positional arguments first."""
    given: dict[str, str]
    """Complete name of each flag that was given -> the name that the user typed."""

    def name_as_typed(self, message: str) -> str:
        """Replace every flag in `message` by the name that the user typed."""
        for name, typed in self.given.items():
            message = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", typed, message)
        return message


def read_arguments(args: Sequence[str], flags: Sequence[Flag], short: Short) -> Arguments:
    """Read `args`. Raises UserError for anything that tyro would refuse.

    A flag may leave out its section where its last part is unique: --batch-size stands for
    --train.batch-size. Switches are written --flag or --no-flag.
    """
    _require_no_gaps(args)
    words, typed_short = expand(args, short)
    queue, places = deque(words), deque(flag for flag in flags if flag.is_positional)
    by_place, by_name, given = list[str](), dict[str, list[str]](), dict[str, str]()
    placed = set[str]()
    while queue:
        word = queue.popleft()
        if is_flag(word):
            name, equals, value = word.partition("=")
            flag, on = find_flag(name, flags)
            typed = typed_short.get(name, name)
            found = read_values(flag, typed, on, [value] if equals else [], queue)
            by_name[flag.name] = _join_values(flag, typed, by_name.get(flag.name, []), found)
            given[flag.name] = typed
        elif places:
            flag = places[0] if places[0].is_list else places.popleft()  # a list takes the rest
            by_place += check_values(flag, flag.name, [word])
            placed.add(flag.name)
        else:
            raise UserError(_describe_unexpected(words, len(words) - len(queue) - 1))
    _require_complete([f for f in places if f.name not in placed])
    _require_complete([f for f in flags if not f.is_positional and f.name not in given])
    return Arguments([*by_place, *(word for words in by_name.values() for word in words)], given)


def expand(args: Sequence[str], short: Short) -> tuple[list[str], dict[str, str]]:
    """Write out short flags in `args`. Also returns the short flag typed for each complete name."""
    words, typed = list[str](), dict[str, str]()
    for arg in args:
        name, equals, value = arg.partition("=")
        words += [*short[name], *([value] if equals else [])] if name in short else [arg]
        typed |= {full: name for full in short.get(name, ())[:1]}
    return words, typed


def find_flag(typed: str, flags: Sequence[Flag]) -> tuple[Flag, bool]:
    """Find the flag that `typed` names, and whether `typed` turns it on (False: --no-flag).

    Raises UserError if there is no such flag, or if several flags end like that.
    """
    named = [flag for flag in flags if not flag.is_positional]
    for name, on in list_spellings(typed):
        found = [flag for flag in named if flag.name == name]
        if "." not in name and not found:
            found = [flag for flag in named if flag.last_part == name.lstrip("-")]
        found = found if on else [flag for flag in found if flag.is_switch]
        if len(found) == 1:
            return found[0], on
        if found:
            names = join_or([flag.name for flag in found])
            raise UserError(f"{typed} could be {names}: write one of them in full")
    raise UserError(f"unknown flag {typed}{_hint(typed, named)} (--help-all lists every flag)")


def list_spellings(typed: str) -> Iterator[tuple[str, bool]]:
    """List the complete names that `typed` may stand for, and whether it turns each on."""
    name = "--" + typed.lstrip("-").replace("_", "-")
    yield name, True
    section, dot, last = name.removeprefix("--").rpartition(".")
    if name.startswith("--no-"):
        yield f"--{name.removeprefix('--no-')}", False
    elif last.startswith("no-"):
        yield f"--{section}{dot}{last.removeprefix('no-')}", False


def read_values(flag: Flag, typed: str, on: bool, first: list[str], queue: deque[str]) -> list[str]:
    """Take the values of `flag`, `first` and words from `queue`; return the words for tyro.

    Raises UserError for values that are missing, wrong, or given to a switch.
    """
    if not flag.is_switch:
        return [flag.name, *check_values(flag, typed, take_values(flag, first, queue))]
    if first or (queue and queue[0].lower() in ("true", "false")):
        raise UserError(f"{typed} takes no value: write {flag.name} or {turn_off(flag)}")
    if allows_none(flag.kind):  # tyro wants a value for bool | None
        return [flag.name, str(on)]
    return [flag.name if on else turn_off(flag)]


def _join_values(flag: Flag, typed: str, before: list[str], found: list[str]) -> list[str]:
    """The words for a flag that was perhaps given before: a list grows.

    Raises UserError for a flag without a list of values that is given twice.
    """
    if before and not flag.is_list:
        first, second = (" ".join(words[1:]) or words[0] for words in (before, found))
        raise UserError(f"{typed} is given twice, first {first} and then {second}: give it once")
    return [*before, *found[1:]] if before else found


def take_values(flag: Flag, first: list[str], queue: deque[str]) -> list[str]:
    """Take the values of `flag`: `first`, then as many words from `queue` as it takes."""
    count, values = count_values(flag.kind), list(first)
    while queue and not is_flag(queue[0]) and (count is None or len(values) < count):
        values.append(queue.popleft())
        if allows_none(flag.kind) and values == ["None"]:
            break
    return values


def is_flag(word: str) -> bool:
    """Whether `word` is a flag, not a value: -1 and -inf are numbers."""
    return bool(re.match(r"--[A-Za-z]|-[A-Za-z]$|--$", word))


def find_value(flag: str, args: Sequence[str]) -> str | None:
    """Find the value of a flag in an unread command line; None if it has no value."""
    found = None
    for arg, following in zip(args, [*args[1:], None], strict=False):
        name, equals, value = arg.partition("=")
        if name == flag:
            has_value = following is not None and not is_flag(following)
            found = value if equals else following if has_value else None
    return found


def _require_no_gaps(args: Sequence[str]) -> None:
    """Raise UserError for an empty argument, such as an unset shell variable leaves behind."""
    for before, arg in zip(["the command", *args], args, strict=False):
        if arg == "" or (is_flag(arg) and arg.endswith("=")):
            raise UserError(f"there is nothing after {arg.rstrip('=') or before}: give a value")


def _require_complete(missing: Sequence[Flag]) -> None:
    """Raise UserError if one of the `missing` arguments has no default."""
    for flag in missing:
        if flag.is_required:
            what = flag.help.rstrip(".") or describe(flag.kind)
            raise UserError(f"{flag.name} is missing: {what[0].lower()}{what[1:]} (see --help)")


def _describe_unexpected(words: Sequence[str], at: int) -> str:
    """Describe a word that is neither a flag nor a value of one."""
    after = f" after {words[at - 1]}" if at else ""
    return f"{words[at]!r}{after} is not expected here (--help-all lists every flag and its values)"


def _hint(typed: str, known: Sequence[Flag]) -> str:
    """Suggest the flag that was probably meant: one with the same or a similar last part."""
    last = typed.lstrip("-").rpartition(".")[2]
    same = [flag.name for flag in known if flag.last_part == last]
    close = difflib.get_close_matches(typed, same, n=1, cutoff=0)
    close += difflib.get_close_matches(typed, [flag.name for flag in known], n=1, cutoff=0.75)
    ends = {flag.name: flag.last_part for flag in known}
    alike = [n for n in close if difflib.SequenceMatcher(None, last, ends[n]).ratio() >= 0.6]
    return f": did you mean {alike[0]}?" if alike else ""
