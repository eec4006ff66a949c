"""Guide sampling by a classifier of noisy images from the user's own file: FILE.py:FUNCTION."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jax_ddpm.config.run import Config
from jax_ddpm.config.sample import SampleConfig
from jax_ddpm.errors import UserError, flag_name
from jax_ddpm.jobs.generate import GradientOf
from jax_ddpm.jobs.own_function import load_function, summarize
from jax_ddpm.process.guidance import LogProbFn, classifier_gradient


def check_guidance(config: Config, labels: Sequence[str], changes: Collection[str]) -> None:
    """Raise UserError if a classifier cannot guide a run of `config`.

    `changes` holds the names of the sampling settings that the user gave.
    """
    for name in ("guidance_interval", "guidance_rescale"):
        if name in changes:
            raise UserError(f"{flag_name(name)} is for guidance without a classifier: leave it out")
    if config.diffusion.ends_in_noise:
        raise UserError(
            "--classifier needs some signal in x_T, but this run's schedule ends in pure noise"
        )
    if config.model.num_labels is None and not labels:
        raise UserError("--classifier needs --label N, the class to guide towards")


def without_guidance(settings: SampleConfig) -> SampleConfig:
    """Turn classifier-free guidance off, because the classifier replaces it."""
    return replace(settings, guidance=None, guidance_interval=None, guidance_rescale=0.0)


def make_gradient(
    place: str, image_shape: tuple[int, int, int], dtype: Any, scale: float
) -> GradientOf:
    """Make a function from labels to the scaled gradient of the user's classifier.

    Raises UserError if `place`, FILE.py:FUNCTION, is not a classifier.
    """
    log_prob = load_function(place, "--classifier")
    require_classifier(log_prob, place, image_shape, dtype)
    return lambda labels: classifier_gradient(log_prob, labels, scale)


def require_classifier(
    log_prob: LogProbFn, place: str, image_shape: tuple[int, int, int], dtype: Any
) -> None:
    """Raise UserError unless `log_prob(x_t, t, label)` returns one real number per image."""
    two = jnp.zeros(2, jnp.int32)
    wanted = "log_prob(x_t [b, h, w, c], t [b], label [b]) -> [b]"
    try:
        found = jax.eval_shape(log_prob, jnp.zeros((2, *image_shape), dtype), two, two)
    except Exception as error:  # whatever the user's function raises
        raise UserError(f"--classifier {place} is not {wanted}: {summarize(error)}") from error
    fits = getattr(found, "shape", None) == (2,) and jnp.issubdtype(found.dtype, jnp.floating)
    if not fits:
        raise UserError(f"--classifier {place} is not {wanted}: for two images it returns {found}")
