"""The two ways in which a command ends early and says why."""

MAX_LENGTH = 2000


class UserError(ValueError):
    """A mistake in what was asked for or given; its message is one sentence with the way out."""

    def __init__(self, message: object) -> None:
        """`message`: may quote what strangers wrote, for it becomes one line; see `one_line`."""
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    """`text` on one line of at most 2000 characters, none of which could command a terminal."""
    words = " ".join(text[: 10 * MAX_LENGTH].split())
    if len(words) > MAX_LENGTH:
        words = f"{words[: MAX_LENGTH // 2]} ... {words[-MAX_LENGTH // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def require(ok: bool, name: str, value: object, expected: str) -> None:
    """Raise UserError, "`name` is `value`, but it must be `expected`", unless `ok`."""
    if not ok:
        raise UserError(f"{name} is {value}, but it must be {expected}")


class Stopped(Exception):
    """Training stopped before its end, after saving."""

    def __init__(self, signum: int | None, message: str) -> None:
        """`signum`: the signal, or None where the user had said how far to go this time.

        `message`: where training stopped and how it goes on.
        """
        super().__init__(message)
        self.signum = signum
