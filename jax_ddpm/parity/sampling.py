"""Pair sampler steps, and whole chains with the same network, of jax_ddpm and torch_ref."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_ddpm.parity.process import make_schedules
from jax_ddpm.parity.quantities import Pair
from jax_ddpm.parity.twins import draws, make_twin_networks, to_jax, to_torch
from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.grids import timestep_grid
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.predictions import PredictionType
from jax_ddpm.process.types import Prediction
from jax_ddpm.samplers import SamplerState, ddim, ddpm, sample
from torch_ref import sampler as ref

SHAPE = (1, 8, 8, 3)
# Our samplers, and the arguments that select the same sampler in the reference.
SAMPLERS = {
    "ddpm fixed_small": (ddpm("fixed_small"), {"variance": "fixed_small"}),
    "ddpm fixed_large": (ddpm("fixed_large"), {"variance": "fixed_large"}),
    "ddim 0.0": (ddim(0.0), {"eta": 0.0}),
    "ddim 0.5": (ddim(0.5), {"eta": 0.5}),
    "ddim 1.0": (ddim(1.0), {"eta": 1.0}),
}
JUMPS = [(999, 998), (500, 480), (1, 0), (999, 0), (0, -1)]


def pair_steps(dtype: str, seed: int) -> Iterator[Pair]:
    """Pair one step of every sampler: to the next level, over jumps, and to the clean image."""
    for schedule in ("linear", "cosine"):
        for name in SAMPLERS:
            steps = [take_one_step(dtype, schedule, name, jump, seed) for jump in JUMPS]
            ours, theirs = zip(*steps, strict=True)
            yield Pair(f"one step, {schedule} schedule", name, "one sampler step", ours, theirs)


def take_one_step(
    dtype: str, schedule: str, name: str, jump: tuple[int, int], seed: int = 0
) -> tuple[jax.Array, np.ndarray]:
    """Take the step t -> t_prev of a sampler in both frameworks, from the same numbers."""
    mine, theirs = make_schedules(dtype, schedule)
    sampler, settings = SAMPLERS[name]
    x_t, x_0, eps, noise = (draws(SHAPE, dtype, 4 * seed + i) for i in range(4))
    cur, nxt = (level_at(mine, jnp.array(t)) for t in jump)
    state = SamplerState(jnp.asarray(x_t))
    state, _ = sampler.step(
        state, jnp.asarray(noise), cur, nxt, lambda x, level: Prediction(x_0, eps)
    )
    a, b, c, d = map(to_torch, (x_t, x_0, eps, noise))
    if name.startswith("ddpm"):
        expected = ref.ddpm_step(theirs, a, *jump, b, d, **settings)  # type: ignore[arg-type]
    else:
        expected = ref.ddim_step(theirs, a, *jump, b, c, d, **settings)  # type: ignore[arg-type]
    return state.x_t, to_jax(expected)


class Chain(NamedTuple):
    """The settings of a chain from x_T to the clean image."""

    tolerance: str
    sampler: str
    num_steps: int
    schedule: str
    prediction_type: PredictionType


CHAINS = [
    Chain("chain of 1000 ancestral steps", "ddpm fixed_large", 1000, "linear", "eps"),
    Chain("chain of 50 DDIM steps", "ddim 0.0", 50, "linear", "eps"),
    Chain("chain of 50 DDIM steps", "ddim 1.0", 50, "cosine", "v"),
]


def pair_chains(dtype: str, seed: int) -> Iterator[Pair]:
    """Pair whole chains, with every intermediate image."""
    for chain in CHAINS:
        about = chain.sampler, f"{chain.num_steps} steps", chain.schedule, chain.prediction_type
        what = ", ".join(about)
        ours, theirs = run_chain(dtype, chain, seed)
        yield Pair("chains through a U-Net", what, chain.tolerance, ours, theirs, "sampling step")


def run_chain(dtype: str, chain: Chain, seed: int) -> tuple[jax.Array, np.ndarray]:
    """Run a chain in both frameworks, from the same noise; return all images [S, b, h, w, c]."""
    model, network, params = make_twin_networks(dtype, seed=seed + 1)
    mine, theirs = make_schedules(dtype, chain.schedule)
    grid = timestep_grid(1000, chain.num_steps, "leading")
    x_T, noises = draws(SHAPE, dtype, seed), draws((chain.num_steps, *SHAPE), dtype, seed + 1)
    sampler, settings = SAMPLERS[chain.sampler]

    @jax.jit
    def run(params: Any, x_T: jax.Array, noises: jax.Array) -> jax.Array:
        denoise_fn = make_denoise_fn(
            network.apply_fn, params, prediction_type=chain.prediction_type
        )
        levels = level_at(mine, jnp.asarray(grid))
        return sample(
            sampler, denoise_fn, levels, x_T, lambda i: noises[i], trace=lambda s, p: s.x_t
        )[1]

    _, steps = ref.sample(
        model,
        theirs,
        grid.tolist(),
        to_torch(x_T),
        [to_torch(noise) for noise in noises],
        sampler=chain.sampler.split()[0],
        prediction_type=chain.prediction_type,
        **settings,  # type: ignore[arg-type]
    )
    return run(params, x_T, noises), np.stack([to_jax(x) for x in steps[1:]])
