"""Every mistake in the arguments of the samplers gets one sentence that says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.process.types import Prediction
from jax_ddpm.samplers import (
    ddim,
    ddim_inverse,
    ddpm,
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    euler,
    heun,
    lms,
    run_chain,
    sa_solver,
    sample,
    unipc,
)
from jax_ddpm.samplers.editing import (
    allow_steps_up,
    find_latents,
    find_start,
    repaint_grid,
    repaint_order,
)
from tests.shared.mixture import make_levels, pick_levels

LEVELS = make_levels(4, "t", clean=True)
X = jnp.ones((2, 4, 4, 1))
LATER_NOISE = LEVELS._replace(signal=LEVELS.signal.at[0].set(0), sigma=LEVELS.sigma.at[0].set(1))


def denoise(x_t, level):
    return Prediction(x_t, 0 * x_t)


def run(sampler=None, levels=LEVELS, x_T=X):
    return sample(sampler or ddim(), denoise, levels, x_T, lambda i: X)


MISTAKES = {
    "variance is 'fixedsmall', but it must be fixed_small, fixed_large, learned_range or learned: "
    "did you mean 'fixed_small'?": [lambda: ddpm("fixedsmall")],
    "correction is 'midpiont', but it must be midpoint or heun: did you mean 'midpoint'?": [
        lambda: dpmpp_2m(correction="midpiont"),
        lambda: dpmpp_2m_sde(correction="midpiont"),
    ],
    "curvature is 'exakt', but it must be published or exact: did you mean 'exact'?": [
        lambda: dpmpp_3m(curvature="exakt"),
    ],
    "order is 4, but it must be 2 or 3": [lambda: unipc(order=4), lambda: deis(order=4)],
    "predictor_order is 0, but it must be 1, 2 or 3": [lambda: sa_solver(predictor_order=0)],
    "corrector_order is 1, but it must be 2 or 3": [lambda: sa_solver(corrector_order=1)],
    "order is 5, but it must be 1, 2, 3 or 4": [lambda: lms(order=5)],
    "churn needs num_steps and level_of_sigma: it adds noise to each level": [
        lambda: heun(churn=1.0, num_steps=5),
    ],
    "x_T has dtype uint8, but images are floats in [-1, 1]: convert pixels with x / 127.5 - 1": [
        lambda: run(x_T=X.astype(jnp.uint8)),
    ],
    "x_T has shape (2, 3, 8, 8), which looks like [batch, channels, height, width], but images are "
    "[batch, height, width, channels]: use jnp.moveaxis(x, 1, -1)": [
        lambda: run(x_T=jnp.ones((2, 3, 8, 8))),
    ],
    "the grid ends at sigma = 0.172, but it must end at the clean image, t = -1: timestep_grid "
    "appends it": [
        lambda: run(levels=pick_levels(make_levels(4, "t", clean=True), slice(-1))),
        lambda: run(
            levels=jax.tree.map(lambda a: jnp.stack([a] * 2, 1), pick_levels(LEVELS, slice(-1)))
        ),
    ],
    "the grid starts at sigma = 0.172, but it must start at the clean image, t = -1: timestep_grid "
    "appends it": [lambda: run(ddim_inverse(), levels=pick_levels(LEVELS, np.array([3, 2, 1, 0])))],
    "the grid ascends, but this sampler goes to cleaner levels: reverse it": [
        lambda: run(levels=pick_levels(LEVELS, jnp.array([2, 0, 1, 4]))),
    ],
    "the grid descends, but this sampler goes to noisier levels: reverse it": [
        lambda: run(ddim_inverse(), levels=pick_levels(LEVELS, jnp.array([4, 2, 3, 0]))),
    ],
    "the grid starts at pure noise, but this sampler divides by the signal: start at a level that "
    "has some, such as leading timesteps": [
        lambda: run(ddim()._replace(starts_at_noise=False), LATER_NOISE),
    ],
    "levels has shape (1,), but it must be [steps + 1], or [steps + 1, 2] with one level per "
    "image": [lambda: run(levels=pick_levels(LEVELS, slice(-1, None)))],
    "levels has shape (5, 3), but it must be [steps + 1], or [steps + 1, 2] with one level per "
    "image": [lambda: run(levels=jax.tree.map(lambda a: jnp.stack([a] * 3, 1), LEVELS))],
    "a grid that goes up and down takes one level for all images": [
        lambda: run(allow_steps_up(ddim()), jax.tree.map(lambda a: jnp.stack([a] * 2, 1), LEVELS)),
    ],
    "the jump length must be between 1 and 3, one less than the steps of the grid, got 4": [
        lambda: repaint_order(4, 4, 2),
        lambda: repaint_grid(np.array([9, 6, 3, 0, -1]), 4, 2),
    ],
    "the number of resamples must be at least 1, got 0": [lambda: repaint_order(4, 1, 0)],
    "the strength must be above 0 and at most 1, got 0": [
        lambda: find_start(np.array([9, 4, -1]), 0.0, 10)
    ],
    "the grid visits no timestep below 3, strength 0.3 of T = 10: take more steps or a larger "
    "strength": [lambda: find_start(np.array([9, 4, -1]), 0.3, 10)],
}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("sentence", MISTAKES)
def test_a_mistake_gets_one_sentence(sentence):
    for call in MISTAKES[sentence]:
        with pytest.raises(UserError) as error:
            call()
        assert str(error.value).split("\n")[0] == sentence


def test_any_grid_can_be_followed_without_the_checks():
    up = pick_levels(LEVELS, slice(-2, None, -1))
    found, _ = run_chain(euler(), denoise, up, X, lambda i: X)
    assert found.shape == X.shape
    inverse = find_latents(denoise, LEVELS, X)
    np.testing.assert_array_equal(
        inverse,
        run_chain(
            ddim_inverse(), denoise, pick_levels(LEVELS, slice(None, None, -1)), X, lambda i: X
        )[0],
    )


def test_traced_levels_are_not_checked():
    found = jax.jit(lambda levels: run(levels=levels)[0])(pick_levels(LEVELS, slice(-1)))
    assert found.shape == X.shape


def test_levels_are_never_applied_to_channels():
    """Two images of two channels, each at its own level."""
    x = jnp.ones((2, 4, 4, 2))
    levels = jax.tree.map(
        lambda a, b: jnp.stack([a, b], 1), LEVELS, make_levels(4, "t", 500.0, 5.0, clean=True)
    )
    for sampler in (ddpm("fixed_small"), ddim(), ddim(0.5), euler(), dpmpp_2m()):
        found, _ = sample(sampler, denoise, levels, x, lambda i: 0 * x)
        np.testing.assert_array_equal(found[..., 0], found[..., 1])
