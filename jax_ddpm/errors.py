"""Errors that a user can act on, and the checks that raise them."""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path

MAX_LENGTH = 2000
MAX_NAME = 200
SYSTEMS = "jax_ddpm works on Linux and macOS: on Windows, use WSL (the Subsystem for Linux)"


class UserError(ValueError):
    """A user's mistake. The message is one sentence that says what to do instead."""

    def __init__(self, message: object) -> None:
        """`message` may quote untrusted text, so it is reduced to one printable line."""
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    """Put `text` on one line of at most 2000 characters, escaping control characters."""
    words = " ".join(text[: 10 * MAX_LENGTH].split())
    if len(words) > MAX_LENGTH:
        words = f"{words[: MAX_LENGTH // 2]} ... {words[-MAX_LENGTH // 4 :]}"
    return escape(words)


def escape(text: str) -> str:
    """Escape all characters that a terminal might obey, or that UTF-8 cannot express."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def show_name(name: object) -> str:
    """Show a name that comes from outside, such as that of a file or class, in at most 200 letters.

    The text stays on one line and holds no control characters.
    """
    text = str(name)
    return escape(text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}...")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had too little memory, as JAX says it."""
    return "RESOURCE_EXHAUSTED" in str(error)


def require(ok: bool, name: str, value: object, expected: str) -> None:
    """Unless `ok`, raise UserError: "`name` is `value`, but it must be `expected`"."""
    if not ok:
        raise UserError(f"{name} is {value}, but it must be {expected}")


def require_suffix(path: Path, suffix: str, flag: str = "--out") -> None:
    """Raise UserError unless the file that `flag` names ends in `suffix`, in any case."""
    require(path.suffix.lower() == suffix, flag, path, f"a file that ends in {suffix}")


def flag_name(field: str, prefix: str = "--") -> str:
    """The flag of a setting: `num_steps` with prefix "--train." is "--train.num-steps"."""
    return prefix + field.replace("_", "-")


def check_choice(
    name: str, value: object, choices: Collection[str], aliases: Mapping[str, str] | None = None
) -> str:
    """Return `value` if it is one of `choices`, or the choice that it is an alias of.

    Otherwise raises UserError with `name`, the choices and the nearest one.
    """
    aliases = aliases or {}
    if isinstance(value, str) and value in choices:
        return value
    if isinstance(value, str) and value in aliases:
        return aliases[value]
    near = nearest(str(value), [*choices, *aliases])
    hint = f": did you mean {near!r}?" if near else ""
    raise UserError(f"{name} is {value!r}, but it must be {join_or(list(choices))}{hint}")


def nearest(given: str, known: Collection[str], *, cutoff: float = 0.6) -> str | None:
    """The name in `known` closest to `given`, ignoring case, `-` and `_`; None if none is close."""

    def squash(name: str) -> str:
        return name.lower().replace("-", "").replace("_", "")

    by_squashed = {squash(name): name for name in reversed(list(known))}
    found = difflib.get_close_matches(squash(given), by_squashed, n=1, cutoff=cutoff)
    return by_squashed[found[0]] if found else None


def join_or(names: list[str]) -> str:
    """Join names for a sentence: "a", "a or b", "a, b or c"."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


class Stopped(Exception):
    """Training was stopped early, after saving a checkpoint."""

    def __init__(self, signum: int | None, message: str) -> None:
        """`signum` is the signal, or None if training reached --train.max-steps.

        `message` says where training stopped and how to resume it.
        """
        super().__init__(message)
        self.signum = signum
