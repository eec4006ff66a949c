"""The forms of the moving average, several averages in one step, and the choice among them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_ddpm.config.run import Config, TrainConfig
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.build import make_averages
from jax_ddpm.optim.averages import ema_rate, make_ema, make_posthoc_ema
from jax_ddpm.runs.averages import check_selection, select_average, select_params
from jax_ddpm.training.state import create_state
from jax_ddpm.training.update import make_update


def test_the_half_life_is_counted_in_steps():
    rate = ema_rate("half_life", 0.5, jnp.array([0, 7]), half_life=3.0)
    np.testing.assert_allclose((1 - rate) ** 3, 0.5, rtol=1e-12)  # measured: 2e-16


@pytest.mark.parametrize("rampup", [0.05, None])
def test_the_half_life_of_edm_grows_with_the_images_seen(rampup):
    """Their loop, in their unit: a step sees batch_size images."""
    half_life, batch_size = 100, 8
    (ema,) = make_averages(
        TrainConfig(
            batch_size=batch_size, ema_form="half_life", ema_half_life=half_life, ema_rampup=rampup
        )
    )
    params = np.random.default_rng(0).normal(size=(300, 3))
    expected = ours = jnp.zeros(3)
    for step, now in enumerate(jnp.asarray(params)):
        ceiling = half_life if rampup is None else min(half_life, step * batch_size * rampup)
        beta = 0.5 ** (batch_size / max(ceiling, 1e-8))
        expected = beta * expected + (1 - beta) * now
        ours = ema(ours, now, jnp.array(step))
        if step in (0, 1, 100, 299):
            np.testing.assert_allclose(ours, expected, rtol=1e-12)  # measured: 3e-15
    if rampup is not None:
        np.testing.assert_array_equal(ema(ours, jnp.asarray(params[0]), jnp.array(0)), params[0])


def test_the_half_life_keeps_its_digits_in_float32():
    with jax.enable_x64(False):
        rate = ema_rate("half_life", 0.5, jnp.array(1_000_000), half_life=1e5, rampup=0.05)
    assert rate.dtype == jnp.float32
    assert float(rate) == pytest.approx(-np.expm1(-np.log(2) / 5e4), rel=1e-6)  # measured: 1e-8


def test_the_warm_up_of_k_diffusion_is_stretched_by_inv_gamma():
    train = TrainConfig(ema_form="power", ema_inv_gamma=20.0, ema_power=0.75, ema_decay=0.99)
    (ema,) = make_averages(train)
    for step in (0, 1, 50, 100_000):
        decay = min(0.99, 1 - (1 + step / 20) ** -0.75)
        found = ema(jnp.array(1.0), jnp.array(3.0), jnp.array(step))
        assert found == pytest.approx(3 - 2 * decay, rel=1e-12)  # measured: 1e-16


def make_quadratic_step(**averages):
    """Make (state, target) -> state: one step of descent to a target, with some averages."""

    def loss(params, x_0, t, noise, **_):
        return ((params["w"] - x_0) ** 2).sum(axis=(1, 2, 3))

    update = make_update(loss, optax.sgd(0.1), **averages)
    zeros = jnp.zeros(1, int), jnp.zeros((1, 1, 1, 1))
    return lambda state, target: update(state, jnp.full((1, 1, 1, 1), target), *zeros)[0]


@pytest.mark.slow
def test_several_averages_equal_each_one_alone():
    emas = [make_ema("constant", decay) for decay in (0.9, 0.5, 0.99)] + [make_posthoc_ema(0.1)]
    start = {"w": jnp.ones(())}
    together = create_state(start, optax.sgd(0.1), num_more_ema=2, num_posthoc_ema=1)
    step = make_quadratic_step(ema=emas[0], more_ema=emas[1:3], posthoc_ema=emas[3:])
    alone = [create_state(start, optax.sgd(0.1)) for _ in emas]
    steps = [make_quadratic_step(ema=ema) for ema in emas]
    for target in (3.0, -1.0, 2.0):
        together = step(together, target)
        alone = [one(state, target) for one, state in zip(steps, alone, strict=True)]
    found = [together.ema_params, *together.more_ema, *together.posthoc_ema]
    assert [float(tree["w"]) for tree in found] == [float(s.ema_params["w"]) for s in alone]
    assert len({float(tree["w"]) for tree in found}) == 4


def test_every_average_has_its_own_buffers():
    state = create_state({"w": jnp.ones(3)}, optax.sgd(0.1), num_more_ema=2, num_posthoc_ema=2)
    donate = jax.jit(lambda state: jax.tree.map(lambda a: a + 1, state), donate_argnums=0)
    new = donate(state)  # a shared buffer would be refused
    trees = [new.params, new.ema_params, *new.more_ema, *new.posthoc_ema]
    assert [tree["w"].tolist() for tree in trees] == [[2] * 3] * 6


STATE = create_state({"w": jnp.zeros(2)}, optax.sgd(0.1), num_more_ema=2).replace(
    params="raw", ema_params="0.9999", more_ema=("0.5", "0.99")
)


def make_config(**train):
    return Config(train=replace(TrainConfig(ema_decays=(0.5, 0.99)), **train))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("raw", "raw"), ("ema", "0.9999"), ("0.9999", "0.9999"), ("0.50", "0.5"), ("0.99", "0.99")],
)
def test_an_average_is_named_by_its_decay(weights, expected):
    assert select_average(STATE, make_config(), weights) == expected


@pytest.mark.parametrize("weights", ["0.9", "best", "", "nan"])
def test_an_unknown_average_is_refused_with_a_list_of_the_known_ones(weights):
    message = f"--weights is {weights}, but this run has ema, raw, 0.9999, 0.5, 0.99"
    with pytest.raises(UserError, match=message):
        select_average(STATE, make_config(), weights)


def test_a_half_life_has_no_decay_to_be_named_by():
    with pytest.raises(UserError, match=r"this run has ema, raw$"):
        select_average(STATE, make_config(ema_form="half_life", ema_decays=()), "0.9999")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("ema", None, 7), "--posthoc-step 7 needs --posthoc-ema"),
        (("raw", 0.08, None), "leave out --weights raw"),
        (("ema", 0.08, None), "--posthoc-ema 0.08 needs a run trained with --train.posthoc-ema"),
        (("0.7", 0.08, None), "--weights is 0.7"),
    ],
)
def test_flags_that_cannot_work_are_refused_before_any_work(flags, message):
    with pytest.raises(UserError, match=message):
        check_selection(make_config(), *flags)
    check_selection(make_config(posthoc_ema=(0.05, 0.1)), "ema", 0.08, 7)
    check_selection(make_config(), "0.5", None, None)


@pytest.mark.usefixtures("unchecked_types")  # a stand-in replaces the run
def test_the_choice_is_described_in_words():
    state = STATE.replace(step=jnp.array(12))
    run = type("Run", (), {"config": make_config()})()
    assert select_params(run, state, "0.99") == ("0.99", "0.99 parameters of step 12")
