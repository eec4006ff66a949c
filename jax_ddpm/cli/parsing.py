"""Command lines: presets and flags to dataclasses, and mistakes to one sentence."""

import difflib
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro
from jax.errors import JaxRuntimeError

from jax_ddpm import runs
from jax_ddpm.config.plain_values import require_plain_value
from jax_ddpm.config.presets import PRESETS, find_preset
from jax_ddpm.config.run import Config
from jax_ddpm.devices.processes import Launch, leave_on_exit, require_complete
from jax_ddpm.errors import Stopped, UserError, one_line

T = TypeVar("T")


def parse_config(args: Sequence[str], *, prog: str, description: str) -> Config:
    """The preset that --preset names, changed by the other flags.

    Without --preset, a run folder given by --run is continued with its own settings. Raises
    UserError for an unknown preset or flag; exits after --help and for a wrong type.
    """
    require_no_empty(args)
    name, run = value_of("--preset", args), value_of("--run", args)
    if name is None and run is not None and (Path(run) / "config.json").is_file():
        default, of = runs.load(Path(run)).config, run
    else:
        name = name or Config.preset
        default, of = find_preset(name), name
    description += f" Presets: {', '.join(PRESETS)}; the defaults below are those of {of}."
    return parse(Config, args, prog=prog, description=description, default=default)


def parse(
    kind: type[T],
    args: Sequence[str],
    *,
    prog: str,
    description: str | None = None,
    default: T | None = None,
) -> T:
    """`args` as a dataclass `kind`, by default described by its docstring.

    Raises UserError for an unknown flag.
    """
    require_no_empty(args)
    known: dict[str, Any] = {} if default is None else {"default": default}
    values, unknown = tyro.cli(
        kind, prog=prog, description=description, args=args, return_unknown_args=True,
        config=(tyro.conf.AvoidSubcommands,), **known
    )  # fmt: skip
    if unknown:
        raise UserError(_unknown(unknown[0], args, list(_flags(default or kind))))
    for field in fields(values):
        value = getattr(values, field.name)
        if not is_dataclass(value):  # what is nested is looked at by its own validation
            require_plain_value(f"--{field.name.replace('_', '-')}", value)
    return values


def with_launch(
    args: Sequence[str], parse_rest: Callable[[Sequence[str]], T], *, prog: str
) -> tuple[Launch, T]:
    """The flags of `Launch`, and what `parse_rest` makes of the others.

    Raises UserError where those of `Launch` are incomplete.
    """
    launch, rest = tyro.cli(Launch, args=args, return_unknown_args=True, add_help=False, prog=prog)
    require_complete(launch)
    try:
        return launch, parse_rest(rest)
    except SystemExit:
        if {"--help", "-h"} & set(rest):
            print("Several processes as one (docs/scaling.md):")
            print(tyro.extras.get_parser(Launch, prog=prog, add_help=False).format_help())
        raise


def command(args: Sequence[str], commands: Sequence[str], *, prog: str) -> str:
    """The first argument. Raises UserError unless it is one of `commands`."""
    if args and args[0] in commands:
        return args[0]
    given = f"{args[0]!r} is no command" if args else "the command is missing"
    raise UserError(f"{given}: {prog} {' | '.join(commands)} (each has its own --help)")


def run(main: Callable[[], None]) -> NoReturn:
    """Call `main` and exit; a user's mistake ends in one sentence and exit code 1."""
    with leave_on_exit(), _without_late_threads():
        _run(main)
    raise AssertionError("a command ends by exiting")


def _run(main: Callable[[], None]) -> NoReturn:
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(one_line(f"error: {error.filename or 'a file'}: {error.strerror or error}"))
    except MemoryError as error:
        sys.exit(one_line(f"error: there is not enough memory ({error}): see docs/scaling.md"))
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sys.exit(
            "error: the device has not enough memory: take fewer images at a time (--batch-size; "
            "in training --train.batch-size, --train.accumulate or --train.remat "
            "nothing_saveable), see docs/scaling.md"
        )
    except Stopped as stop:
        print(stop)
        sys.exit(130 if stop.signum == signal.SIGINT else 0)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


@contextmanager
def _without_late_threads() -> Iterator[None]:
    """Nothing is printed of TensorStore's threads that outlive a read or write that failed."""
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        if str(found.exc_value) != "Event loop is closed":
            before(found)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def value_of(flag: str, args: Sequence[str]) -> str | None:
    """What a command line says of one flag, before it is parsed."""
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(f"{flag}="):
            return arg.removeprefix(f"{flag}=")
    return None


def _flags(kind: Any, prefix: str = "--") -> Iterator[str]:
    for f in fields(kind):
        name = prefix + f.name.replace("_", "-")
        nested = getattr(kind, f.name, f.type)
        if is_dataclass(nested):
            yield from _flags(nested, f"{name}.")
        else:
            yield name


def require_no_empty(args: Sequence[str]) -> None:
    """Raise UserError for an argument without a character, as of a shell variable that is unset."""
    for before, arg in zip(["the command", *args], args, strict=False):
        if arg == "" or (arg.startswith("--") and arg.endswith("=")):
            raise UserError(f"there is nothing after {arg.rstrip('=') or before}: give a value")


def _unknown(given: str, args: Sequence[str], known: Sequence[str]) -> str:
    """A sentence about an argument that means nothing."""
    flag = given.split("=")[0]
    if flag.startswith("-"):
        return f"unknown argument {given}{_hint(flag, known)} (--help lists all)"
    at = list(args).index(given) if given in args else 0
    after = f" after {args[at - 1]}" if at else ""
    return f"{given!r}{after} is not expected there (--help lists all flags and what they take)"


def _hint(given: str, known: Iterable[str]) -> str:
    """The flag that was meant, if one is close: the whole of it, or what follows its section."""
    last = given.lstrip("-").split(".")[-1]
    names = list(known)
    ends = {name: name.lstrip("-").split(".")[-1] for name in names}
    close = [name for name in names if ends[name] == last]
    close += difflib.get_close_matches(given, names, n=1, cutoff=0.75)
    alike = [n for n in close if difflib.SequenceMatcher(None, last, ends[n]).ratio() >= 0.6]
    return f", did you mean {alike[0]}?" if alike else ""
