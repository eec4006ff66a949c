"""The figures of the page, as SVG that takes its colours from the page."""

import io
import math
import re
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

Record = dict[str, Any]
COLOURS = {"float64": "#3f8efc", "float32": "#e8833a"}
TEXT, LINE = "#010203", "#040506"  # stand for the page's colours until the SVG is written
EPSILON = {dtype: float(np.finfo(dtype).eps) for dtype in COLOURS}
ZERO = 1e-19  # where a difference of exactly 0 is drawn on a logarithmic axis
COLUMNS = 4
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "parity",
    "font.size": 9,
    "text.color": TEXT,
    "axes.edgecolor": LINE,
    "axes.labelcolor": TEXT,
    "axes.titlesize": 9,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
}


def overview(parts: list[Record], quantities: list[Record]) -> str:
    """Every quantity as a dot at its relative difference, a row per part."""

    def draw() -> Figure:
        figure = Figure(figsize=(10, 0.55 * len(parts) + 1.1), layout="constrained")
        axes = figure.subplots()
        for row, part in enumerate(parts):
            chosen = [q for q in quantities if q["part"] == part["name"]]
            for i, dtype in enumerate(COLOURS):
                gaps = [drawn(q[dtype]["relative"]) for q in chosen]
                height = row + 0.22 * (2 * i - 1) + _spread(len(gaps))
                axes.scatter(gaps, height, s=11, color=COLOURS[dtype], alpha=0.65, linewidths=0)
        for dtype, value in EPSILON.items():
            axes.axvline(value, color=COLOURS[dtype], linewidth=1, linestyle=":")
            axes.annotate(f"{dtype}: spacing at 1", (value, -0.6), color=COLOURS[dtype], fontsize=8,
                          xytext=(3, 0), textcoords="offset points", va="center")  # fmt: skip
        axes.set(ylim=(len(parts) - 0.5, -0.8), xlabel="difference, relative to the largest entry")
        axes.set_yticks(range(len(parts)), [part["title"] for part in parts])
        _log_axis(axes, "x", 1.0)
        return figure

    return to_svg(draw)


def _spread(count: int) -> np.ndarray:
    """Small vertical offsets, the same every time, so that dots do not hide each other."""
    return 0.16 * ((np.arange(count) * 0.618) % 1 - 0.5)


def curves(quantities: list[Record]) -> str:
    """The difference along the steps: a panel per quantity, tolerances dashed."""

    def draw() -> Figure:
        columns = min(COLUMNS, len(quantities))
        rows = math.ceil(len(quantities) / columns)
        figure = Figure(figsize=(10, 2.4 * rows + 0.3), layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, quantity in zip(grid.flat, quantities, strict=False):
            _draw_curves(axes, quantity)
        for axes in grid.flat[len(quantities) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("relative difference")
        lines = [Line2D([], [], color=colour, label=dtype) for dtype, colour in COLOURS.items()]
        figure.legend(handles=lines, loc="outside upper right", ncols=2)
        return figure

    return to_svg(draw)


def _draw_curves(axes: Axes, quantity: Record) -> None:
    for dtype, colour in COLOURS.items():
        measure = quantity[dtype]
        gaps = [drawn(gap) for gap in measure["curve"]]
        line = axes.plot(range(1, len(gaps) + 1), gaps, color=colour, linewidth=1.1)
        if gaps.count(ZERO) > len(gaps) / 10:  # a line would jump up and down
            line[0].set(linestyle="none", marker=".", markersize=3)
        axes.axhline(measure["tolerance"], color=colour, linewidth=0.9, linestyle="--")
    axes.set_title(_wrapped(quantity["what"]))
    axes.set_xlabel(quantity["along"])
    _log_axis(axes, "y", 1e-1)


def _wrapped(text: str) -> str:
    """A title of at most two lines, broken at a comma."""
    first, _, rest = text.partition(", ")
    return f"{first},\n{rest}" if len(text) > 28 and rest else text


def drawn(gap: float | None) -> float:
    """Where a difference is drawn: 0 at the left end, what is not finite at the right."""
    return 1.0 if gap is None else max(gap, ZERO)


def _log_axis(axes: Axes, which: str, end: float) -> None:
    """A logarithmic axis whose first tick is exactly 0."""
    ticks = [
        ZERO,
        *(10.0**k for k in range(-17, int(math.log10(end)) + 1, 2 if which == "x" else 4)),
    ]
    labels = ["0", *(f"1e{round(math.log10(tick))}" for tick in ticks[1:])]
    axes.set(**{f"{which}scale": "log", f"{which}lim": (ZERO / 3, end * 1.5)})
    getattr(axes, f"set_{which}ticks")(ticks, labels)
    getattr(axes, f"{which}axis").set_minor_locator(matplotlib.ticker.NullLocator())
    axes.grid(alpha=0.6, linewidth=0.6, axis=which)  # type: ignore[arg-type]


def to_svg(draw: Callable[[], Figure]) -> str:
    """The SVG element alone: no size, no metadata, no font, and the page's colours."""
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        buffer = io.StringIO()
        draw().savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    return svg.replace(TEXT, "currentColor").replace(LINE, "var(--line)")
