"""Train presets for the same time on the embedded images, and measure what each has learnt."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8

from jax_ddpm.config.presets import find_preset
from jax_ddpm.config.run import Config, validate
from jax_ddpm.config.sample import change_settings
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.devices.layout import draw_on_devices, get_device_name, make_state
from jax_ddpm.devices.per_example import replicate_params
from jax_ddpm.errors import UserError, require
from jax_ddpm.jobs.bench import timing
from jax_ddpm.jobs.build import TRAINING, Parts, build, open_data
from jax_ddpm.jobs.features import Extractor, FeatureNetwork, join_batches, make_fashion
from jax_ddpm.jobs.generate import generate_images, make_generate_fn
from jax_ddpm.jobs.messages import announce_compilation, make_bar, tell
from jax_ddpm.jobs.reference import load_reference
from jax_ddpm.jobs.train_setup import choose_layout, compile_step, put_data_on_devices
from jax_ddpm.quality.classifier import SHAPE
from jax_ddpm.quality.measures import MEASURES, NUM_SPLITS, Figure, Sets
from jax_ddpm.training.feed import make_feed

BATCH_SIZE = 64
EMBEDDED = find_preset("fashion-cpu").data


@dataclass(frozen=True)
class PresetsArgs:
    """Distance of each preset's images after the same time of training on the embedded images."""

    presets: tuple[str, ...] = (
        "fashion-cpu",
        "epita",
        "annotated",
        "annotated-convnext",
        "pulfer",
        "denoising-diffusion-pytorch",
    )
    """Presets to train. They must be those for the embedded images."""
    minutes: float = 5.0
    """Minutes of training for each, without compilation; a preset that has fewer steps ends
    earlier."""
    num: int = 512
    """Number of images that are drawn to measure the distance."""
    steps: int = 50
    """Steps of ddim, which draws them for every preset."""
    seed: int = 0
    """Seed of training and of the images."""
    out: Path | None = None
    """JSON file to write the results to."""


def bench_presets(args: PresetsArgs) -> list[dict[str, Any]]:
    """Train and measure each preset, print a table, also in Markdown, and return the rows.

    Raises UserError for presets and numbers that cannot work, before it trains.
    """
    require(args.minutes > 0, "--minutes", args.minutes, "positive")
    require(args.num >= 2 * NUM_SPLITS, "--num", args.num, f"at least {2 * NUM_SPLITS}")
    configs = [configure(name, args) for name in args.presets]
    network = make_fashion(SHAPE)
    whole = args.minutes * len(configs)
    tell(f"{len(configs)} presets: {whole:.3g} minutes of training, then drawing and compilation")
    rows = list(measure_presets(configs, network, args))
    timing.print_rows(rows)
    print("\n".join(["", *format_markdown(rows, args)]))
    about: dict[str, Any] = {"minutes": args.minutes, "images": args.num, "ddim_steps": args.steps}
    about |= {"features": network.about, "device": get_device_name(), "jax": jax.__version__}
    timing.save_rows(args.out, about, rows)
    return rows


def configure(name: str, args: PresetsArgs) -> Config:
    """The preset with the sampler that draws for all, and its own settings otherwise.

    Raises UserError for a preset that is not for the embedded images.
    """
    preset = find_preset(name)
    if preset.data.name != EMBEDDED.name:
        raise UserError(f"--presets {name} is for {preset.data.name}, not for the embedded images")
    changes = {"sampler": "ddim", "num_steps": args.steps, "spacing": "trailing", "eta": 0.0}
    sample = change_settings(preset.sample, changes)
    # No image is stretched to its own full contrast, and no frame is kept.
    config = replace(preset, seed=args.seed, sample=replace(sample, stretch=False, frames=2))
    validate(config)
    return config


def measure_presets(
    configs: list[Config], network: FeatureNetwork, args: PresetsArgs
) -> Iterator[dict[str, Any]]:
    """Train and measure each preset, and yield a row for each."""
    extract = Extractor(network, BATCH_SIZE)
    source = open_data(EMBEDDED)
    reference = load_reference(network, extract, EMBEDDED, "train", source)
    judge = Extractor(network._replace(apply=shrink_before(network)), BATCH_SIZE)
    for config in configs:
        tell(f"{config.preset}:")
        images = open_data(config.data)
        parts = build(config, images.image_shape)
        params, steps = train_for(config, parts, images, 60 * args.minutes)
        generate = make_generate_fn(parts, config.sample, images.image_shape)
        size = min(BATCH_SIZE, args.num)
        batches = generate_images(
            announce_compilation(generate, "the sampler"),
            replicate_params(params, size),
            args.num,
            seed=args.seed,
            batch_size=size,
            num_labels=parts.num_labels,
        )
        drawn = join_batches([judge(batch.images) for batch in batches])
        sets = Sets(*drawn, reference.statistics, reference.features)
        figure: Figure = MEASURES["frechet"].compute(sets)["frechet"]
        of, title = config.train.num_steps, network.titles["frechet"]
        row = {"preset": config.preset, "steps": steps, "of": of, title: figure.value}
        yield row | {"+-": figure.margin}


def train_for(config: Config, parts: Parts, source: ImageSource, seconds: float) -> tuple[Any, int]:
    """Train for `seconds` after the first step; return the averaged parameters and the steps."""
    train, layout = config.train, choose_layout(config.train)
    root = jax.random.key(config.seed)
    state = make_state(parts.start_state, draw_on_devices(parts.network.init, root, layout), layout)
    program = announce_compilation(compile_step(config, parts), "the training step")
    feed = make_feed(
        source,
        train.batch_size,
        config.seed,
        start_step=0,
        end_step=train.num_steps,
        steps_per_call=train.steps_per_call,
        on_device=put_data_on_devices(train, source),
    )
    key, start, steps = jax.random.fold_in(root, TRAINING), 0.0, 0
    with make_bar(round(seconds), "s") as bar:
        for batch, count in feed:
            state, _ = program(state, batch, key)
            jax.block_until_ready(state.step)
            start = start or time.monotonic()  # the first call compiles
            steps += count
            spent = time.monotonic() - start
            bar.update(min(int(spent), bar.total) - bar.n)
            if spent >= seconds:
                break
    return state.ema_params, steps


def shrink_before(network: FeatureNetwork) -> Any:
    """Make a function like `network.apply` that first makes images grey and 28 x 28."""

    def apply(params: Any, images: UInt8[Array, "b h w c"]) -> tuple[Any, Any]:
        if images.shape[1:] == SHAPE:
            return network.apply(params, images)
        grey = images.astype(jnp.float32).mean(-1, keepdims=True)
        small = jax.image.resize(grey, (len(images), *SHAPE), "cubic")
        return network.apply(params, jnp.clip(jnp.round(small), 0, 255).astype(jnp.uint8))

    return apply


def format_markdown(rows: list[dict[str, Any]], args: PresetsArgs) -> Iterator[str]:
    """The table for docs/presets.md."""
    title = next(name for name in rows[0] if name.startswith("FD"))
    yield f"| preset | steps in {args.minutes:g} minutes | {title}, {args.num:,} images |"
    yield "|---|---|---|"
    for row in rows:
        margin = "" if row["+-"] is None else f" +- {row['+-']:.2g}"
        steps = f"{row['steps']:,} of {row['of']:,}"
        yield f"| `{row['preset']}` | {steps} | {row[title]:.1f}{margin} |"
