"""The report's figures, as SVG that takes its colours from the page.

Importing matplotlib takes most of a second, so it is imported only when a figure is drawn.
"""

import io
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

Record = dict[str, Any]
COLOURS = {"float64": "#3f8efc", "float32": "#e8833a"}
TEXT, LINE = "#010203", "#040506"  # placeholders, replaced by the page's colours in the SVG
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


def draw_overview(parts: list[Record], quantities: list[Record]) -> str:
    """Draw every quantity as a dot at its relative difference, with one row per part."""

    def draw(figure: Any) -> None:
        figure.set_size_inches(10, 0.55 * len(parts) + 1.1)
        axes = figure.subplots()
        for row, part in enumerate(parts):
            chosen = [q for q in quantities if q["part"] == part["name"]]
            for i, (dtype, colour) in enumerate(COLOURS.items()):
                gaps = [place_on_axis(q[dtype]["relative"]) for q in chosen]
                height = row + 0.22 * (2 * i - 1) + _spread_dots(len(gaps))
                axes.scatter(gaps, height, s=11, color=colour, alpha=0.65, linewidths=0)
        for dtype, value in EPSILON.items():
            colour, label = COLOURS[dtype], f"{dtype}: spacing at 1"
            axes.axvline(value, color=colour, linewidth=1, linestyle=":")
            looks = {"color": colour, "fontsize": 8, "va": "center"}
            axes.annotate(label, (value, -0.6), (3, 0), textcoords="offset points", **looks)
        axes.set(ylim=(len(parts) - 0.5, -0.8), xlabel="difference, relative to the largest entry")
        axes.set_yticks(range(len(parts)), [part["title"] for part in parts])
        _set_log_axis(axes, "x", 1.0)

    return render_svg(draw)


def _spread_dots(count: int) -> Float[np.ndarray, " count"]:
    """Small, fixed vertical offsets, so that dots do not hide each other."""
    return 0.16 * ((np.arange(count) * 0.618) % 1 - 0.5)


def draw_curves(quantities: list[Record]) -> str:
    """Draw the difference along the steps, with one panel per quantity and dashed tolerances."""
    from matplotlib.lines import Line2D

    def draw(figure: Any) -> None:
        columns = min(COLUMNS, len(quantities))
        rows = math.ceil(len(quantities) / columns)
        figure.set_size_inches(10, 2.4 * rows + 0.3)
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, quantity in zip(panels.flat, quantities, strict=False):
            _draw_panel(axes, quantity)
        for axes in panels.flat[len(quantities) :]:
            axes.set_visible(False)
        for axes in panels[:, 0]:
            axes.set_ylabel("relative difference")
        lines = [Line2D([], [], color=colour, label=dtype) for dtype, colour in COLOURS.items()]
        figure.legend(handles=lines, loc="outside upper right", ncols=2)

    return render_svg(draw)


def _draw_panel(axes: Any, quantity: Record) -> None:
    for dtype, colour in COLOURS.items():
        measure = quantity[dtype]
        gaps = [place_on_axis(gap) for gap in measure["curve"]]
        line = axes.plot(range(1, len(gaps) + 1), gaps, color=colour, linewidth=1.1)
        if gaps.count(ZERO) > len(gaps) / 10:  # a line would jump up and down
            line[0].set(linestyle="none", marker=".", markersize=3)
        axes.axhline(measure["tolerance"], color=colour, linewidth=0.9, linestyle="--")
    axes.set_title(_wrap_title(quantity["what"]))
    axes.set_xlabel(quantity["along"])
    _set_log_axis(axes, "y", 1e-1)


def _wrap_title(text: str) -> str:
    """Break `text` at its first comma if it is long."""
    first, _, rest = text.partition(", ")
    return f"{first},\n{rest}" if len(text) > 28 and rest else text


def place_on_axis(gap: float | None) -> float:
    """Where to draw a difference: 0 at the left end, infinity and NaN (None) at the right."""
    return 1.0 if gap is None else max(gap, ZERO)


def _set_log_axis(axes: Any, which: str, end: float) -> None:
    """Make an axis logarithmic, with exactly 0 as its first tick."""
    from matplotlib.ticker import NullLocator

    step = 2 if which == "x" else 4
    powers = range(-17, int(math.log10(end)) + 1, step)
    ticks, labels = [ZERO, *(10.0**k for k in powers)], ["0", *(f"1e{k}" for k in powers)]
    axes.set(**{f"{which}scale": "log", f"{which}lim": (ZERO / 3, end * 1.5)})
    getattr(axes, f"set_{which}ticks")(ticks, labels)
    getattr(axes, f"{which}axis").set_minor_locator(NullLocator())
    axes.grid(alpha=0.6, linewidth=0.6, axis=which)


def render_svg(draw: Callable[[Any], None]) -> str:
    """Render what `draw` puts on a figure as an SVG element without size, metadata or fonts."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure, buffer = Figure(layout="constrained"), io.StringIO()
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    return svg.replace(TEXT, "currentColor").replace(LINE, "var(--line)")
