"""What was logged already, for programs that cannot forget the steps after a checkpoint.

A resumed run takes those steps again, to the same values, so they are not logged again.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.untrusted import read_json


@dataclass
class Marks:
    """A file that remembers the run's name in the program, and the last step of each kind."""

    path: Path
    id: str | None = None
    """The program's own name of the run; None before it has one."""
    steps: dict[str, int] = field(default_factory=dict)

    def load(self) -> None:
        """Read the file if it is there. One that cannot be read counts as none."""
        try:
            found = read_json(self.path, "a logger's notes") if self.path.exists() else {}
            self.id = str(found["id"])
            self.steps = {str(kind): int(step) for kind, step in found["steps"].items()}
        except (UserError, KeyError, TypeError, ValueError, AttributeError):
            self.id, self.steps = None, {}

    def name(self, id_: str) -> None:
        """Remember the program's own name of the run."""
        self.id = id_
        self._save()

    def advance(self, kind: str, step: int) -> bool:
        """Whether `step` was not logged before; if so, from now on it was."""
        if step <= self.steps.get(kind, -1):
            return False
        self.steps[kind] = step
        self._save()
        return True

    def _save(self) -> None:
        text = json.dumps({"id": self.id, "steps": self.steps})
        write_atomically(self.path, lambda temporary: temporary.write_text(text))
