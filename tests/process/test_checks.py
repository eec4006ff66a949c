"""Every mistake in the arguments of the maths gets one sentence that says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.optim.optimizers import make_optimizer
from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.diffusion import p_mean_variance, q_posterior, q_sample, q_step
from jax_ddpm.process.grids import continuous_levels, timestep_grid
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.likelihood import make_reverse_fn
from jax_ddpm.process.losses import diffusion_loss, make_loss_fn
from jax_ddpm.process.pixel_losses import pixel_loss
from jax_ddpm.process.predictions import prediction_target, to_prediction
from jax_ddpm.process.probability_flow import draw_probes
from jax_ddpm.process.schedules import linear_betas, make_schedule, named_schedule
from jax_ddpm.process.timesteps import make_timestep_fn
from jax_ddpm.process.types import Prediction
from jax_ddpm.process.weighting import loss_weight
from jax_ddpm.samplers import ddim, heun
from jax_ddpm.samplers.sa_solver import sa_solver

SCHEDULE = named_schedule("linear", 100)
X, T = jnp.full((2, 8, 8, 3), 0.5), jnp.array([3, 50])
LEVEL = level_at(SCHEDULE, T)
KEYS = jax.random.split(jax.random.key(0), 2)


def network(params, x_t, t, **anything):
    return x_t


def make_loss(**settings):
    return make_loss_fn(network, SCHEDULE, **settings)


WRONG_NAMES = {
    "prediction_type is 'epsilom', but it must be eps, x_0 or v: did you mean 'epsilon'?": [
        lambda: make_denoise_fn(network, None, prediction_type="epsilom"),
        lambda: make_loss(prediction_type="epsilom"),
        lambda: diffusion_loss(network, None, SCHEDULE, X, T, X, prediction_type="epsilom"),
        lambda: to_prediction(X, X, LEVEL, "epsilom"),
        lambda: prediction_target(LEVEL, X, X, "epsilom"),
        lambda: loss_weight(SCHEDULE, "snr", "epsilom"),
    ],
    "loss_type is 'L2', but it must be l1, l2 or huber: did you mean 'l2'?": [
        lambda: make_loss(loss_type="L2"),
        lambda: pixel_loss("L2", X, X),
    ],
    "weighting is 'minsnr', but it must be constant, snr, truncated_snr, min_snr, soft_min_snr or "
    "p2: did you mean 'min_snr'?": [
        lambda: make_loss(weighting="minsnr"),
        lambda: loss_weight(SCHEDULE, "minsnr"),
    ],
    "objective is 'simpel', but it must be simple, hybrid or vlb: did you mean 'simple'?": [
        lambda: make_loss(objective="simpel"),
    ],
    "variance is 'fixedsmall', but it must be fixed_small, fixed_large, learned_range or learned: "
    "did you mean 'fixed_small'?": [
        lambda: make_loss(variance="fixedsmall"),
        lambda: make_reverse_fn(SCHEDULE, network, "fixedsmall"),
        lambda: p_mean_variance(SCHEDULE, Prediction(X, X), X, T, "fixedsmall"),
    ],
    "schedule is 'cosin', but it must be linear, linear_rescaled, quadratic, sigmoid, "
    "sigmoid_cumprod, cosine, cosine_clipped, cosine_epita, quadratic_slip, const, warmup10, "
    "warmup50 or jsd: did you mean 'cosine'?": [lambda: named_schedule("cosin", 10)],
    "clipped_log_variance is 'second', but it must be second_entry or floor: did you mean "
    "'second_entry'?": [lambda: make_schedule(linear_betas(10), clipped_log_variance="second")],
    "timestep sampling is 'logit_normal', but it must be uniform, stratified, antithetic, "
    "log_normal or importance: did you mean 'log_normal'?": [
        lambda: make_timestep_fn("logit_normal", SCHEDULE),
    ],
    "spacing is 'trailling', but it must be leading, trailing, linspace, quad or lucidrains: did "
    "you mean 'trailing'?": [lambda: timestep_grid(100, 10, "trailling")],
    "spacing is 'logsnr', but it must be log_snr, karras or karras_trailing: did you mean 'log_snr'?": [
        lambda: continuous_levels(SCHEDULE, 10, "logsnr"),
    ],
    "kind of probes is 'rademaker', but it must be rademacher or normal: did you mean "
    "'rademacher'?": [lambda: draw_probes(KEYS, (4, 4, 1), 2, kind="rademaker")],
}

WRONG_ARGUMENTS = {
    "predicton_type would go to the network, but it looks like prediction_type, an argument of "
    "make_denoise_fn": [lambda: make_denoise_fn(network, None, predicton_type="v")],
    "clip_x0 would go to the network, but it looks like clip_x_0, an argument of make_denoise_fn": [
        lambda: make_denoise_fn(network, None, clip_x0=False)
    ],
    "weigthing would go to the network, but it looks like weighting, an argument of make_loss_fn": [
        lambda: diffusion_loss(network, None, SCHEDULE, X, T, X, weigthing="snr"),
        lambda: make_loss()(None, X, T, X, weigthing="snr"),
    ],
    "weighting is an argument of make_loss_fn, not of the network": [
        lambda: diffusion_loss(network, None, SCHEDULE, X, T, X, weighting="snr"),
        lambda: make_loss()(None, X, T, X, weighting="snr"),
    ],
}

WRONG_NUMBERS = {
    "the number of timesteps must be a whole number of at least 1, got 10.5": [
        lambda: named_schedule("linear", 10.5)
    ],
    "the number of timesteps must be a whole number of at least 1, got 0": [
        lambda: named_schedule("cosine", 0)
    ],
    "the number of sampling steps must be between 1 and T = 100, got 2.5": [
        lambda: timestep_grid(100, 2.5)
    ],
    "eta is 2.0, but it must be between 0 and 1": [lambda: ddim(2.0), lambda: ddim(eta=2.0)],
    "eta is -0.1, but it must be between 0 and 1": [lambda: ddim(-0.1)],
    "churn is -1.0, but it must be at least 0": [lambda: heun(churn=-1.0)],
    "tau is -1.0, but it must be at least 0": [lambda: sa_solver(tau=-1.0)],
    "learning_rate is -1.0, but it must be greater than 0": [lambda: make_optimizer(-1.0)],
    "betas is (0.9, 1.0), but it must be in [0, 1)": [
        lambda: make_optimizer(0.1, betas=(0.9, 1.0))
    ],
}

PIXELS = jnp.zeros((2, 8, 8, 3), jnp.uint8)
CHANNELS_FIRST = jnp.zeros((2, 3, 8, 8))
WRONG_IMAGES = {
    "x_0 has dtype uint8, but images are floats in [-1, 1]: convert pixels with x / 127.5 - 1": [
        lambda: q_sample(SCHEDULE, PIXELS, T, X),
        lambda: diffusion_loss(network, None, SCHEDULE, PIXELS, T, X),
        lambda: make_loss()(None, PIXELS, T, X),
        lambda: jax.eval_shape(lambda x: q_sample(SCHEDULE, x, T, X), PIXELS),
    ],
    "x_t has dtype uint8, but images are floats in [-1, 1]: convert pixels with x / 127.5 - 1": [
        lambda: make_denoise_fn(network, None)(PIXELS, LEVEL),
    ],
    "x_0 has shape (2, 3, 8, 8), which looks like [batch, channels, height, width], but images are "
    "[batch, height, width, channels]: use jnp.moveaxis(x, 1, -1)": [
        lambda: q_sample(SCHEDULE, CHANNELS_FIRST, T, CHANNELS_FIRST),
        lambda: make_loss()(None, CHANNELS_FIRST, T, CHANNELS_FIRST),
    ],
    "the network returns a tuple, but it must return one array of shape (2, 8, 8, 3)": [
        lambda: make_denoise_fn(return_tuple, None)(X, LEVEL),
        lambda: make_loss_fn(return_tuple, SCHEDULE)(None, X, T, X),
    ],
    "the network's output has shape (2, 8, 8, 6), but for x_t of shape (2, 8, 8, 3) it must be "
    "(2, 8, 8, 3): if the second half of the channels is the variance, say that it is learned": [
        lambda: make_denoise_fn(double_channels, None)(X, LEVEL),
        lambda: make_loss_fn(double_channels, SCHEDULE)(None, X, T, X),
        lambda: diffusion_loss(double_channels, None, SCHEDULE, X, T, X),
    ],
    "the network's output has shape (2, 8, 8, 3), but for x_t of shape (2, 8, 8, 3) with a learned "
    "variance it must be (2, 8, 8, 6)": [
        lambda: make_denoise_fn(network, None, learned_variance=True)(X, LEVEL),
        lambda: make_loss(objective="vlb", variance="learned")(None, X, T, X),
    ],
}
WRONG_TIMESTEPS = {
    "t is 100, but it must be between -1 and 99": [
        lambda: level_at(SCHEDULE, jnp.array([3, 100])),
        lambda: level_at(SCHEDULE, 100),
        lambda: q_sample(SCHEDULE, X, jnp.array([3, 100]), X),
        lambda: diffusion_loss(network, None, SCHEDULE, X, jnp.array([3, 100]), X),
    ],
    "t is -2, but it must be between -1 and 99": [lambda: level_at(SCHEDULE, np.array(-2))],
    "t is -1, but it must be between 0 and 99": [
        lambda: q_posterior(SCHEDULE, X, X, jnp.array(-1)),
        lambda: q_step(SCHEDULE, X, jnp.array(-1), X),
    ],
    "t has dtype float32, but timesteps are integers: level_of_t gives the levels between them": [
        lambda: level_at(SCHEDULE, jnp.array([0.5, 3.0], jnp.float32)),
    ],
}


def return_tuple(params, x_t, t, **kwargs):
    return x_t, {}


def double_channels(params, x_t, t):
    return jnp.concatenate([x_t, x_t], axis=-1)


TABLE = WRONG_NAMES | WRONG_ARGUMENTS | WRONG_NUMBERS | WRONG_IMAGES | WRONG_TIMESTEPS


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("sentence", TABLE)
def test_a_mistake_gets_one_sentence(sentence):
    for call in TABLE[sentence]:
        with pytest.raises(UserError) as error:
            call()
        assert str(error.value).split("\n")[0] == sentence


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("epsilon", "eps"),
        ("pred_noise", "eps"),
        ("sample", "x_0"),
        ("pred_x0", "x_0"),
        ("v_prediction", "v"),
        ("pred_v", "v"),
    ],
)
def test_the_other_names_of_prediction_types_are_understood(alias, name):
    found, expected = (
        make_denoise_fn(network, None, prediction_type=n)(X, LEVEL) for n in (alias, name)
    )
    np.testing.assert_array_equal(found.eps, expected.eps)
    assert jnp.all(
        make_loss(prediction_type=alias)(None, X, T, X)
        == make_loss(prediction_type=name)(None, X, T, X)
    )


@pytest.mark.parametrize(
    ("alias", "name"), [("squaredcos_cap_v2", "cosine"), ("scaled_linear", "quadratic")]
)
def test_the_other_names_of_schedules_are_understood(alias, name):
    np.testing.assert_array_equal(named_schedule(alias, 20).betas, named_schedule(name, 20).betas)


def test_arguments_that_only_the_network_knows_reach_it():
    seen = {}

    def spy(params, x_t, t, **network_args):
        seen.update(network_args)
        return x_t

    args = dict.fromkeys(
        ("label", "train", "dropout_keys", "condition", "text", "y", "class_labels")
    )
    make_denoise_fn(spy, None, **args)(X, LEVEL)
    assert seen.keys() == args.keys()
    make_loss_fn(spy, SCHEDULE)(None, X, T, X, **args | {"text": 1})
    assert seen["text"] == 1


@pytest.mark.parametrize("shape", [(2, 1, 1, 2), (2, 3, 4, 4), (2, 8, 8, 4), (2, 3, 8, 3), (5, 2)])
@pytest.mark.usefixtures("unchecked_types")
def test_small_and_unusual_images_are_not_mistaken_for_channels_first(shape):
    x = jnp.zeros(shape)
    assert q_sample(SCHEDULE, x, jnp.zeros(shape[0], int), x).shape == shape


def test_traced_timesteps_are_not_checked():
    """Their values are unknown then; the level of a timestep beyond the end is the last one."""
    level = jax.jit(lambda t: level_at(SCHEDULE, t))(jnp.array(100))
    assert level.sigma == SCHEDULE.sqrt_one_minus_alphas_cumprod[-1]
