"""The report of the quality job: JSON, a table, and the comparison with another report."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax_ddpm.errors import UserError, one_line, show_name
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.untrusted import read_json
from jax_ddpm.quality.measures import CONFIDENCE, Figures

FORMAT = "jax_ddpm quality 1"
MUST_AGREE = ("images", "features_digest", "reference_digest")


class Row(NamedTuple):
    """The figures of one set of parameters."""

    parameters: str
    figures: Figures


def write_report(
    out: Path,
    about: Mapping[str, Any],
    titles: Mapping[str, str],
    rows: list[Row],
    baseline: Row | None = None,
) -> dict[str, Any]:
    """Write the report as JSON, print it as a table, and return it.

    `baseline` has the figures of real images.
    """
    report = {"format": FORMAT, **about, "confidence": CONFIDENCE}
    report["results"] = [describe_row(row, titles) for row in rows]
    if baseline is not None:
        report["baseline"] = describe_row(baseline, titles)
    text = json.dumps(report, indent=1) + "\n"
    write_atomically(out, lambda temporary: temporary.write_text(text))
    print("\n".join(format_table(report)))
    print(f"Wrote {out}")
    return report


def describe_row(row: Row, titles: Mapping[str, str]) -> dict[str, Any]:
    """One set of figures as JSON values."""
    figures = {
        name: {"title": titles.get(name, name), "value": figure.value, "margin": figure.margin}
        for name, figure in row.figures.items()
    }
    return {"parameters": row.parameters, "figures": figures}


def format_table(report: Mapping[str, Any]) -> list[str]:
    """The lines of the table: what was measured, then one line per figure, then real images."""
    guidance = "" if report["guidance"] is None else f", guidance {report['guidance']:g}"
    how = f"{report['sampler']} in {report['steps']} steps{guidance}, seed {report['seed']}"
    lines = [
        f"{report['images']:,} images of {report['run']}, {how}",
        f"against {report['reference']}; {report['features']}",
    ]
    real = [report["baseline"]] if "baseline" in report else []
    for result in [*report["results"], *real]:
        lines.append(f"  {result['parameters']}")
        width = max(len(figure["title"]) for figure in result["figures"].values())
        for figure in result["figures"].values():
            margin = figure["margin"]
            more = "" if margin is None else f" +- {round_to(margin, margin)}"
            value = round_to(figure["value"], margin)
            lines.append(f"    {figure['title']:{width}}  {value}{more}")
    return lines


def round_to(value: float, margin: float | None) -> str:
    """Write `value` with as many digits as its `margin` leaves, and four without one."""
    if not margin or not math.isfinite(margin):
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(margin)))
    return f"{value:.{digits}f}"


def read_report(path: Path) -> dict[str, Any]:
    """Read the report in `path`, a JSON file or a run folder. Raises UserError for other files."""
    file = path / "evaluation" / "quality.json" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise UserError(f"--against {path} has not been evaluated: first run evaluate {path}")
    report = read_json(file, "a report of jax-ddpm evaluate")
    try:
        if report["format"] != FORMAT:
            raise KeyError("format")
        for name in (*MUST_AGREE, "run", "sampler", "steps"):
            report[name]
        for result in report["results"]:
            {name: (f["value"] + 0.0, f["title"]) for name, f in result["figures"].items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file} is not a report of jax-ddpm evaluate") from error
    return report


def compare_reports(report: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Print how the first figures of two reports differ, and whether that may be chance.

    Raises UserError if the figures cannot be compared.
    """
    for name in MUST_AGREE:
        if report[name] != other[name]:
            what = name.removesuffix("_digest")
            raise UserError(
                f"the reports differ in their {what} ({report[what]} here, {other[what]} there): "
                "distances can be compared only if that is the same"
            )
    how = show_name(f"{other['run']} ({other['sampler']} in {other['steps']} steps)")
    print(f"Compared with {how}:")
    mine, theirs = (each["results"][0]["figures"] for each in (report, other))
    for name, figure in mine.items():
        if name in theirs:
            print(f"  {one_line(compare_figures(figure, theirs[name]))}")


def compare_figures(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Say how two figures differ, and whether the difference is inside their joint range."""
    difference = mine["value"] - theirs["value"]
    margin, other = mine["margin"], theirs.get("margin")
    said = f"{mine['title']}: {mine['value']:.4g} here, {theirs['value']:.4g} there"
    if margin is None or other is None:
        return f"{said}, a difference of {difference:+.3g} (no range is known)"
    joint = math.hypot(margin, other)
    if abs(difference) <= joint:
        return f"{said}: {difference:+.3g} is inside the range of +- {joint:.2g}, it may be chance"
    return f"{said}: {difference:+.3g} is outside the range of +- {joint:.2g}, a real difference"
