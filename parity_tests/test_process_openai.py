"""Recorded numbers of OpenAI's diffusion processes: improved_diffusion and guided_diffusion."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.process.diffusion import LEARNED, q_mean_variance, q_posterior, q_sample
from jax_ddpm.process.grids import respace_betas, space_timesteps
from jax_ddpm.process.levels import Level, level_at
from jax_ddpm.process.likelihood import vb_term
from jax_ddpm.process.schedules import BETAS, make_schedule, named_schedule
from jax_ddpm.process.types import Prediction
from jax_ddpm.samplers import SamplerState, ddim, ddpm
from parity_tests.comparing import DOUBLE_FIRST, SHORT, nchw_to_nhwc, read_golden
from parity_tests.recorded_process import (
    MEANS,
    compile_chain,
    compute_loss,
    find_network,
    find_variance,
    mark_others_slow,
    read_runs,
    run_reverse_process,
    take_one_step,
)

THEIRS = "OpenAI (recorded)"

SCHEDULES = {"linear": "linear_rescaled", "cosine": "cosine"}
CASES = ["guided_diffusion/process", "improved_diffusion/process"]
RUNS = {tag: (case, run) for case in CASES for tag, run in read_runs(case).items()}
RESPACED = read_runs("guided_diffusion/respacing")


class Recorded:
    """A run: its inputs in the requested dtype, and what the peer returned for them."""

    def __init__(self, case, run, dtype):
        _, self.io = read_golden(case)
        self.run, self.dtype, self.prefix = run, dtype, f"{SHORT[dtype]}.{run['tag']}/"
        self.schedule = named_schedule(SCHEDULES[run["schedule"]], run["T"], dtype=dtype)
        self.x_0, self.noises, self.x_T = (
            jnp.asarray(nchw_to_nhwc(self.io[f"in.{name}"]).astype(dtype))
            for name in ("x0", "noise", "x_init")
        )
        self.noise, self.t = self.noises[0], jnp.asarray(self.io[f"both.{run['tag']}/t"])
        self.x_t = q_sample(self.schedule, self.x_0, self.t, self.noise)
        self.network = find_network(run)

    def __getitem__(self, name):
        """What the peer returned, with the channels last, in the run's dtype."""
        array = self.io[self.prefix + name]
        return (nchw_to_nhwc(array) if array.ndim > 3 else array).astype(self.dtype)

    def __contains__(self, name):
        return self.prefix + name in self.io

    def like_theirs(self, gaussian):
        """Broadcast mean, variance and log-variance to the size of the images."""
        return [jnp.broadcast_to(field, self.x_t.shape) for field in gaussian]


@pytest.fixture(params=DOUBLE_FIRST)
def dtype(request):
    return request.param


FIRST = "eps_range_hybrid eps_learned_kl x0_large_kl prev_small_mse rescale_ts"


@pytest.fixture(params=mark_others_slow(RUNS, FIRST))
def recorded(request, dtype):
    return Recorded(*RUNS[request.param], dtype)


def test_tables(compare):
    manifest, io = read_golden("guided_diffusion/tables")
    for name, num_timesteps in manifest["config"]["schedules"]:
        schedule = named_schedule(SCHEDULES[name], num_timesteps, dtype="float64")
        prefix = f"f64.{name}_T{num_timesteps}/"
        tables = {key.removeprefix(prefix): io[key] for key in io if key.startswith(prefix)}
        assert len(tables) == 13
        after = np.append(schedule.alphas_cumprod[1:], 0.0)
        compare("schedule tables", after, tables.pop("alphas_cumprod_next"), "float64")
        for key, table in tables.items():
            compare("schedule tables", getattr(schedule, key), table, "float64")


def test_forward_process(compare, recorded, dtype):
    compare("q_sample", recorded.x_t, recorded["q_sample"], dtype)
    marginal = q_mean_variance(recorded.schedule, recorded.x_0, recorded.t)
    posterior = q_posterior(
        recorded.schedule, recorded.x_0, jnp.asarray(recorded["q_sample"]), recorded.t
    )
    for gaussian, name in ((marginal, "q"), (posterior, "q_posterior")):
        theirs = [recorded[f"{name}_{field}"] for field in ("mean", "var", "logvar")]
        for mine, expected in zip(recorded.like_theirs(gaussian), theirs, strict=True):
            compare("q_posterior", mine, expected, dtype)


def test_reverse_process(compare, recorded, dtype):
    """x_0, mean and variance of the reverse step, and the term of the bound, clipped and not."""
    run, schedule = recorded.run, recorded.schedule
    for clip in (False, True):
        prediction, model = run_reverse_process(
            run, schedule, recorded.network, recorded.x_t, recorded.t, clip_x_0=clip
        )
        expected = recorded[f"p_pred_xstart_clip{clip:d}"]
        compare("predicted x_0 and eps", prediction.x_0, expected, dtype)
        for mine, name in zip(
            recorded.like_theirs(model), ("mean", "variance", "log_variance"), strict=True
        ):
            compare("the reverse step", mine, recorded[f"p_{name}_clip{clip:d}"], dtype)
        term = vb_term(schedule, recorded.x_0, recorded.x_t, recorded.t, model)
        compare_bits(compare, run, term, recorded[f"vb_terms_clip{clip:d}"], dtype)


def compare_bits(compare, run, ours, theirs, dtype):
    """In float32 leave out t = 0 where it is the difference of two nearly equal probabilities."""
    far_out = dtype == "float32" and MEANS[run["mean"]] != "eps"
    compare("terms of the bound", ours[far_out:], theirs[far_out:], dtype)


def test_losses(compare, recorded, dtype):
    loss = compute_loss(
        recorded.run,
        recorded.schedule,
        recorded.network,
        recorded.x_0,
        recorded.t,
        recorded.noise,
        recorded.x_t,
    )
    if recorded.run["loss"] == "MSE":
        compare("losses", loss, recorded["training_losses_loss"], dtype)
    else:
        compare_bits(compare, recorded.run, loss, recorded["training_losses_loss"], dtype)


def test_one_sampler_step(compare, recorded, dtype):
    run, schedule, x_t, t = recorded.run, recorded.schedule, recorded.x_t, recorded.t
    prediction, model = run_reverse_process(run, schedule, recorded.network, x_t, t, clip_x_0=True)
    if MEANS[run["mean"]] == "x_prev":  # the mean does not follow from the clipped x_0
        later = (t > 0).astype(dtype)[:, None, None, None]
        steps = {"p_sample": model.mean + later * jnp.exp(model.log_variance / 2) * recorded.noise}
    else:
        samplers = {"p_sample": ddpm(find_variance(run))}
        samplers |= {f"ddim_sample_eta{eta}": ddim(eta) for eta in (0, 1)}
        steps = {
            name: take_one_step(sampler, schedule, prediction, x_t, t, recorded.noise)
            for name, sampler in samplers.items()
        }
    for name, ours in steps.items():
        compare("one recorded sampler step", ours, recorded[name], dtype)


def test_one_step_of_ddim_inversion(compare, recorded, dtype):
    """From each example's t up to t + 1; the level above the last timestep is pure noise."""
    if "ddim_reverse" not in recorded:
        pytest.skip("recorded for networks that predict eps or x_0")
    schedule, x_t, t = recorded.schedule, recorded.x_t, recorded.t
    prediction, _ = run_reverse_process(
        recorded.run, schedule, recorded.network, x_t, t, clip_x_0=True
    )
    last, steps = jnp.asarray(schedule.num_timesteps - 1), []
    for i in range(len(t)):
        mine = Prediction(prediction.x_0[i : i + 1], prediction.eps[i : i + 1])
        up = level_at(schedule, jnp.minimum(t[i] + 1, last))
        above = Level(t[i] + 1, jnp.zeros((), dtype), jnp.ones((), dtype))
        nxt = up if t[i] < last else above
        state = SamplerState(x_t[i : i + 1])
        step = ddim().step(state, state.x_t, level_at(schedule, t[i]), nxt, lambda *_, m=mine: m)
        steps.append(step[0].x_t)
    compare("one recorded sampler step", jnp.concatenate(steps), recorded["ddim_reverse"], dtype)


LOOPS = [tag for tag, (_, run) in RUNS.items() if run.get("loop")]


@pytest.mark.parametrize(
    "name", ["p_sample_loop", pytest.param("ddim_loop_eta05", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("tag", mark_others_slow(LOOPS, "eps_range_hybrid"))
def test_chains(compare, dtype, tag, name):
    recorded = Recorded(*RUNS[tag], dtype)
    run, timesteps = recorded.run, jnp.arange(recorded.run["T"] - 1, -2, -1)
    levels = level_at(recorded.schedule, timesteps)
    kind = ("ddpm", find_variance(run)) if name == "p_sample_loop" else ("ddim", 0.5)
    ours = get_chain(run, *kind)(recorded.x_T, levels, recorded.noises)
    compare("recorded chains", ours, recorded[name], dtype)


NETWORKS = {}


def get_chain(run, kind, setting):
    """Get one compiled chain for all runs that differ only in their tables."""
    key = (find_variance(run) in LEARNED, run.get("rescale") and run["T"])
    network = NETWORKS.setdefault(key, find_network(run))
    learned = find_variance(run) in LEARNED
    return compile_chain(kind, setting, MEANS[run["mean"]], network, learned_variance=learned)


def test_respaced_timesteps():
    _, io = read_golden("guided_diffusion/respacing")
    names = [name for name in io if name.startswith("both.space_timesteps/")]
    assert len(names) == 18
    for name in names:
        num_timesteps, sections = name.split("/")[1].split("_")
        expected = [*io[name][::-1].tolist(), -1]
        assert space_timesteps(int(num_timesteps), sections).tolist() == expected, name


@pytest.mark.parametrize("tag", RESPACED)
def test_respaced_tables(compare, tag):
    run, io = read_respaced(tag)
    timesteps = space_timesteps(run["T"], run["spacing"])
    schedule = make_schedule(
        respace_betas(BETAS[run["schedule"]](run["T"]), timesteps), dtype="float64"
    )
    for name in ("betas", "alphas_cumprod", "posterior_log_variance_clipped"):
        compare("schedule tables", getattr(schedule, name), io[f"f64.{tag}/{name}"], "float64")


@pytest.mark.slow
@pytest.mark.parametrize("tag", RESPACED)
def test_respaced_losses(compare, dtype, tag):
    """The network is called with the timestep of the full chain."""
    run, io = read_respaced(tag)
    betas, timesteps = BETAS[run["schedule"]](run["T"]), space_timesteps(run["T"], run["spacing"])
    schedule = make_schedule(respace_betas(betas, timesteps), dtype=dtype)
    network, visited = find_network(run, run["T"]), jnp.asarray(timesteps[-2::-1])
    x_0, noise = (
        jnp.asarray(nchw_to_nhwc(a).astype(dtype)) for a in (io["in.x0"], io["in.noise"][0])
    )
    t = jnp.asarray(io[f"both.{tag}/t"])
    loss = compute_loss(
        run | {"loss": "RESCALED_MSE"},
        schedule,
        lambda params, x_t, t: network(params, x_t, visited[t]),
        x_0,
        t,
        noise,
        q_sample(schedule, x_0, t, noise),
    )
    recorded = io[f"{SHORT[dtype]}.{tag}/training_losses_loss"]
    compare("losses", loss, recorded.astype(dtype), dtype)


STEPS = {"p_sample_loop": "ddpm", "ddim_loop_eta0": 0.0, "ddim_loop_eta1": 1.0}


@pytest.mark.parametrize("name", mark_others_slow(STEPS, "p_sample_loop"))
@pytest.mark.parametrize("tag", mark_others_slow(RESPACED, "ddim10"))
def test_respaced_chains(compare, dtype, tag, name):
    """The peer recomputes all tables; here the levels of the visited timesteps are enough."""
    run, io = read_respaced(tag)
    schedule = named_schedule(run["schedule"], run["T"], dtype=dtype)
    levels = level_at(schedule, jnp.asarray(space_timesteps(run["T"], run["spacing"])))
    x_T, noises = (
        jnp.asarray(nchw_to_nhwc(io[f"in.{a}"]).astype(dtype)) for a in ("x_init", "noise")
    )
    kind = ("ddpm", find_variance(run)) if STEPS[name] == "ddpm" else ("ddim", STEPS[name])
    ours = get_chain(run, *kind)(x_T, levels, noises)
    theirs = nchw_to_nhwc(io[f"{SHORT[dtype]}.{tag}/{name}"])
    compare("recorded chains", ours, theirs, dtype)


def read_respaced(tag):
    run = RESPACED[tag]
    return run | {"schedule": SCHEDULES[run["schedule"]]}, read_golden(
        "guided_diffusion/respacing"
    )[1]
