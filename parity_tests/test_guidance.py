"""Classifier guidance as OpenAI's guided_diffusion recorded it."""

import jax.numpy as jnp
import pytest

from jax_ddpm.process.diffusion import q_sample
from jax_ddpm.process.guidance import guide_score
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.process.shapes import expand
from jax_ddpm.process.types import Prediction
from jax_ddpm.samplers import ddim, ddpm
from parity_tests.comparing import DOUBLE_FIRST, SHORT, nchw_to_nhwc, read_golden
from parity_tests.recorded_process import (
    find_network,
    find_variance,
    read_runs,
    run_reverse_process,
    take_one_step,
)

THEIRS = "OpenAI (recorded)"
CASE = "guided_diffusion/process"
RUNS = {tag: run for tag, run in read_runs(CASE).items() if run.get("guide")}


@pytest.fixture(params=DOUBLE_FIRST)
def dtype(request):
    return request.param


def gradient_at(x_t, t):
    """The function that replaces a classifier's gradient in the recording."""
    t = jnp.broadcast_to(t, x_t.shape[:1]).astype(x_t.dtype)
    return 0.7 * (0.4 - x_t) * jnp.cos(expand(t, x_t) / 50)


def gradient_fn(x_t, level):
    return gradient_at(x_t, level.t)


@pytest.mark.parametrize("tag", RUNS)
def test_classifier_guidance(compare, dtype, tag):
    """In the mean of an ancestral step, and in the score of a DDIM step that clips (eta 0.3)."""
    run, (_, io) = RUNS[tag], read_golden(CASE)
    schedule = named_schedule("linear_rescaled", run["T"], dtype=dtype)
    x_0, noise = (
        jnp.asarray(nchw_to_nhwc(a).astype(dtype)) for a in (io["in.x0"], io["in.noise"][0])
    )
    t = jnp.asarray(io[f"both.{tag}/t"])
    x_t = q_sample(schedule, x_0, t, noise)
    mean, score = (
        nchw_to_nhwc(io[f"{SHORT[dtype]}.{tag}/{name}"])
        for name in ("p_sample_cond_mean", "ddim_cond_score")
    )
    prediction, _ = run_reverse_process(run, schedule, find_network(run), x_t, t, clip_x_0=True)

    # Leave out the last step, to which our sampler adds no noise and therefore no gradient.
    ours = take_one_step(ddpm(find_variance(run), gradient_fn), schedule, prediction, x_t, t, noise)
    compare("one recorded sampler step", ours[1:], mean[1:], dtype)

    level = level_at(schedule, t)
    guided = guide_score(lambda x_t, level: Prediction(*prediction), gradient_fn)(x_t, level)
    ours = take_one_step(ddim(0.3), schedule, guided, x_t, t, noise)
    compare("one recorded sampler step", ours, score, dtype)
