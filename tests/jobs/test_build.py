from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jax_ddpm.config.run import Config
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.build import build
from jax_ddpm.models import CustomConfig, GuidedDiffusionConfig, LucidrainsConfig, UNetConfig

SMALL = UNetConfig(channels=4, channel_mult=(1,), num_res_blocks=1, attn_levels=(), num_groups=2)


def change_config(model=SMALL, **diffusion):
    return replace(Config(model=model), diffusion=replace(Config().diffusion, **diffusion))


def count_out_channels(parts, shape):
    def output(key):
        return parts.network.apply_fn(parts.network.init(key), jnp.zeros((1, *shape)), jnp.zeros(1))

    return jax.eval_shape(output, jax.random.key(0)).shape[-1]


def test_a_learned_variance_doubles_the_output():
    fixed = build(change_config(), (8, 8, 3))
    learned = build(change_config(variance="learned_range", objective="hybrid"), (8, 8, 3))
    assert (fixed.learned_variance, count_out_channels(fixed, (8, 8, 3))) == (False, 3)
    assert (learned.learned_variance, count_out_channels(learned, (8, 8, 3))) == (True, 6)


def test_a_network_for_other_images_is_refused_in_one_sentence():
    with pytest.raises(
        UserError, match=r"8x8x3 for images of 8x8x1, .* return 1 channels .*channels"
    ):
        build(change_config(replace(SMALL, out_channels=3)), (8, 8, 1))
    with pytest.raises(UserError, match=r"images are 7x8, .*multiples of 2"):
        build(change_config(LucidrainsConfig(dim=8, dim_mults=(1, 2))), (7, 8, 1))


def test_labels_and_self_conditioning_come_from_the_network():
    classes = GuidedDiffusionConfig(
        model_channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        num_classes=7,
    )
    assert build(change_config(classes), (8, 8, 1)).num_labels == 7
    assert build(change_config(), (8, 8, 1)).num_labels is None
    again = LucidrainsConfig(dim=8, dim_mults=(1,), self_condition=True)
    assert build(change_config(again), (8, 8, 1)).self_condition
    assert not build(change_config(), (8, 8, 1)).self_condition


@pytest.mark.slow
def test_rescaled_timesteps_count_to_a_thousand():
    """The network gets 250 * 1000 / 500 = 500."""
    plain, rescaled = (
        build(change_config(num_timesteps=500, rescale_timesteps=on), (4, 4, 1), "float64")
        for on in (False, True)
    )
    shapes = jax.eval_shape(plain.network.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1, jnp.float64), shapes)
    x_t = jnp.arange(16.0).reshape(1, 4, 4, 1)
    out = rescaled.network.apply_fn(params, x_t, jnp.array([250]))
    assert jnp.array_equal(out, plain.network.apply_fn(params, x_t, jnp.array([500.0])))
    assert not jnp.array_equal(out, plain.network.apply_fn(params, x_t, jnp.array([250.0])))


def test_with_label_dropout_the_last_label_means_no_class():
    model = replace(SMALL, num_classes=11)
    parts = build(change_config(model, label_dropout=0.1), (8, 8, 1))
    assert (parts.num_labels, parts.null_label) == (10, 10)
    parts = build(change_config(model), (8, 8, 1))
    assert (parts.num_labels, parts.null_label) == (11, None)
    assert build(change_config(), (8, 8, 1)).null_label is None


def test_only_importance_sampling_has_a_history_of_losses():
    def history(**diffusion):
        parts = build(change_config(num_timesteps=20, **diffusion), (8, 8, 1))
        return jax.eval_shape(parts.init_state, jax.random.key(0)).loss_history

    assert history() is None
    found = history(timestep_sampling="importance")
    assert (found.losses.shape, found.counts.shape) == ((20, 10), (20,))


def test_a_schedule_can_be_made_to_end_in_pure_noise():
    assert build(change_config(), (8, 8, 1)).schedule.sqrt_alphas_cumprod[-1] > 0
    parts = build(change_config(zero_terminal_snr=True), (8, 8, 1))
    assert parts.schedule.sqrt_alphas_cumprod[-1] == 0


def make_plain_network(doubled=False):
    """Make a network in plain JAX that knows nothing about training."""

    def apply_fn(params, x_t, t):
        out = params["w"] * x_t
        return jnp.concatenate([out, out], -1) if doubled else out

    return lambda key: {"w": jax.random.normal(key, ())}, apply_fn


def test_your_own_network_gets_only_the_arguments_that_it_takes():
    seen = []

    def apply_fn(params, x_t, t, *, label, train=False):
        seen.append((label.shape, train))
        return params * x_t

    own = change_config(CustomConfig(num_classes=3))
    network = build(own, (4, 4, 1), network=(lambda key: jnp.ones(()), apply_fn)).network
    x_t, t = jnp.ones((2, 4, 4, 1)), jnp.zeros(2)
    network.apply_fn(1.0, x_t, t, label=t, x_self_cond=None, train=True, dropout_keys=t)
    assert seen[-1] == ((2,), True)
    with pytest.raises(TypeError, match="x_self_cond"):
        network.apply_fn(1.0, x_t, t, label=t, x_self_cond=x_t)


@pytest.mark.parametrize(
    ("model", "network", "message"),
    [
        (
            SMALL,
            make_plain_network(),
            r"UNetConfig, but it must be CustomConfig\(\) for a network of",
        ),
        (CustomConfig(), None, r"a network of your own, which its folder does not hold"),
        (
            CustomConfig(),
            make_plain_network(doubled=True),
            "8x8x2 for images of 8x8x1, .* 1 channels",
        ),
        (CustomConfig(num_classes=2), make_plain_network(), "does not take images .*'label'"),
    ],
)
def test_your_own_network_is_refused_if_it_does_not_fit(model, network, message):
    with pytest.raises(UserError, match=message):
        build(change_config(model), (8, 8, 1), network=network)


def test_remat_is_refused_for_your_own_network():
    own = change_config(CustomConfig())
    own = replace(own, train=replace(own.train, remat="nothing_saveable"))
    with pytest.raises(UserError, match=r"remat is nothing_saveable.* must be none .*checkpoint"):
        build(own, (8, 8, 1), network=make_plain_network())
