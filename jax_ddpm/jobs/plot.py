"""The jobs of `scripts/plot.py`: schedules and their constants, pictures on their way to noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from jax_ddpm.config.presets import find_preset
from jax_ddpm.config.run import MAX_TIMESTEPS, Config, validate_seed
from jax_ddpm.data.pictures import FittedArrays, Form, Picture, read_picture
from jax_ddpm.errors import UserError, require
from jax_ddpm.files.figures import save_curves, save_rows
from jax_ddpm.files.images import from_uint8, to_uint8
from jax_ddpm.jobs.build import open_data
from jax_ddpm.process.diffusion import q_sample
from jax_ddpm.process.schedules import BETAS, Schedule, ScheduleName, make_schedule


@dataclass(frozen=True)
class SchedulesArgs:
    """Plot the constants of one or several schedules over t."""

    out: Path = Path("schedules.png")
    """PNG file to write."""
    preset: str = "fashion-cpu"
    """Its schedule is plotted, with its T."""
    schedules: tuple[ScheduleName, ...] = ()
    """Schedules to compare; default: that of the preset."""
    num_timesteps: int | None = None
    """T; default: that of the preset."""


def plot_schedules(args: SchedulesArgs) -> Path:
    """Write the figure. Raises UserError for a schedule that is not valid at this T."""
    diffusion = find_preset(args.preset).diffusion
    names = args.schedules or (diffusion.schedule,)
    num_timesteps = args.num_timesteps
    if num_timesteps is None:
        num_timesteps = diffusion.num_timesteps
    possible = 1 <= num_timesteps <= MAX_TIMESTEPS
    require(possible, "--num-timesteps", num_timesteps, f"between 1 and {MAX_TIMESTEPS:,}")
    curves: dict[str, dict[str, Float[np.ndarray, " T"]]] = {}
    for name in names:
        try:
            schedule = make_schedule(BETAS[name](num_timesteps))
        except ValueError as error:
            raise UserError(f"{name} with T = {num_timesteps}: {error}") from error
        for constant, values in constants(schedule).items():
            curves.setdefault(constant, {})[name] = values
    save_curves(args.out, curves)
    print(f"Wrote {args.out}: {', '.join(names)} with T = {num_timesteps}")
    return args.out


def constants(schedule: Schedule) -> Mapping[str, Float[np.ndarray, " T"]]:
    """What the tutorials compute before they train, by their names."""
    betas, alphas_cumprod = np.asarray(schedule.betas), np.asarray(schedule.alphas_cumprod)
    return {
        "betas": betas,
        "alphas": 1 - betas,
        "alphas_cumprod": alphas_cumprod,
        "sqrt_recip_alphas": 1 / np.sqrt(1 - betas),
        "sqrt_alphas_cumprod": np.asarray(schedule.sqrt_alphas_cumprod),
        "sqrt_one_minus_alphas_cumprod": np.asarray(schedule.sqrt_one_minus_alphas_cumprod),
        "posterior_variance": np.asarray(schedule.posterior_variance),
        "posterior_mean_coef1": np.asarray(schedule.posterior_mean_coef1),
        "log signal-to-noise ratio": np.log(alphas_cumprod / (1 - alphas_cumprod)),
    }


@dataclass(frozen=True)
class ForwardArgs:
    """Draw the forward process: pictures at several steps on their way to noise."""

    out: Path = Path("forward.png")
    """PNG file to write."""
    preset: str = "fashion-cpu"
    """Its schedule, its T and, without --image, its data."""
    image: Path | None = None
    """A picture of your own."""
    image_size: int | None = None
    """Side to which the picture is cut and resized; default: as it is."""
    steps: tuple[int, ...] = ()
    """Timesteps to draw, 0 to T-1."""
    percent: tuple[float, ...] = (25, 50, 75, 100)
    """Timesteps to draw in percent of T, where --steps gives none."""
    num: int = 4
    """Rows, if the pictures come from the preset's data."""
    seed: int = 0
    """Seed of the noise."""


def plot_forward(args: ForwardArgs) -> Path:
    """Write the figure. Raises UserError for a step outside the chain, or for no picture."""
    validate_seed(args.seed)
    config = find_preset(args.preset)
    num_timesteps = config.diffusion.num_timesteps
    steps = args.steps or tuple(int(p / 100 * num_timesteps) - 1 for p in args.percent)
    for t in steps:
        if not 0 <= t < num_timesteps:
            raise UserError(f"step {t} is not one of the chain, 0 to {num_timesteps - 1}")
    pictures = _pictures(args, config)
    betas = BETAS[config.diffusion.schedule](num_timesteps)
    noised = diffuse(make_schedule(betas), pictures, steps, args.seed)
    rows = np.concatenate([pictures[:, None], noised], axis=1)
    save_rows(args.out, ["original", *(f"t = {t}" for t in steps)], rows)
    print(f"Wrote {args.out}: t = {', '.join(map(str, steps))} of T = {num_timesteps}")
    return args.out


def _pictures(args: ForwardArgs, config: Config) -> UInt8[np.ndarray, "n h w c"]:
    if args.image is not None:
        picture: Picture = read_picture(args.image, Form(args.image_size))
        return picture[None]
    images = open_data(config.data).images
    shown = np.stack([images[i] for i in range(min(max(args.num, 1), len(images)))])
    if args.image_size is None:
        return shown
    return np.stack(list(FittedArrays(shown, Form(args.image_size, shown.shape[-1]))))


def diffuse(
    schedule: Schedule, pictures: UInt8[np.ndarray, "n h w c"], steps: tuple[int, ...], seed: int
) -> UInt8[np.ndarray, "n s h w c"]:
    """Every picture at every step, with one draw of noise per picture and step."""
    x_0 = from_uint8(jnp.asarray(pictures))
    columns = []
    for i, t in enumerate(steps):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), x_0.shape)
        columns.append(to_uint8(q_sample(schedule, x_0, jnp.full(len(x_0), t), noise)))
    return np.stack([np.asarray(column) for column in columns], axis=1)
