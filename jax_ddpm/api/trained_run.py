"""`load_run`: load a trained run folder as an object that draws images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import UInt8

from jax_ddpm import runs
from jax_ddpm.api.diffusion import DENOISER, LOSS, Diffusion
from jax_ddpm.api.names import name_arguments, warn_of_low_start
from jax_ddpm.config.effects import require_no_frames
from jax_ddpm.config.jobs import SampleJob, Weights
from jax_ddpm.config.run import Config
from jax_ddpm.config.sample import SampleConfig
from jax_ddpm.devices.per_example import replicate_params
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.build import Parts, build
from jax_ddpm.jobs.generate import (
    GenerateFn,
    collect,
    generate_images,
    make_generate_fn,
    show_progress,
)
from jax_ddpm.jobs.labels import find_labels
from jax_ddpm.jobs.parameters import check_weights, load_params
from jax_ddpm.jobs.sample import choose_settings
from jax_ddpm.models import NetworkFns, make_network
from jax_ddpm.process.schedules import Schedule
from jax_ddpm.process.types import ApplyFn
from jax_ddpm.runs import metrics
from jax_ddpm.runs.log import read_rows


@dataclass(frozen=True, eq=False, repr=False)
class TrainedRun:
    """A trained network and everything needed to draw images with it; see `load_run`."""

    files: runs.Run
    """The files in the run folder, such as `files.metrics` and `files.final_grid`."""
    params: Any
    """The parameters, by default the moving average."""
    description: str
    """Which parameters these are, and from which step."""
    parts: Parts
    """The functions and tables that the settings describe."""
    temporary: TemporaryDirectory | None = None
    """The run folder, if it is removed together with this object."""
    _programs: dict[SampleConfig, GenerateFn] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.files.folder

    @property
    def config(self) -> Config:
        """All settings of the run."""
        return self.files.config

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.files.image_shape

    @property
    def apply_fn(self) -> ApplyFn:
        """The network: (params, x_t [b, h, w, c], t [b]) -> output."""
        return self.parts.network.apply_fn

    @property
    def schedule(self) -> Schedule:
        """The tables of the diffusion process."""
        return self.parts.schedule

    @property
    def prediction_type(self) -> str:
        """What the network predicts: eps, x_0 or v."""
        return self.config.diffusion.prediction_type

    @property
    def history(self) -> list[metrics.Row]:
        """What was logged while training: step, loss, and whatever else was measured.

        Warns if rows were lost or changed since then.
        """
        return read_rows(self.files.metrics, self.files.checkpoints)

    @property
    def diffusion(self) -> Diffusion:
        """The run's diffusion process, for your own losses, likelihoods and samplers.

        Its loss draws timesteps uniformly and adds no offset noise, even if training did otherwise.
        """
        of_run, drawn = self.config.diffusion, self.config.sample
        settings = {name: getattr(of_run, name) for name in LOSS}
        settings |= {name: getattr(drawn, name) for name in DENOISER if name not in LOSS}
        if not drawn.clip_x_0 and drawn.dynamic_threshold is None:
            settings["rederive_eps"] = True  # nothing is clipped, so that it makes no difference
        if not self.parts.learned_variance:
            settings["variance"] = drawn.variance
        return Diffusion(self.schedule, **settings, self_condition=self.parts.self_condition)

    def sample(
        self,
        num: int = 16,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        seed: int = 0,
        label: int | str | Sequence[int | str] | None = None,
        guidance: float | None = None,
        batch_size: int = 64,
        **settings: Any,
    ) -> UInt8[np.ndarray, "n h w c"]:
        """Draw `num` images, the same as `jax-ddpm sample RUN --num NUM --seed SEED` does.

        Settings that you do not give are the run's own. `settings` are other fields of
        SampleConfig, such as eta or spacing. `label` is a class, or several to draw in turn, by
        number or name; None draws all classes in turn. Image i depends only on the seed. Images are
        drawn `batch_size` at a time; the program is compiled once for each batch size and choice of
        settings.

        Raises UserError for settings that do not exist, naming the nearest, or that cannot work.
        """
        given = {"steps": steps, "sampler": sampler, "guidance": guidance}
        changes = {name: value for name, value in given.items() if value is not None} | settings
        job = SampleJob(num, seed=seed, batch_size=batch_size)
        asked = (label,) if isinstance(label, int | str) else label or ()
        with name_arguments(), jax.enable_x64(False):
            require_no_frames(changes, "only the finished images are returned")
            chosen = choose_settings(self.files, job, changes)
            warn_of_low_start(chosen, self.schedule.num_timesteps)
            if chosen not in self._programs:
                self._programs[chosen] = make_generate_fn(self.parts, chosen, self.image_shape)
            batches = generate_images(
                self._programs[chosen],
                replicate_params(self.params, min(batch_size, num)),
                num,
                seed=seed,
                batch_size=batch_size,
                num_labels=self.parts.num_labels,
                labels=find_labels(asked, self.files),
            )
            return collect(show_progress(batches, num)).images

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        network = type(self.config.model).__name__.removesuffix("Config")
        size = "x".join(map(str, self.image_shape))
        return (
            f"TrainedRun({self.folder}: {self.description}; {network} with {count:,} parameters, "
            f"images of {size})"
        )


def load_run(
    path: str | Path,
    *,
    weights: str | float = "ema",
    checkpoint: Literal["newest", "best"] | int = "newest",
    network: Any = None,
) -> TrainedRun:
    """Load the trained run in the folder `path`.

    Examples:
        >>> import jax_ddpm as jd
        >>> run = jd.load_run("runs/fashion-cpu")
        >>> pictures = run.sample(4, steps=4, seed=0)
        >>> pictures.shape == (4, *run.image_shape), pictures.dtype
        (True, dtype('uint8'))

    `weights` is "ema" (the moving average), "raw" (the parameters themselves) or one of the run's
    EMA decays. `checkpoint` is "newest", "best" if the run kept it, or the step of any that was
    kept. If the run was trained with your own network, pass the same `network` as to `fit`.

    Raises UserError for a folder that is not a trained run, and for weights that it does not have.
    """
    with name_arguments(), jax.enable_x64(False):
        run, wanted = runs.load(Path(path)), Weights(str(weights), checkpoint=str(checkpoint))
        check_weights(run.config, wanted)
        own = None if network is None else make_functions(network, run.image_shape)
        parts = build(run.config, run.image_shape, network=own)
        return TrainedRun(run, *load_params(run, parts, wanted), parts)


def make_functions(network: Any, image_shape: tuple[int, int, int]) -> NetworkFns:
    """Make a network from a pair of functions (init, apply_fn) or from a Linen module.

    Raises UserError for anything else.
    """
    if isinstance(network, tuple) and len(network) == 2 and all(map(callable, network)):
        return NetworkFns(*network)
    if callable(getattr(network, "init", None)) and callable(getattr(network, "apply", None)):
        functions = make_network(network, image_shape)
        # `wraps` gives it the module's signature, which shows the keywords that it takes.
        return functions._replace(apply_fn=wraps(type(network).__call__)(functions.apply_fn))
    raise UserError(
        f"network is {type(network).__name__}, but it must be a configuration such as "
        "UNetConfig(), a Linen module, or two functions (init, apply_fn)"
    )
