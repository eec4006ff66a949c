"""Save figures as PNG files: losses, schedule tables, rows of pictures, quality, likelihood, bars.

Importing matplotlib takes most of a second, so it is imported only when a figure is drawn.
"""

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jax_ddpm.files.atomic import write_atomically

Curves = Mapping[str, Float[np.ndarray, " T"]]


def save_loss_curve(
    path: Path,
    steps: Sequence[int],
    losses: Sequence[float],
    others: Mapping[str, tuple[Sequence[int], Sequence[float]]] | None = None,
    *,
    distances: tuple[Sequence[int], Sequence[float]] = ((), ()),
    title: str = "",
) -> None:
    """Plot the logged losses, and their running mean over about a twentieth of the rows.

    `others` maps the names of further losses to (steps, losses). `distances`, which are called
    `title`, get an axis of their own.
    """
    others = {name: curve for name, curve in (others or {}).items() if len(curve[0])}
    figure = _make_figure(7, 4)
    axes = figure.subplots()
    axes.plot(steps, losses, color="0.75", linewidth=1, label="logged")
    reach = len(losses) // 40
    if reach:
        smooth = smooth_values(losses, reach)
        axes.plot(steps, smooth, color="C0", label=f"mean of {2 * reach + 1}")
    for i, (name, curve) in enumerate(others.items()):
        axes.plot(*curve, color=f"C{i + 1}", marker=".", label=name)
    if reach or others:
        axes.legend()
    heading = "Losses" if others else "Training loss"
    axes.set(xlabel="training step", ylabel="loss", yscale="log", title=heading)
    axes.grid(alpha=0.3, which="both")
    if len(distances[0]):
        right = axes.twinx()
        right.plot(*distances, color="C3", marker="s", markersize=4)
        right.set(ylabel=title or "distance", yscale="log")
        right.yaxis.label.set_color("C3")
    _save(figure, path)


def smooth_values(values: Sequence[float], reach: int) -> Float[np.ndarray, " n"]:
    """The mean of each value and its neighbours, `reach` on either side, or fewer near an end.

    There are always as many on one side as on the other, so that a curve that falls is not lifted.
    """
    n, sums = len(values), np.append(0.0, np.cumsum(values, dtype=np.float64))
    i = np.arange(n)
    sides = np.minimum(reach, np.minimum(i, n - 1 - i))
    return (sums[i + sides + 1] - sums[i - sides]) / (2 * sides + 1)


def save_curves(path: Path, panels: Mapping[str, Curves]) -> None:
    """Plot tables over t: one panel per table, one curve per schedule."""
    columns = 3
    rows = -(-len(panels) // columns)
    figure = _make_figure(4.2 * columns, 3 * rows)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, curves) in zip(cells, panels.items(), strict=False):
        for label, values in curves.items():
            axes.plot(np.arange(len(values)), values, label=label, linewidth=1.5)
        axes.set(title=title, xlabel="t")
        axes.grid(alpha=0.3)
    for axes in cells[len(panels) :]:
        axes.axis("off")
    handles, labels = cells[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5))
    _save(figure, path)


def save_rows(
    path: Path, titles: Sequence[str], pictures: UInt8[np.ndarray, "row column h w c"]
) -> None:
    """Draw `pictures` in rows, with a title above each column."""
    rows, columns = pictures.shape[:2]
    figure = _make_figure(1.6 * columns, 1.6 * rows + 0.4)
    cells = figure.subplots(rows, columns, squeeze=False)
    for (row, column), axes in np.ndenumerate(cells):
        picture = pictures[row, column]
        grey = picture.shape[-1] == 1
        axes.imshow(picture[..., 0] if grey else picture, cmap="gray", vmin=0, vmax=255)
        axes.axis("off")
        if row == 0:
            axes.set_title(titles[column], fontsize=9)
    _save(figure, path)


def save_quality(
    path: Path,
    panels: Mapping[str, Mapping[str, Mapping[int, float]]],
    by_chance: Sequence[float],
    distance: str,
) -> None:
    """Plot the distance to the data against network evaluations: a panel per kind of sampler.

    `by_chance` holds distances between parts of the data, whose range is drawn as a band.
    """
    figure = _make_figure(5.5 * len(panels) + 0.5, 6)
    cells = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (kind, curves) in zip(cells, panels.items(), strict=True):
        for i, (name, values) in enumerate(curves.items()):
            looks = {"color": pick_color(i, len(curves)), "marker": MARKERS[i % len(MARKERS)]}
            axes.plot(list(values), list(values.values()), label=name, markersize=6, **looks)
        axes.axhspan(min(by_chance), max(by_chance), color="0.85", label="other data", zorder=0)
        ticks = sorted({n for values in curves.values() for n in values})
        axes.set(xscale="log", xlabel="network evaluations per image", title=f"{kind} samplers")
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", ncols=2, fontsize=9)
    every = [value for curves in panels.values() for c in curves.values() for value in c.values()]
    _set_limits(cells[0], np.array([*every, *by_chance]))
    cells[0].set_ylabel(f"{distance} to the data")
    _save(figure, path)


MARKERS = "os^vD<>pPX*dhH8"


def pick_color(i: int, count: int) -> tuple[float, float, float]:
    """Pick a colour for the i-th of `count` curves: hues around the circle, dark and light."""
    return colorsys.hls_to_rgb(i / count, (0.35, 0.55)[i % 2], 0.8)


def _set_limits(axes: Any, values: Float[np.ndarray, " n"]) -> None:
    """Choose a logarithmic axis if all values are positive, and limits without empty space."""
    positive = bool(np.all(values > 0))  # an unbiased estimate can be negative
    axes.set_yscale("log" if positive else "linear")
    ends = np.log(values) if positive else values
    low, high = ends.min(), ends.max()
    margin = 0.04 * (high - low)
    limits = np.array([low - margin, high + margin])
    axes.set_ylim(*(np.exp(limits) if positive else limits))
    if positive:
        from matplotlib.ticker import LogFormatter

        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(LogFormatter(minor_thresholds=(2, 0.5)))  # 20 and not 2 x 10^1


def save_likelihood(path: Path, report: Mapping[str, Any]) -> None:
    """Plot a histogram of all images' bits per dimension and, for a bound, its terms over t.

    `report` holds bits_per_dimension and bits_of_each_image, and for a bound also timesteps, terms
    and prior.
    """
    bound = "terms" in report
    figure = _make_figure(10.5 if bound else 5.5, 4.2)
    panels = figure.subplots(1, 2 if bound else 1, squeeze=False)[0]
    if bound:
        _plot_terms(panels[0], report)
    bits, mean = report["bits_of_each_image"], report["bits_per_dimension"]
    panels[-1].hist(bits, bins=min(40, 5 + len(bits) // 8), color="C0", alpha=0.75)
    panels[-1].axvline(mean, color="C3", linewidth=1.5, label=f"mean {mean:.3f}")
    panels[-1].set(xlabel="bits per dimension", ylabel="images", title="Each image")
    panels[-1].legend()
    panels[-1].grid(alpha=0.3)
    _save(figure, path)


def _plot_terms(axes: Any, report: Mapping[str, Any]) -> None:
    """Plot the terms over t + 1 on logarithmic axes, with L_0 and the prior as points."""
    t, terms = np.asarray(report["timesteps"]) + 1, np.asarray(report["terms"])
    axes.plot(t[1:], terms[1:], color="C0", linewidth=1.5, label="$L_t$")
    axes.plot(t[:1], terms[:1], "o", color="C1", label=f"$L_0$, the pixels: {terms[0]:.3g}")
    prior, lowest = report["prior"], 0.3 * float(terms.min())
    below = prior < lowest  # if so, it is drawn at the edge, to keep the terms legible
    marker, label = "v" if below else "s", f"prior: {prior:.3g}"
    axes.plot(t[-1:], [max(prior, lowest)], marker, color="C2", clip_on=False, label=label)
    title = f"Terms of the bound, {report['bits_per_dimension']:.3f} in all"
    axes.set(xscale="log", yscale="log", xlabel="t + 1", ylabel="bits per dimension", title=title)
    if below:
        axes.set_ylim(bottom=lowest)
    axes.legend()
    axes.grid(alpha=0.3, which="both")


def save_bars(path: Path, groups: Mapping[str, Mapping[str, float]], title: str) -> None:
    """Plot a group of horizontal bars per name, a colour per key of `groups`, with a line at 1."""
    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    figure = _make_figure(8, 1.2 + 0.5 * max(len(names), 1))
    axes = figure.subplots()
    height = 0.8 / max(len(groups), 1)
    for i, (label, values) in enumerate(groups.items()):
        places = [names.index(name) + i * height for name in values]
        bars = axes.barh(places, list(values.values()), height, label=label)
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    axes.axvline(1, color="0.3", linewidth=1)
    axes.set_yticks(np.arange(len(names)) + 0.4 - height / 2, names)
    axes.invert_yaxis()
    axes.set(xlabel=title)
    if groups:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, path)


def _make_figure(width: float, height: float) -> Any:
    """Make a matplotlib Figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
