"""Turn the results of a suite into the tables of docs/performance.md."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from jax_ddpm.jobs.bench.networks import NETWORKS

Results = Mapping[str, Mapping[str, Any]]
KINDS = {"step": "training step", "sampling_1": "DDIM, batch 1", "sampling_16": "DDIM, batch 16"}
MISSING = "not measured"


def format_page(results: Results) -> str:
    """The tables, in Markdown. What was not measured is left out or named as such."""
    parts = [*format_networks(results), *format_growth(results)]
    for name in ("devices", "start", "data"):
        if name in results:
            parts += ["", f"## {name.capitalize()}", "", *format_rows(results[name]["rows"])]
    return "\n".join(parts) + "\n"


def find_rows(results: Results, network: str, kind: str) -> dict[str, dict[str, Any]]:
    """The contestants of a network and kind of work, by name; empty if it was not measured."""
    found = results.get(f"{network}_{kind}", {}).get("rows", [])
    return {row["contestant"]: row for row in found}


def format_networks(results: Results) -> Iterator[str]:
    """Yield the lines of the table that has a row for each network and kind of work."""
    yield "## Beside PyTorch"
    yield ""
    yield (
        "| network | against | work | jax_ddpm, images/s | eager | channels-last | compiled "
        "| times eager | times the fastest | of peak |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for network, subject in NETWORKS.items():
        for kind, title in KINDS.items():
            if rows := find_rows(results, network, kind):
                about = results[f"{network}_{kind}"]
                batch = f" of {about['batch']}" if kind == "step" else ""
                cells = [subject.title, about["against"] or "nobody", f"{title}{batch}"]
                yield f"| {' | '.join([*cells, *format_contest(rows)])} |"
    yield ""


def format_contest(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the cells that compare the contestants of one network."""
    ours = rows["jax_ddpm"]
    yield f"{ours['images/s']:.3g}"
    for peer in ("eager", "channels_last", "compile"):
        yield f"{rows[peer]['images/s']:.3g}" if peer in rows else MISSING
    yield f"{ours['times eager']:.2f}" if "times eager" in ours else MISSING
    ratio = compare_with_fastest(rows)
    yield MISSING if ratio is None else f"{ratio:.2f}"
    yield f"{ours['of peak']:.0%}"


def compare_with_fastest(rows: Mapping[str, Mapping[str, Any]]) -> float | None:
    """How many times faster we are than the fastest peer, by medians; None without peers."""
    theirs = [row["images/s"] for name, row in rows.items() if name != "jax_ddpm"]
    return rows["jax_ddpm"]["images/s"] / max(theirs) if theirs else None


def list_ratios(results: Results) -> dict[str, dict[str, float]]:
    """For each kind of work, the ratio to the fastest peer by network, for the figure."""
    found: dict[str, dict[str, float]] = {}
    for kind, title in KINDS.items():
        for network in NETWORKS:
            rows = find_rows(results, network, kind)
            ratio = compare_with_fastest(rows) if rows else None
            if ratio is not None:
                found.setdefault(title, {})[network] = ratio
    return found


def format_growth(results: Results) -> Iterator[str]:
    """Yield a table for each curve of `bench growth`, with the line through its points."""
    rows = results.get("growth", {}).get("rows", [])
    if rows:
        yield "## Cost as work grows"
    for (what, over), points in groupby(rows, lambda row: (row["what"], row["over"])):
        cells = list(points)
        yield ""
        yield f"| {over} | {' | '.join(str(row['at']) for row in cells)} |"
        yield "|---|" + "---|" * len(cells)
        for name, key in ((what, "value"), ("a straight line", "line")):
            yield f"| {name} | {' | '.join(format_cell(row[key]) for row in cells)} |"


def format_rows(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table of rows with the same keys."""
    yield f"| {' | '.join(rows[0])} |"
    yield "|---|" + "---|" * (len(rows[0]) - 1)
    for row in rows:
        yield f"| {' | '.join(map(format_cell, row.values()))} |"


def format_cell(value: Any) -> str:
    """Three digits of a number, or a text as it is."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
