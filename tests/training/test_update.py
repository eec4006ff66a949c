"""The update: gradient, optimiser, averages, and steps that change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_ddpm.optim.averages import make_ema
from jax_ddpm.process.losses import make_loss_fn
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.process.timesteps import empty_history
from jax_ddpm.training.state import create_state
from jax_ddpm.training.update import make_update

T = 5
SCHEDULE = named_schedule("cosine", T, dtype=jnp.float64)
DESCENT = optax.sgd(0.5)
X_0, NOISE = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 2, 2, 1)))
TIMES = jnp.arange(8) % T


def network(params, x_t, t, *, label=None, x_self_cond=None, train=False, dropout_keys=None):
    """One parameter for each input, and masks from the dropout keys."""
    out = params["image"] * x_t
    if label is not None:
        out += params["label"] * label[:, None, None, None]
    if x_self_cond is not None:
        out += params["guess"] * x_self_cond
    if dropout_keys is not None:
        out *= jax.vmap(lambda key: jax.random.bernoulli(key, 0.8, x_t.shape[1:]))(dropout_keys)
    return out


LOSS = make_loss_fn(network, SCHEDULE)


def make_first_state(optimizer=DESCENT, **more):
    params = {"image": jnp.float64(0.3), "label": jnp.float64(0.1), "guess": jnp.float64(0.2)}
    return create_state(params, optimizer, **more)


def test_an_update_moves_the_parameters_and_then_the_averages():
    """Every number is worked out by hand."""
    emas = {"ema": make_ema("constant", 0.75), "more_ema": [make_ema("ramp", 0.75)]}
    update = jax.jit(make_update(LOSS, DESCENT, **emas))
    new, metrics = update(make_first_state(num_more_ema=1), X_0, TIMES, NOISE)
    signal, sigma = SCHEDULE.sqrt_alphas_cumprod, SCHEDULE.sqrt_one_minus_alphas_cumprod
    x_t = signal[TIMES].reshape(8, 1, 1, 1) * X_0 + sigma[TIMES].reshape(8, 1, 1, 1) * NOISE
    gradient = (2 * (0.3 * x_t - NOISE) * x_t).mean()
    moved = 0.3 - 0.5 * gradient
    # Measured: at most 4e-16 relative.
    np.testing.assert_allclose(metrics["loss"], ((0.3 * x_t - NOISE) ** 2).mean(), rtol=1e-12)
    np.testing.assert_allclose(metrics["grad_norm"], abs(gradient), rtol=1e-12)
    np.testing.assert_allclose(new.params["image"], moved, rtol=1e-12)
    for average, decay in ((new.ema_params, 0.75), (new.more_ema[0], 0.1)):
        expected = decay * 0.3 + (1 - decay) * moved
        np.testing.assert_allclose(average["image"], expected, rtol=1e-12)
    assert (new.step, metrics["skipped"]) == (1, 0)


@pytest.mark.slow
def test_weights_change_the_gradient_and_the_history_gets_the_losses_themselves():
    """In one part and in four, with every input that a network may have."""
    weight = np.linspace(0.5, 2, 8)
    args = {"label": jnp.arange(8) % 3, "self_condition": jnp.array(True)}
    keys = jax.random.split(jax.random.key(7), 8)

    def by_hand(params):
        losses = LOSS(params, X_0, TIMES, NOISE, train=True, dropout_keys=keys, **args)
        return (weight * losses).mean(), losses

    (loss, losses), grads = jax.jit(jax.value_and_grad(by_hand, has_aux=True))(
        make_first_state().params
    )
    assert min(abs(leaf) for leaf in jax.tree.leaves(grads)) > 1e-3
    for accumulate in (1, 4):
        update = jax.jit(make_update(LOSS, DESCENT, accumulate=accumulate))
        state = make_first_state().replace(loss_history=empty_history(T, 3, jnp.float64))
        new, metrics = update(state, X_0, TIMES, NOISE, keys, weight=weight, **args)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-12)  # measured: 3e-16
        for name, gradient in grads.items():
            moved = (state.params[name] - new.params[name]) / 0.5
            np.testing.assert_allclose(moved, gradient, rtol=1e-12)
        np.testing.assert_array_equal(new.loss_history.counts, np.bincount(TIMES))
        np.testing.assert_allclose(new.loss_history.losses[2, :2], losses[2::5], rtol=1e-12)


def two_channels(params, x_t, t, **_):
    return jnp.concatenate([params["image"] * x_t, params["label"] * x_t], axis=-1)


@pytest.mark.slow
def test_the_terms_of_a_hybrid_loss_are_reported_and_change_nothing():
    """The state has the same bits as that of an update which does not know the terms."""
    loss_fn = make_loss_fn(two_channels, SCHEDULE, objective="hybrid", variance="learned_range")
    weight = jnp.linspace(0.5, 2, 8)

    def whole(params, *args, **options):
        return loss_fn(params, *args, **options)

    def take_step(loss, accumulate):
        update = jax.jit(make_update(loss, DESCENT, accumulate=accumulate))
        return update(make_first_state(), X_0, TIMES, NOISE, weight=weight)

    for accumulate in (1, 2):
        (state, metrics), (plain, others) = (
            take_step(loss, accumulate) for loss in (loss_fn, whole)
        )
        jax.tree.map(np.testing.assert_array_equal, state, plain)
        assert metrics.keys() - others.keys() == {"mse", "vb"}
        error, bound = loss_fn.parts(make_first_state().params, X_0, TIMES, NOISE)
        # Measured: at most 2e-16 relative.
        np.testing.assert_allclose(metrics["mse"], (weight * error).mean(), rtol=1e-12)
        np.testing.assert_allclose(metrics["vb"], (weight * bound).mean(), rtol=1e-12)
        assert metrics["loss"] == others["loss"]
        assert metrics["vb"] != 0


def test_a_batch_must_divide_into_the_parts():
    update = make_update(LOSS, DESCENT, accumulate=3)
    with pytest.raises(ValueError, match="a batch of 8 does not divide into 3 equal parts"):
        jax.eval_shape(update, make_first_state(), X_0, TIMES, NOISE)


def test_the_update_takes_any_loss():
    def loss_fn(params, x_0, t, noise, *, train, dropout_keys):
        assert train
        return (params["image"] - x_0.mean((1, 2, 3))) ** 2

    x_0 = jnp.arange(4.0).reshape(4, 1, 1, 1)
    update = jax.jit(make_update(loss_fn, DESCENT))
    state, metrics = update(make_first_state(), x_0, TIMES[:4], x_0)
    np.testing.assert_allclose(state.params["image"], 1.5, rtol=1e-12)  # the mean, in one step
    np.testing.assert_allclose(metrics["loss"], ((0.3 - np.arange(4)) ** 2).mean(), rtol=1e-12)


BAD = {
    "the loss": (DESCENT, lambda params, x_0: params["image"] * x_0.mean((1, 2, 3)) / 0),
    "the norm of the gradient, though the gradient is finite": (
        optax.chain(optax.clip_by_global_norm(1.0), DESCENT),
        lambda params, x_0: (
            jnp.float32(1e30)
            * params["image"].astype(jnp.float32)
            * x_0[:, 0, 0, 0].astype(jnp.float32)
        ),
    ),
    "the change of the parameters, though loss and gradient are": (
        optax.sgd(jnp.inf),
        lambda params, x_0: (params["image"] - x_0.mean((1, 2, 3))) ** 2,
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_step_whose_numbers_are_not_finite_changes_nothing_but_the_counts(what):
    optimizer, loss = BAD[what]

    def loss_fn(params, x_0, t, noise, **_):
        return loss(params, x_0)

    before = make_first_state(optimizer)
    if "norm" in what:  # in float32, the square of the gradient overflows
        before = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), before.params)
        before = create_state(before, optimizer)
    state, metrics = jax.jit(make_update(loss_fn, optimizer))(before, 1 + X_0**2, TIMES, NOISE)
    assert np.isfinite(metrics["loss"]) == (what != "the loss")
    assert (metrics["skipped"], state.step, state.skipped.total, state.skipped.in_a_row) == (1,) * 4
    kept = state.replace(step=before.step, skipped=before.skipped)
    for found, expected in zip(jax.tree.leaves(kept), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(found, expected)
