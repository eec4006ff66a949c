"""Recorded bits per dimension and pixel likelihoods of Ho et al. and OpenAI."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.process.likelihood import (
    approx_normal_cdf,
    discretized_gaussian_log_likelihood,
    normal_kl,
    variational_bound,
)
from jax_ddpm.process.schedules import linear_betas, make_schedule, named_schedule, quadratic_betas
from jax_ddpm.process.types import Gaussian
from parity_tests.comparing import DOUBLE_FIRST, SHORT, nchw_to_nhwc, read_golden
from parity_tests.recorded_process import (
    find_network,
    mark_others_slow,
    read_runs,
    run_reverse_process,
)

THEIRS = "Ho et al., OpenAI (recorded)"

OPENAI = {"linear": "linear_rescaled", "cosine": "cosine"}
CASES = ["hojonathanho/process", "guided_diffusion/process", "improved_diffusion/process"]
RUNS = {
    f"{case.split('/')[0]}/{tag}": (case, run)
    for case in CASES
    for tag, run in read_runs(case).items()
    if run.get("bpd")
}
FIRST = "hojonathanho/eps_large_mse guided_diffusion/eps_range_hybrid"


@pytest.fixture(params=DOUBLE_FIRST)
def dtype(request):
    return request.param


def build_schedule(case, run, dtype):
    """Build the schedule of a recorded run."""
    if case.startswith("hojonathanho"):
        betas = {"linear": linear_betas, "quad": quadratic_betas}[run["schedule"]]
        return make_schedule(betas(run["T"], end=run.get("b1", 0.02)), dtype=dtype)
    return named_schedule(OPENAI[run["schedule"]], run["T"], dtype=dtype)


def read_recorded(case, run, dtype, clip):
    """Read what the original's loop returned, under our names, with terms by t, then by image."""
    _, io = read_golden(case)
    ho = case.startswith("hojonathanho")
    names = (
        {"total": "total", "prior": "prior", "terms": "terms", "x_0_mse": "mse"}
        if ho
        else {
            "total": "total_bpd",
            "prior": "prior_bpd",
            "terms": "vb",
            "x_0_mse": "xstart_mse",
            "eps_mse": "mse",
        }
    )
    arrays = {
        ours: io[f"{SHORT[dtype]}.{run['tag']}/bpd_{theirs}_clip{clip:d}"].T
        for ours, theirs in names.items()
    }
    # all but Ho et al. start with t = T - 1
    return arrays if ho else {name: a[::-1] if a.ndim > 1 else a for name, a in arrays.items()}


@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("name", mark_others_slow(RUNS, FIRST))
def test_bits_per_dimension(compare, dtype, name, clip):
    """Every term of the bound by t, both errors, the prior and the sum.

    The k-th timestep, counted down from T - 1, uses the k-th noise.
    """
    case, run = RUNS[name]
    _, io = read_golden(case)
    x_0, noises = (jnp.asarray(io[f"in.{name}"].astype(dtype)) for name in ("x0", "noise"))
    if not case.startswith("hojonathanho"):
        x_0, noises = nchw_to_nhwc(x_0), nchw_to_nhwc(noises)
    schedule, network, T = build_schedule(case, run, dtype), find_network(run), run["T"]

    @jax.jit
    def loop(x_0, noises):
        def reverse_fn(x_t, t):
            return run_reverse_process(run, schedule, network, x_t, t, clip_x_0=clip)

        bound = variational_bound(schedule, reverse_fn, x_0, lambda t: noises[T - 1 - t])
        return bound._asdict() | {"total": bound.total}

    found = loop(x_0, jnp.asarray(noises))
    for what, expected in read_recorded(case, run, dtype, clip).items():
        compare("terms of the bound", found[what], expected, dtype)


LIKELIHOODS = [
    "hojonathanho/likelihood_embedding",
    "guided_diffusion/likelihood_embedding_resampler",
]


@pytest.mark.parametrize("case", LIKELIHOODS)
def test_likelihoods_of_pixels(compare, dtype, case):
    _, io = read_golden(case)
    x, mean, log_scale, mean_2, log_scale_2 = (
        jnp.asarray(io[f"in.{name}"].astype(dtype))
        for name in ("x_grid", "means", "log_scales", "means2", "log_scales2")
    )
    theirs = {name[4:]: io[name] for name in io if name.startswith(SHORT[dtype])}
    kl = normal_kl(Gaussian(mean, mean, log_scale), Gaussian(mean_2, mean_2, log_scale_2))
    compare("likelihoods", kl, theirs["normal_kl"], dtype)
    compare("likelihoods", approx_normal_cdf(4 * mean), theirs["approx_standard_normal_cdf"], dtype)
    ours = discretized_gaussian_log_likelihood(x, mean, log_scale)
    expected = theirs["discretized_gaussian_log_likelihood"]
    compare("likelihoods", jnp.exp(ours), np.exp(expected), dtype)
    likely = expected > -10  # below, the difference of two probabilities is mostly rounding
    assert likely.mean() > 0.4
    compare("likely likelihoods", ours[likely], expected[likely], dtype)
