"""Figures of noise schedules and of the forward process."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from jax_ddpm.config.presets import find_preset
from jax_ddpm.config.run import MAX_TIMESTEPS, Config, make_betas, validate_seed
from jax_ddpm.data.pictures import FittedArrays, Form, Picture, read_picture
from jax_ddpm.errors import UserError, require, require_suffix
from jax_ddpm.files.figures import save_curves, save_rows
from jax_ddpm.files.images import from_uint8, to_uint8
from jax_ddpm.jobs.build import open_data
from jax_ddpm.process.diffusion import q_sample
from jax_ddpm.process.schedules import Schedule, ScheduleName, make_schedule

PERCENT = (25, 50, 75, 100)  # of T: the timesteps that are drawn unless others are chosen
NUM = 4  # pictures from the data


def plot_schedules(
    out: Path,
    preset: str = "fashion-cpu",
    schedules: Sequence[ScheduleName] = (),
    num_timesteps: int | None = None,
) -> Path:
    """Plot the tables of one or several schedules over t.

    The default schedule and T are the preset's. Raises UserError for a schedule that is not valid
    at this T.
    """
    require_suffix(out, ".png")
    diffusion = find_preset(preset).diffusion
    T = diffusion.num_timesteps if num_timesteps is None else num_timesteps
    require(1 <= T <= MAX_TIMESTEPS, "--num-timesteps", T, f"between 1 and {MAX_TIMESTEPS:,}")
    chosen = [
        replace(diffusion, schedule=name, num_timesteps=T, zero_terminal_snr=False)
        for name in schedules
    ] or [replace(diffusion, num_timesteps=T)]
    curves: dict[str, dict[str, Float[np.ndarray, " T"]]] = {}
    for each in chosen:
        try:
            schedule = make_schedule(make_betas(each))
        except ValueError as error:
            raise UserError(f"{each.schedule} with T = {T}: {error}") from error
        for table, values in list_tables(schedule).items():
            curves.setdefault(table, {})[each.schedule] = values
    save_curves(out, curves)
    print(f"Wrote {out}: {', '.join(each.schedule for each in chosen)} with T = {T}")
    return out


def list_tables(schedule: Schedule) -> Mapping[str, Float[np.ndarray, " T"]]:
    """The tables that tutorials compute before training, under the names used there."""
    betas, alphas_cumprod = np.asarray(schedule.betas), np.asarray(schedule.alphas_cumprod)
    with np.errstate(divide="ignore"):  # the chain may end in pure noise
        sqrt_recip_alphas = 1 / np.sqrt(1 - betas)
        log_snr = np.log(alphas_cumprod / (1 - alphas_cumprod))
    return {
        "betas": betas,
        "alphas": 1 - betas,
        "alphas_cumprod": alphas_cumprod,
        "sqrt_recip_alphas": sqrt_recip_alphas,
        "sqrt_alphas_cumprod": np.asarray(schedule.sqrt_alphas_cumprod),
        "sqrt_one_minus_alphas_cumprod": np.asarray(schedule.sqrt_one_minus_alphas_cumprod),
        "posterior_variance": np.asarray(schedule.posterior_variance),
        "posterior_mean_coef1": np.asarray(schedule.posterior_mean_coef1),
        "log signal-to-noise ratio": log_snr,
    }


def plot_forward(
    out: Path,
    preset: str = "fashion-cpu",
    image: Path | None = None,
    image_size: int | None = None,
    steps: Sequence[int] = (),
    percent: Sequence[float] = (),
    num: int | None = None,
    seed: int = 0,
) -> Path:
    """Draw pictures at several timesteps of the forward process.

    The preset provides the schedule and, unless `image` is given, the pictures. Timesteps are
    `steps`, or `percent` of T (25, 50, 75 and 100 if there is neither). Raises UserError for a
    timestep outside the chain and for a picture that cannot be read.
    """
    require_suffix(out, ".png")
    validate_seed(seed)
    if steps and percent:
        raise UserError("--steps and --percent each choose the timesteps: give only one of them")
    if image is not None and num is not None:
        raise UserError(f"--num {num} counts pictures from the preset's data: leave out --image")
    require(num is None or num >= 1, "--num", num, "at least 1")
    config = find_preset(preset)
    T = config.diffusion.num_timesteps
    for part in percent:
        require(0 < part <= 100, "--percent", part, "above 0 and at most 100")
    steps = steps or [int(part / 100 * T) - 1 for part in percent or PERCENT]
    for t in steps:
        require(0 <= t < T, "--steps", t, f"between 0 and {T - 1}")
    pictures = read_pictures(config, image, image_size, NUM if num is None else num)
    noised = diffuse(make_schedule(make_betas(config.diffusion)), pictures, steps, seed)
    rows = np.concatenate([pictures[:, None], noised], axis=1)
    save_rows(out, ["original", *(f"t = {t}" for t in steps)], rows)
    print(f"Wrote {out}: t = {', '.join(map(str, steps))} of T = {T}")
    return out


def read_pictures(
    config: Config, image: Path | None, image_size: int | None, num: int
) -> UInt8[np.ndarray, "n h w c"]:
    """Read the picture `image`, or else the first `num` pictures from the data of `config`."""
    if image is not None:
        picture: Picture = read_picture(image, Form(image_size))
        return picture[None]
    images = open_data(config.data).images
    shown = np.stack([images[i] for i in range(min(num, len(images)))])
    if image_size is None:
        return shown
    return np.stack(list(FittedArrays(shown, Form(image_size, shown.shape[-1]))))


def diffuse(
    schedule: Schedule, pictures: UInt8[np.ndarray, "n h w c"], steps: Sequence[int], seed: int
) -> UInt8[np.ndarray, "n s h w c"]:
    """Noise every picture to every timestep, with independent noise for each."""
    x_0 = from_uint8(jnp.asarray(pictures))
    columns = []
    for i, t in enumerate(steps):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), x_0.shape)
        columns.append(to_uint8(q_sample(schedule, x_0, jnp.full(len(x_0), t), noise)))
    return np.stack([np.asarray(column) for column in columns], axis=1)
