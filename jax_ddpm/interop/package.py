"""A folder for another implementation: weights, documents, and a text on how to load them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_ddpm.files.atomic import write_folder_atomically
from jax_ddpm.interop.files import write_weights

README = """# {title}

Weights of a run of jax_ddpm for {peer}.

{how}

| setting of the run | value |
|---|---|
{rows}
{unsaid}"""


class Translation(NamedTuple):
    """Weights in another implementation's format, and its network's constructor arguments."""

    source: str
    state_dict: dict[str, np.ndarray]
    arguments: dict[str, Any]


class Package(NamedTuple):
    """What is written for another implementation, apart from the weights themselves."""

    weights: str
    """The name of the weight file."""
    documents: dict[str, Any]
    """The names of JSON files -> what they hold."""
    peer: str
    how: str
    """How the implementation loads it: a few sentences and a block of code."""
    unsaid: tuple[str, ...] = ()
    """Settings of the run's sampler that the implementation's code does not have."""
    prefix: str = ""
    """The prefix of each tensor's name."""


def write_readme(package: Package, title: str, settings: Mapping[str, Any]) -> str:
    """Write the text that goes with a package."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
    unsaid = ""
    if package.unsaid:
        listed = "\n".join(f"- {line}" for line in package.unsaid)
        unsaid = f"\nThe run draws its images otherwise, with\n\n{listed}\n"
    return README.format(title=title, peer=package.peer, how=package.how, rows=rows, unsaid=unsaid)


def show_code(lines: Iterable[str], language: str = "python") -> str:
    """A block of code in Markdown."""
    return "\n".join([f"```{language}", *lines, "```"])


def write_folder(
    out: Path,
    documents: Mapping[str, Any],
    readme: str,
    weights: str,
    state_dict: Mapping[str, Any],
) -> None:
    """Write a folder with these JSON documents, completely or not at all."""
    with write_folder_atomically(out) as temporary:
        for name, document in documents.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document, indent=2) + "\n")
        (temporary / "README.md").write_text(readme, "utf-8", "backslashreplace")
        write_weights(temporary / weights, state_dict)
