"""Figures of noise schedules, of the forward process, and of the data."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from jax_ddpm import runs
from jax_ddpm.config.jobs import ChainSettings, FigureData
from jax_ddpm.config.presets import find_preset
from jax_ddpm.config.run import (
    MAX_TIMESTEPS,
    Config,
    DiffusionConfig,
    make_betas,
    validate_seed,
)
from jax_ddpm.data.loader import batches
from jax_ddpm.data.pictures import FittedArrays, Form, Picture, read_picture
from jax_ddpm.data.sources import recognize
from jax_ddpm.data.summary import name_class
from jax_ddpm.errors import UserError, flag_name, require, require_suffix
from jax_ddpm.files.figures import save_curves, save_rows
from jax_ddpm.files.images import from_uint8, make_image_grid, save_png, to_uint8
from jax_ddpm.files.numbers import read_numbers
from jax_ddpm.jobs.build import TRAINING, open_data
from jax_ddpm.process.diffusion import q_sample
from jax_ddpm.process.schedules import (
    Schedule,
    ScheduleName,
    list_schedules_with,
    make_schedule,
)
from jax_ddpm.training.step import prepare_images

PERCENT = (25, 50, 75, 100)  # of T: the timesteps that are drawn unless others are chosen
NUM = 4  # pictures from the data
CHAIN, DATA = ChainSettings(), FigureData()
NO_NUMBERS: dict[str, Any] = {"beta_start": None, "beta_end": None, "cosine_s": None}


def plot_schedules(
    out: Path, chain: ChainSettings = CHAIN, schedules: Sequence[ScheduleName] = ()
) -> Path:
    """Plot the tables of one or several schedules over t; by default, the one of `chain`.

    Raises UserError for a schedule that is not valid at this T.
    """
    require_suffix(out, ".png")
    curves: dict[str, dict[str, Float[np.ndarray, " T"]]] = {}
    names: list[str] = []
    for diffusion in list_chains(chain, schedules):
        names.append(name_chain(diffusion, chain))
        for table, values in list_tables(make_chain(diffusion, names[-1])).items():
            curves.setdefault(table, {})[names[-1]] = values
    save_curves(out, curves)
    print(f"Wrote {out}: {', '.join(names)} with T = {diffusion.num_timesteps}")
    return out


def find_config(chain: ChainSettings) -> Config:
    """The configuration of the run, or else of the preset."""
    return find_preset(chain.preset) if chain.run is None else runs.load(chain.run).config


def list_chains(
    chain: ChainSettings, schedules: Sequence[ScheduleName] = ()
) -> list[DiffusionConfig]:
    """The forward processes to show: one for each of `schedules`, or the one of `chain` alone.

    Of several schedules, each gets those numbers of `chain` that it takes.
    """
    own = find_config(chain).diffusion
    if chain.betas_file is not None:
        require_alone(chain, schedules)
        betas = read_numbers(chain.betas_file)
        own = replace(own, betas=betas, num_timesteps=len(betas), **NO_NUMBERS)
    T = own.num_timesteps if chain.num_timesteps is None else chain.num_timesteps
    require(1 <= T <= MAX_TIMESTEPS, "--num-timesteps", T, f"between 1 and {MAX_TIMESTEPS:,}")
    numbers = {name: getattr(chain, name) for name in NO_NUMBERS}
    given = {name: number for name, number in numbers.items() if number is not None}
    own = replace(own, num_timesteps=T, **given)
    named = replace(own, betas=None, zero_terminal_snr=False, **NO_NUMBERS)
    return [replace(named, schedule=s, **_pick(given, s, schedules)) for s in schedules] or [own]


def _pick(
    given: Mapping[str, float], schedule: str, schedules: Sequence[ScheduleName]
) -> dict[str, Any]:
    """The numbers that `schedule` takes, and those that none of the `schedules` takes."""
    users = {name: list_schedules_with(name) for name in given}
    return {
        name: number
        for name, number in given.items()
        if schedule in users[name] or not set(users[name]) & set(schedules)
    }


def require_alone(chain: ChainSettings, schedules: Sequence[ScheduleName]) -> None:
    """Raise UserError for settings that betas from a file leave without effect."""
    given = [name for name in (*NO_NUMBERS, "num_timesteps") if getattr(chain, name) is not None]
    given += ["schedules"] if schedules else []
    if given:
        flag = flag_name(given[0])
        raise UserError(f"{flag} has no effect with --betas-file, which holds all betas")


def name_chain(diffusion: DiffusionConfig, chain: ChainSettings) -> str:
    """What a curve is called: the schedule with its numbers, or the file of betas."""
    if diffusion.betas is not None:
        return "betas of the run" if chain.betas_file is None else chain.betas_file.name
    numbers = diffusion.schedule_numbers.items()
    shown = [f"{name} {number:g}" for name, number in numbers if number is not None]
    return ", ".join([diffusion.schedule, *shown])


def make_chain(diffusion: DiffusionConfig, name: str) -> Schedule:
    """Make the tables of a forward process. Raises UserError if it is not valid at its T."""
    try:
        return make_schedule(make_betas(diffusion))
    except ValueError as error:
        raise UserError(f"{name} with T = {diffusion.num_timesteps}: {error}") from error


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
    chain: ChainSettings = CHAIN,
    data: FigureData = DATA,
    schedule: ScheduleName | None = None,
    image: Path | None = None,
    image_size: int | None = None,
    steps: Sequence[int] = (),
    percent: Sequence[float] = (),
    num: int | None = None,
    seed: int = 0,
) -> Path:
    """Draw pictures at several timesteps of the forward process of `chain`.

    The pictures are `image`, or else the first `num` of the data. Timesteps are `steps`, or
    `percent` of T (25, 50, 75 and 100 if there is neither). Raises UserError for a timestep outside
    the chain and for a picture that cannot be read.
    """
    require_suffix(out, ".png")
    validate_seed(seed)
    if steps and percent:
        raise UserError("--steps and --percent each choose the timesteps: give only one of them")
    if image is not None and num is not None:
        raise UserError(f"--num {num} counts pictures from the data: leave out --image")
    if image is not None and data != DATA:
        raise UserError("--data.name and --data.path have no effect with --image")
    require(num is None or num >= 1, "--num", num, "at least 1")
    (diffusion,) = list_chains(chain, () if schedule is None else (schedule,))
    tables, T = make_chain(diffusion, name_chain(diffusion, chain)), diffusion.num_timesteps
    for part in percent:
        require(0 <= part <= 100, "--percent", part, "between 0 and 100")
    steps = steps or [max(int(part * T / 100) - 1, 0) for part in percent or PERCENT]
    for t in steps:
        require(0 <= t < T, "--steps", t, f"between 0 and {T - 1}")
    config = choose_data(find_config(chain), data)
    pictures = read_pictures(config, image, image_size, NUM if num is None else num)
    noised = diffuse(tables, pictures, steps, seed)
    rows = np.concatenate([pictures[:, None], noised], axis=1)
    save_rows(out, ["original", *(f"t = {t}" for t in steps)], rows)
    print(f"Wrote {out}: t = {', '.join(map(str, steps))} of T = {T}")
    return out


def choose_data(config: Config, data: FigureData) -> Config:
    """The configuration with the images of `data`, if it names any."""
    if data == DATA:
        return config
    found = None if data.path is None else recognize(data.path)
    name = data.name or found or config.data.name
    return replace(config, data=replace(config.data, name=name, path=data.path))


def plot_data(
    out: Path,
    chain: ChainSettings = CHAIN,
    data: FigureData = DATA,
    num: int = 64,
    step: int = 1,
    seed: int | None = None,
) -> Path:
    """Draw images of a training batch as the network sees them before noise is added.

    They are cropped, resized and mirrored as in training step `step` of this seed.
    """
    require_suffix(out, ".png")
    require(num >= 1, "--num", num, "at least 1")
    require(step >= 1, "--step", step, "at least 1")
    config = choose_data(find_config(chain), data)
    seed = config.seed if seed is None else seed
    validate_seed(seed)
    source, size = open_data(config.data), config.train.batch_size
    batch = next(iter(batches(source, size, seed, start_step=step - 1)))
    key = jax.random.fold_in(jax.random.key(seed), TRAINING)
    flip = config.data.random_flip
    x_0 = prepare_images(jax.random.fold_in(key, step - 1), batch.pixels, random_flip=flip)
    shown = to_uint8(x_0[:num])
    names = [name_class(source.class_names, int(label)) for label in batch.labels[:num]]
    save_png(out, make_image_grid(np.asarray(shown), captions=names if source.class_names else ()))
    print(
        f"Wrote {out}: {len(shown)} of the {size} images of step {step}, {x_0.dtype} "
        f"{list(x_0.shape)}, {x_0.min():.3g} to {x_0.max():.3g}, mean {x_0.mean():.3g}, standard "
        f"deviation {x_0.std():.3g}"
    )
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
