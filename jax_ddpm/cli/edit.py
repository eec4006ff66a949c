"""The flags for editing pictures, and the edit that they ask for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jax_ddpm.errors import UserError, flag_name
from jax_ddpm.jobs.edit import Edit, ImageToImage, Inpaint, Interpolation

EDITS = ("inpaint", "image", "interpolate")
REPAINT = 10  # --repaint-jump or --repaint-resample, if only the other is given


@dataclass(frozen=True)
class EditFlags:
    """Which pictures to edit, and how. Pictures are cropped and resized like the run's images."""

    inpaint: Path | None = None
    """Picture to redraw in part; all other pixels stay exactly as they are."""
    mask: Path | None = None
    """Picture of the same size as --inpaint: white is redrawn, black stays."""
    repaint_jump: int | None = None
    """Steps by which inpainting jumps back towards noise, so that old and new parts match
    (RePaint). None: 10 with --repaint-resample, else no jumps."""
    repaint_resample: int | None = None
    """How many times each jump is resampled (RePaint). None: 10 with --repaint-jump."""
    image: Path | None = None
    """Picture to start from instead of pure noise; see --strength."""
    strength: float | None = None
    """Fraction of the chain that --image and stochastic interpolation run, above 0 and at most 1:
    less keeps more of the picture. None: 0.5."""
    interpolate: tuple[Path, Path] | None = None
    """Two pictures, the ends of a row of --num images that lead from one to the other."""
    interpolation: Literal["ddim", "stochastic"] | None = None
    """ddim: trace both pictures back to noise with DDIM, and interpolate the noise. stochastic: add
    the same noise to both pictures, and interpolate the noisy pictures. None: ddim."""


def read_edit(flags: EditFlags) -> Edit | None:
    """The edit that `flags` ask for, if any. Raises UserError for flags that do not go together."""
    _require_sense(flags)
    strength = {} if flags.strength is None else {"strength": flags.strength}
    if flags.inpaint is not None and flags.mask is not None:
        return Inpaint(flags.inpaint, flags.mask, _read_repaint(flags))
    if flags.image is not None:
        return ImageToImage(flags.image, **strength)
    if flags.interpolate is not None:
        return Interpolation(flags.interpolate, flags.interpolation or "ddim", **strength)
    return None


def _require_sense(flags: EditFlags) -> None:
    """Raise UserError for flags that do not go together."""
    asked = [flag_name(name) for name in EDITS if getattr(flags, name) is not None]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} cannot be combined: choose one of them")
    if (flags.inpaint is None) != (flags.mask is None):
        raise UserError("--inpaint IMAGE and --mask MASK need each other: give both")
    if flags.inpaint is None and _read_repaint(flags) is not None:
        raise UserError("--repaint-jump and --repaint-resample need --inpaint IMAGE --mask MASK")
    if flags.interpolate is None and flags.interpolation is not None:
        raise UserError(f"--interpolation {flags.interpolation} needs --interpolate A B")
    uses_strength = flags.image is not None or flags.interpolation == "stochastic"
    if flags.strength is not None and not uses_strength:
        raise UserError(
            f"--strength {flags.strength:g} needs --image IMAGE, or --interpolate A B with "
            "--interpolation stochastic"
        )


def _read_repaint(flags: EditFlags) -> tuple[int, int] | None:
    """(jump, resample) if one of them is given; the other is then 10."""
    jump, resample = flags.repaint_jump, flags.repaint_resample
    if jump is None and resample is None:
        return None
    return REPAINT if jump is None else jump, REPAINT if resample is None else resample
