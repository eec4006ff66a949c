"""Figures: the loss curve, the tables of schedules, pictures at several noise levels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from jax_ddpm.files import write_atomically

Curves = Mapping[str, Float[np.ndarray, " T"]]


def save_loss_curve(path: Path, steps: Sequence[int], losses: Sequence[float]) -> None:
    """Plot the logged losses, and their running mean over a twentieth of the run, as PNG."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="0.75", linewidth=1, label="logged")
    window = max(1, len(losses) // 20)
    if window > 1:
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color="C0", label=f"mean of {window}")
        axes.legend()
    axes.set(xlabel="training step", ylabel="loss", yscale="log", title="Training loss")
    axes.grid(alpha=0.3, which="both")
    _save(figure, path)


def save_curves(path: Path, panels: Mapping[str, Curves]) -> None:
    """Plot tables over t as PNG: one panel per table, one curve per schedule."""
    columns = 3
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, curves) in zip(grid, panels.items(), strict=False):
        for label, values in curves.items():
            axes.plot(np.arange(len(values)), values, label=label, linewidth=1.5)
        largest = max(float(np.max(values)) for values in curves.values())
        middle = max(float(np.median(values)) for values in curves.values())
        steep = middle > 0 and largest > 20 * middle
        axes.set(title=title, xlabel="t", yscale="log" if steep else "linear")
        axes.grid(alpha=0.3)
    for axes in grid[len(panels) :]:
        axes.axis("off")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5))
    _save(figure, path)


def save_rows(
    path: Path, titles: Sequence[str], pictures: UInt8[np.ndarray, "row column h w c"]
) -> None:
    """Draw `pictures` in rows, each column under its title, as PNG."""
    rows, columns = pictures.shape[:2]
    figure = Figure(figsize=(1.6 * columns, 1.6 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, cells in enumerate(grid):
        for column, axes in enumerate(cells):
            picture = pictures[row, column]
            grey = picture.shape[-1] == 1
            axes.imshow(picture[..., 0] if grey else picture, cmap="gray", vmin=0, vmax=255)
            axes.axis("off")
            if row == 0:
                axes.set_title(titles[column], fontsize=9)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
