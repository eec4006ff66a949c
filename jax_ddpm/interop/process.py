"""What the code of another implementation must know of a run, apart from its network."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jax_ddpm.errors import UserError, join_or
from jax_ddpm.interop.facts import find_schedule
from jax_ddpm.models.architecture import ImageShape
from jax_ddpm.process.schedules import Betas, rescale_zero_terminal_snr


@dataclass(frozen=True)
class Process:
    """The diffusion process and the sampler of a run."""

    schedule: str | None
    """The name of the schedule; None: only the betas are known."""
    betas: Betas
    """The betas before they are rescaled to zero terminal SNR."""
    zero_terminal_snr: bool
    prediction_type: str
    learned_variance: str | None
    """learned_range or learned; None: the variance of the sampler."""
    variance: str
    sampler: str
    timesteps: np.ndarray
    """The timesteps that are visited, descending."""
    clip_x_0: bool
    dynamic_threshold: float | None
    eta: float
    rederive_eps: bool
    rescale_timesteps: bool = False

    @property
    def final_betas(self) -> Betas:
        """The betas of the run."""
        return rescale_zero_terminal_snr(self.betas) if self.zero_terminal_snr else self.betas

    def find_schedule(self, *names: str) -> str | None:
        """Find the one of our schedules `names` that has these betas; None if there is none."""
        return find_schedule(self.final_betas, False, names)

    def find_linear_ends(self) -> tuple[float, float] | None:
        """Find the ends of betas that grow linearly; None if they do not."""
        betas = self.final_betas
        start, end = float(betas[0]), float(betas[-1])
        line = np.linspace(start, end, len(betas))
        return (start, end) if np.allclose(line, betas, rtol=1e-9, atol=0) else None

    def refuse_schedule(self, known: str) -> UserError:
        """The error for a schedule that is not among the `known` ones."""
        ours = self.schedule or "without a name"
        zero = " with zero terminal SNR" if self.zero_terminal_snr else ""
        return UserError(f"its code has the schedules {known}, but the run's is {ours}{zero}")

    def require_prediction(self, *known: str) -> None:
        """Raise UserError unless the network predicts one of `known`."""
        if self.prediction_type not in known:
            raise UserError(
                f"its code takes networks that predict {join_or([*known])}, but the run's predicts "
                f"{self.prediction_type}"
            )

    def require_fixed_variance(self) -> None:
        """Raise UserError if the network predicts a variance."""
        if self.learned_variance is not None:
            raise UserError("its code does not know learned variances, which the run has")

    def require_plain_times(self) -> None:
        """Raise UserError unless the network is given t itself."""
        if self.rescale_timesteps and len(self.betas) != 1000:
            raise UserError("its code gives the network t, but the run gives it t * 1000 / T")

    def list_unsaid(self, *, variance: str, clips: bool) -> Iterator[str]:
        """List how the run's images differ from those of ancestral sampling with these settings."""
        if self.sampler != "ddpm":
            yield f"the sampler {self.sampler}; its code has ancestral sampling"
        if len(self.timesteps) != len(self.betas):
            yield f"{len(self.timesteps)} steps; its code takes all {len(self.betas)}"
        if self.learned_variance is None and self.sampler == "ddpm" and self.variance != variance:
            yield f"the variance {self.variance}; its code has {variance}"
        yield from self.list_clipping(clips=clips)

    def list_clipping(self, *, clips: bool) -> Iterator[str]:
        """List how the run treats predictions of the clean image, unless it clips as told."""
        if self.dynamic_threshold is not None:
            yield f"the dynamic threshold {self.dynamic_threshold:g}"
        elif self.clip_x_0 != clips:
            does = "clips" if clips else "does not clip"
            kind = "clipped" if self.clip_x_0 else "unclipped"
            yield f"{kind} predictions of the clean image; its code {does} them"


def list_settings(process: Process, image_shape: ImageShape) -> dict[str, str]:
    """List the settings of a run that the text of a package names."""
    return {
        "images": "x".join(map(str, image_shape)),
        "schedule": f"{process.schedule or 'without a name'}, {len(process.betas)} timesteps",
        "the network predicts": process.prediction_type,
        "sampler": f"{process.sampler}, {len(process.timesteps)} steps",
    }
