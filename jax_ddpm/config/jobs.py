"""Settings of the jobs that use a trained run. Each field's docstring is the help of its flag."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jax_ddpm.data.sources import SourceName, Split
from jax_ddpm.process.grids import GridName
from jax_ddpm.quality.measures import MeasureName, find_measures
from jax_ddpm.samplers import SamplerName


@dataclass(frozen=True)
class Weights:
    """Which parameters of a run are used."""

    weights: str = "ema"
    """ema: the moving average of the parameters. raw: the parameters themselves. A number: the
    average with that decay, which is train.ema_decay or one of train.ema_decays."""
    posthoc_ema: float | None = None
    """Relative width of an average made from the run's snapshots (see train.posthoc_ema)."""
    posthoc_step: int | None = None
    """The step at which that average ends; None: the last snapshot."""
    checkpoint: str = "newest"
    """newest, best (for a run with train.keep_best, see train.best_by), or the step of any
    checkpoint that was kept (see train.keep_every)."""


EMA = Weights()  # the moving average in the newest checkpoint


@dataclass(frozen=True)
class SampleJob:
    """Which images are drawn, and where they are written."""

    num: int = 64
    """Number of images."""
    out: Path | None = None
    """File to write: .png (an image grid), .gif (the grid as it emerges from noise) or .npz (arr_0,
    uint8 [n, h, w, c], with labels and class_names for a network trained with labels); or a folder,
    which gets one PNG file per image. An .npz and a folder are written as images come. None:
    samples/seed_SEED.png in the run folder, with all that differs from the run's settings in the
    name."""
    trajectory: bool = False
    """Also write a GIF of the images emerging from noise, beside --out."""
    seed: int = 0
    """Seed of all noise. Image i depends only on the seed, not on --num or --batch-size."""
    label: tuple[str, ...] = ()
    """Classes by name or number, drawn in turn, for a network trained with labels; default: all
    classes in turn. A name counts before a number."""
    classifier: str | None = None
    """FILE.py:FUNCTION, your own classifier to guide by: log_prob(x_t, t, label), in JAX, returns
    one log probability of the label per noisy image. The file is executed."""
    dtype: Literal["float32", "float64"] = "float32"
    """float64: noise, tables and network in double precision, to compare with PyTorch."""
    batch_size: int = 64
    """Images per call of the compiled program."""


@dataclass(frozen=True)
class QualityJob:
    """How the quality of a run's images is measured."""

    measures: tuple[MeasureName, ...] = ()
    """What to measure: frechet or fid, kernel or kid, score or is (these are FID, KID and Inception
    Score with Inception's features), precision (and recall), density (and coverage), prdc (these
    four); default: all that can be."""
    num: int = 2048
    """Number of images to draw. A distance depends on it: papers give FID for 50000."""
    features: str | None = None
    """Features to compare images in. fashion: the classifier of Fashion-MNIST that ships, for grey
    images of 28x28. inception: those of FID. FILE.py:FUNCTION: your own, features(images), in JAX,
    from uint8 [b, h, w, c] to [b, d]; the file is executed. None: fashion if it fits, or inception.
    """
    inception: Path | None = None
    """Inception's weights, pt_inception-2015-12-05-6726825d.pth; None: fetched once into the user's
    cache."""
    reference: Path | None = None
    """An .npz file with mu and sigma to compare with (pytorch-fid, clean-fid, EDM); None: the run's
    images."""
    split: Split = "train"
    """Which of the run's images to compare with: train, as papers do, or test."""
    raw_too: bool = False
    """Also measure the raw parameters, with the same seed."""
    against: Path | None = None
    """Another run that was evaluated, or its report, to compare with: says which differences may be
    chance."""
    write_reference: Path | None = None
    """Also write mu and sigma of the reference to this .npz file, for other tools."""
    batch_size: int = 64
    """Images per call of the compiled programs."""
    seed: int = 0
    """Seed of all noise. Image i depends only on the seed, not on --num or --batch-size."""
    out: Path | None = None
    """JSON file to write, with a picture of nearest neighbours beside it. None:
    evaluation/quality.json in the run folder."""

    def __post_init__(self) -> None:
        """Replace the field's names of measures, such as fid, by ours."""
        object.__setattr__(self, "measures", find_measures(self.measures))


@dataclass(frozen=True)
class EvaluateJob:
    """How the likelihood of a run's images is computed."""

    method: Literal["bound", "ode"] = "bound"
    """bound: the variational bound, term by term. ode: the likelihood of the probability flow."""
    num: int | None = None
    """Number of images, spread evenly over the data; None: 256, or all if there are fewer."""
    split: Split = "train"
    """train: the training images. test: the test images, which training does not see."""
    respacing: str | None = None
    """bound: timesteps to visit, such as "250", "10,15,20" or "ddim50"; None: all."""
    variance: Literal["fixed_small", "fixed_large"] | None = None
    """bound: variance of the reverse process, if it is not learned; None: sample.variance."""
    steps: int | None = None
    """ode: steps of Heun's method, with two network evaluations each; None: 200, or T - 1 if that
    is less."""
    probes: int | None = None
    """ode: random directions per image for the estimate of the divergence; None: 1."""
    clip_x_0: bool | None = None
    """Clip each predicted clean image to [-1, 1]; None: bound uses the run's setting, ode does not
    clip."""
    batch_size: int = 16
    """Images per call of the compiled program."""
    seed: int = 0
    """Seed of all noise. The noise of an image depends only on the seed and its place in the data.
    """
    out: Path | None = None
    """JSON file to write, with a figure beside it. None: evaluation/likelihood.json in the run
    folder."""


@dataclass(frozen=True)
class CompareJob:
    """Which samplers are compared, and with how many images."""

    samplers: tuple[SamplerName, ...] = ()
    """Samplers to compare; default: all."""
    evaluations: tuple[int, ...] = (5, 10, 20, 50)
    """Numbers of network evaluations per image; each sampler takes as many steps as they allow."""
    num: int = 512
    """Images for each sampler and number of evaluations."""
    spacing: GridName | None = None
    """Spacing of the timesteps for all samplers; None: each sampler's own, or else the run's."""
    features: str | None = None
    """Features in which the Frechet distance is measured, as in evaluate; None: those that ship for
    grey images of 28x28, and for others the energy distance between pixels."""
    seed: int = 0
    """Seed of all noise, the same for every sampler."""
    batch_size: int = 64
    """Images per call of the compiled program."""
    out: Path | None = None
    """PNG file to write, with the numbers in a JSON file beside it. None: samplers.png in the run
    folder."""


@dataclass(frozen=True)
class ChainSettings:
    """The forward process that a figure shows."""

    preset: str = "fashion-cpu"
    """The preset that provides the schedule, T and the data."""
    run: Path | None = None
    """Folder of a run that provides them instead."""
    num_timesteps: int | None = None
    """T; None: the preset's or the run's."""
    beta_start: float | None = None
    """The first beta, for a schedule that is built from two betas; None: the schedule's own."""
    beta_end: float | None = None
    """The last beta, or the only one of const; None: the schedule's own."""
    cosine_s: float | None = None
    """The offset s of the cosine schedules; None: 0.008."""
    betas_file: Path | None = None
    """A file with all betas, in place of a schedule: .npy, or text with one number after the other.
    """


@dataclass(frozen=True)
class FigureData:
    """Which images a figure shows."""

    name: SourceName | None = None
    """The kind of data; None: what the path holds, or the preset's or the run's data."""
    path: Path | None = None
    """The folder or file that holds the data."""
