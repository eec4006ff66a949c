"""Every command line in the README, the changelog and the docs can be read."""

import re
import shlex
from pathlib import Path

import pytest

from jax_ddpm.cli import bench, convert, evaluate, parity, plot, prepare, report, sample, train
from jax_ddpm.config.run import validate
from jax_ddpm.config.train_effects import require_effects

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
READ = {
    "train": train.read,
    "sample": sample.read,
    "evaluate": evaluate.read,
    "convert": convert.read,
    "plot": plot.read,
    "parity": parity.read,
    "prepare": prepare.read,
    "bench": bench.read,
    "report": report.read,
}


def find_lines():
    """Find every `jax-ddpm ...` with arguments, in code blocks and inline."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        # Also after `srun`, an environment variable, or in quotes.
        lines = re.findall(
            r"^.*?(?<![\w/`.])jax-ddpm ([a-z][^`]*?)\"?(?:  +#.*)?$", text, re.MULTILINE
        )
        for line in dict.fromkeys(
            [*lines, *re.findall(r"`(?:[^`\n]*&& )?jax-ddpm ([^`\n]*)`", text)]
        ):
            complete = " " in line and not line.endswith("--run")
            if complete and "|" not in line and "..." not in line:
                yield pytest.param(line, id=f"{page.stem}: {line[:60]}")


@pytest.mark.parametrize("line", list(find_lines()))
def test_a_documented_command_line_can_be_read(line):
    command, *args = shlex.split(line.replace("--preset NAME", "--preset annotated"))
    if "--help" in args or "--help-all" in args:
        with pytest.raises(SystemExit):
            READ[command](args)
        return
    found = READ[command](args)
    if command == "train":
        parsed, _ = found
        validate(parsed.flags.config)
        require_effects(parsed.flags.config, parsed.arguments.given)
