"""Figures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jax_ddpm.files import write_atomically


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
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
