"""The two ways in which a command ends early and says why."""


class UserError(ValueError):
    """A mistake in what was asked for or given; its message is one sentence with the way out."""


def require(ok: bool, name: str, value: object, expected: str) -> None:
    """Raise UserError, "`name` is `value`, but it must be `expected`", unless `ok`."""
    if not ok:
        raise UserError(f"{name} is {value}, but it must be {expected}")


class Stopped(Exception):
    """Training stopped on a signal, after saving."""

    def __init__(self, signum: int, message: str) -> None:
        """`signum`: the signal; `message`: where training stopped and how it goes on."""
        super().__init__(message)
        self.signum = signum
