"""Turn a number of epochs into steps, once the number of images is known."""

from dataclasses import replace
from typing import Any

from jax_ddpm.config.follow import find_divisors, find_nearest
from jax_ddpm.config.run import Config, validate

OTHERS = ("validate_every", "evaluate_every", "keep_every")  # rounded to whole epochs


def resolve_epochs(config: Config, num_images: int) -> Config:
    """Set the steps of train.num_epochs, with a grid and a checkpoint after each epoch.

    An epoch has as many steps as it takes to see `num_images` images. Without num_epochs, `config`
    stays as it is; to resolve it twice changes nothing. Raises UserError for settings that do not
    fit.
    """
    train, epochs = config.train, config.train.num_epochs
    if epochs is None:
        return config
    epoch = -(-num_images // train.batch_size)
    possible = [n for n in find_divisors(epoch) if n % train.steps_per_call == 0]
    warmup, num_steps = train.warmup_steps, epochs * epoch
    if warmup > num_steps:
        warmup = round(warmup * num_steps / train.num_steps)
    every = {name: getattr(train, name) for name in OTHERS}
    rounded: dict[str, Any] = {
        n: epoch * max(1, round(e / epoch)) for n, e in every.items() if e is not None
    }
    train = replace(
        train,
        num_steps=num_steps,
        warmup_steps=warmup,
        log_every=find_nearest(train.log_every, possible or [epoch]),
        sample_every=epoch,
        checkpoint_every=epoch,
        snapshot_every=epoch if train.posthoc_ema else train.snapshot_every,
        **rounded,
    )
    resolved = replace(config, train=train)
    validate(resolved)
    return resolved
