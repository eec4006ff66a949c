"""`Diffusion` gives the same numbers as the functions beneath it, and compiles once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jax_ddpm as jd
from jax_ddpm.process.grids import choose_levels
from jax_ddpm.process.likelihood import make_reverse_fn
from tests.shared.docstrings import run_examples

KEY = jax.random.key(3)
SHAPE = (4, 4, 4, 2)
SCHEDULE = jd.named_schedule("cosine", 20)
PARAMS = {"scale": jnp.linspace(0.5, 1.5, 2), "shift": jnp.float32(0.1)}


def network(params, x_t, t, *, label=None, x_self_cond=None, train=False):
    """A small network with a term for each optional argument."""
    out = (
        x_t * params["scale"][None, None, None] + params["shift"] * jnp.cos(t)[:, None, None, None]
    )
    if label is not None:
        out += label[:, None, None, None]
    if x_self_cond is not None:
        out += 0.1 * x_self_cond
    return out + 1 if train else out


def network_with_variance(params, x_t, t):
    return jnp.concatenate([network(params, x_t, t), 0.1 * x_t], axis=-1)


class Traces:
    """A network that counts how often it is traced."""

    def __init__(self):
        self.count = 0

    def __call__(self, params, x_t, t, *, label=None):
        self.count += 1
        return network(params, x_t, t, label=label)


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(1), SHAPE, jnp.float32, -1, 1)


SETTINGS = [
    {"prediction_type": "v", "loss_type": "huber", "weighting": "min_snr", "min_snr_gamma": 2.0},
    {"weighting": "p2", "p2_gamma": 0.5, "p2_k": 2.0},
    {"objective": "vlb", "variance": "fixed_small", "vb_weight": 2.0},
    {"objective": "hybrid", "variance": "learned_range"},
]


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_loss_equals_the_loss_of_a_training_step_with_the_same_key(images, settings):
    self_condition = settings.get("objective") == "vlb"

    def apply_fn(params, x_t, t, *, x_self_cond=None, train=False, dropout_keys=None):
        noise = jax.vmap(lambda key: jax.random.normal(key, x_t.shape[1:], x_t.dtype))
        x_t = x_t + 0.1 * noise(dropout_keys) if train else x_t
        if settings.get("variance") == "learned_range":
            return network_with_variance(params, x_t, t)
        return network(params, x_t, t, x_self_cond=x_self_cond)

    optimizer = optax.sgd(0.0)
    update = jd.make_update(jd.make_loss_fn(apply_fn, SCHEDULE, **settings), optimizer)
    step = jd.make_train_step(update, SCHEDULE.num_timesteps, self_condition=self_condition)
    diffusion = jd.Diffusion(SCHEDULE, self_condition=self_condition, **settings)
    state = jd.create_state(PARAMS, optimizer)

    @jax.jit
    def compute_both(pixels, key):
        images, step_key = jd.from_uint8(pixels), jax.random.fold_in(key, 0)
        losses = diffusion.loss(apply_fn, PARAMS, images, step_key, train=True)
        return losses, step(state, pixels, key)[1]["loss"]

    for key in jax.random.split(KEY, 4):  # a coin decides about self-conditioning
        losses, mean = compute_both(jd.to_uint8(images), key)
        assert losses.shape == (4,)
        np.testing.assert_allclose(losses.mean(), mean, rtol=1e-5)  # measured: 2e-7


@pytest.mark.slow
def test_the_loss_of_an_image_depends_on_its_own_key(images):
    diffusion = jd.Diffusion(SCHEDULE)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(4))
    losses = diffusion.loss(network, PARAMS, images, KEY)
    np.testing.assert_array_equal(losses, diffusion.loss(network, PARAMS, images, keys))
    np.testing.assert_allclose(
        losses[2:], diffusion.loss(network, PARAMS, images[2:], keys[2:]), rtol=1e-6
    )
    old_style = jax.random.wrap_key_data(jax.random.PRNGKey(5))
    np.testing.assert_array_equal(
        diffusion.loss(network, PARAMS, images, jax.random.PRNGKey(5)),
        diffusion.loss(network, PARAMS, images, old_style),
    )


def test_keywords_reach_the_network(images):
    diffusion, label = jd.Diffusion(SCHEDULE), jnp.arange(4.0)
    plain = diffusion.loss(network, PARAMS, images, KEY)
    assert (diffusion.loss(network, PARAMS, images, KEY, train=True) != plain).all()
    assert (diffusion.loss(network, PARAMS, images, KEY, label=label) != plain)[1:].all()
    plain = diffusion.sample(network, PARAMS, KEY, SHAPE, steps=2)
    assert (diffusion.sample(network, PARAMS, KEY, SHAPE, steps=2, train=True) != plain).any()
    assert (diffusion.sample(network, PARAMS, KEY, SHAPE, steps=2, label=label) != plain).any()


def sample_by_hand(sampler, levels, **settings):
    """Do what `Diffusion.sample` does, with pure functions."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(4))
    x_T, noise_fn = jd.draw_noise(keys, SHAPE[1:])
    return jd.sample(
        sampler, jd.make_denoise_fn(network, PARAMS, **settings), levels, x_T, noise_fn
    )[0]


@pytest.mark.parametrize(
    ("name", "sampler", "spacing"),
    [
        ("ddim", jd.ddim(), "trailing"),
        ("heun", jd.heun(), "karras_trailing"),
        ("ddpm", None, "trailing"),
    ],
)
def test_samples_equal_the_samples_of_the_pure_functions(name, sampler, spacing):
    settings = {"prediction_type": "v", "dynamic_threshold": 0.9, "rederive_eps": False}
    diffusion = jd.Diffusion(SCHEDULE, variance="fixed_small", **settings)
    levels = choose_levels(SCHEDULE, 5, spacing, whole=True)
    expected = sample_by_hand(sampler or jd.ddpm("fixed_small"), levels, **settings)
    found = diffusion.sample(network, PARAMS, KEY, SHAPE, sampler=name, steps=5)
    np.testing.assert_allclose(found, expected, atol=1e-5)  # measured: 2e-7


def test_all_timesteps_are_visited_by_default():
    levels = jd.level_at(SCHEDULE, jnp.arange(19, -2, -1))
    found = jd.Diffusion(SCHEDULE).sample(network, PARAMS, KEY, SHAPE)
    np.testing.assert_allclose(found, sample_by_hand(jd.ddpm("fixed_large"), levels), atol=1e-5)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: (a == b).all(), jd.Diffusion(SCHEDULE).levels(), levels)
    )


def test_a_continuous_spacing_gives_levels_between_timesteps():
    levels = jd.Diffusion(SCHEDULE).levels(4, "karras")
    expected = jd.continuous_levels(SCHEDULE, 4, "karras")
    np.testing.assert_array_equal(levels.sigma, expected.sigma)


def test_an_image_does_not_depend_on_the_others():
    diffusion = jd.Diffusion(SCHEDULE)
    four = diffusion.sample(network, PARAMS, KEY, SHAPE, steps=5)
    two = diffusion.sample(network, PARAMS, KEY, (2, *SHAPE[1:]), steps=5)
    np.testing.assert_allclose(four[:2], two, atol=1e-6)  # measured: 0


def test_equal_calls_share_one_program():
    apply_fn = Traces()

    def draw(key=KEY, shape=SHAPE, schedule="cosine", **settings):
        diffusion = jd.Diffusion(jd.named_schedule(schedule, 20), prediction_type="v")
        settings = {"sampler": jd.ddim(), "steps": 3, **settings}
        diffusion.sample(apply_fn, PARAMS, key, shape, **settings)
        count, apply_fn.count = apply_fn.count, 0
        return count

    assert draw() > 0
    assert draw() == 0
    assert draw(key=jax.random.key(9)) == 0
    assert draw(sampler="ddim") == 0
    assert draw(sampler="pndm") > 0
    assert draw(sampler="pndm") == 0
    assert draw(label=jnp.zeros(4)) > 0
    assert draw(label=jnp.ones(4)) == 0
    for change in (
        {"sampler": jd.ddim(0.5)},
        {"steps": 4},
        {"shape": (2, *SHAPE[1:])},
        {"schedule": "linear"},
    ):
        assert draw(**change) > 0, change


def test_equal_likelihoods_share_one_program(images):
    apply_fn = Traces()
    for _ in range(2):
        jd.Diffusion(SCHEDULE).bits_per_dimension(apply_fn, PARAMS, images, KEY)
    traced = apply_fn.count
    jd.Diffusion(SCHEDULE).bits_per_dimension(apply_fn, PARAMS, images, jax.random.key(9))
    assert apply_fn.count == traced


def test_the_likelihood_is_the_variational_bound(images):
    settings = {"prediction_type": "v", "clip_x_0": False}
    denoise_fn = jd.make_denoise_fn(network, PARAMS, **settings)

    @jax.jit
    def bound(images):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(4))
        reverse_fn = make_reverse_fn(SCHEDULE, denoise_fn, "fixed_small")
        noise_fn = jd.make_noise_fn(keys, SHAPE[1:])
        return jd.variational_bound(SCHEDULE, reverse_fn, images, noise_fn)

    expected = bound(images)
    diffusion = jd.Diffusion(SCHEDULE, variance="fixed_small", **settings)
    found = diffusion.likelihood(network, PARAMS, images, KEY)
    np.testing.assert_allclose(found.terms, expected.terms, rtol=1e-4)  # measured: 6e-6
    np.testing.assert_array_equal(
        diffusion.bits_per_dimension(network, PARAMS, images, KEY), found.total
    )


def test_a_learned_variance_is_read_from_the_second_half_of_the_channels(images):
    diffusion = jd.Diffusion(SCHEDULE, objective="hybrid", variance="learned_range")
    assert diffusion.sample(network_with_variance, PARAMS, KEY, SHAPE, steps=3).shape == SHAPE
    assert diffusion.bits_per_dimension(network_with_variance, PARAMS, images, KEY).shape == (4,)


def test_self_conditioning_is_used_by_loss_sampler_and_likelihood(images):
    plain, conditioned = (jd.Diffusion(SCHEDULE, self_condition=c) for c in (False, True))
    for key in jax.random.split(KEY, 8):  # a coin decides
        a, b = (d.loss(network, PARAMS, images, key) for d in (plain, conditioned))
        if (a != b).any():
            break
    else:
        raise AssertionError("the network was never given its own guess")
    a, b = (d.sample(network, PARAMS, KEY, SHAPE, steps=3) for d in (plain, conditioned))
    assert (a != b).any()
    a, b = (d.bits_per_dimension(network, PARAMS, images, KEY) for d in (plain, conditioned))
    np.testing.assert_allclose(a, b, rtol=1e-6)  # the first guess is zeros


def test_it_can_be_passed_to_compiled_functions_and_used_in_them(images):
    diffusion = jd.Diffusion(SCHEDULE, prediction_type="v")

    @jax.jit
    def step(diffusion, params):
        return jax.grad(lambda p: diffusion.loss(network, p, images, KEY).mean())(params)

    eager = jax.grad(lambda p: diffusion.loss(network, p, images, KEY).mean())(PARAMS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), step(diffusion, PARAMS), eager
    )
    assert jax.tree.map(lambda a: a, diffusion).prediction_type == "v"


@pytest.mark.slow
def test_a_sampler_made_of_traced_arrays_belongs_to_its_trace(images):
    diffusion, mask = jd.Diffusion(SCHEDULE), jnp.arange(4).reshape(1, 1, 4, 1) < 2

    def paint(image):
        sampler = jd.inpaint(jd.ddim(), image, mask)
        return diffusion.sample(network, PARAMS, KEY, SHAPE, sampler=sampler, steps=3)

    for image in (images, images[:, ::-1]):
        found = jax.jit(paint)(image)
        np.testing.assert_allclose(found, paint(image), atol=1e-5)
        np.testing.assert_allclose(found[:, :, :2], image[:, :, :2], atol=1e-6)


def test_its_repr_names_the_settings_that_were_chosen():
    text = repr(jd.Diffusion(SCHEDULE, prediction_type="v", weighting="min_snr"))
    assert text == "Diffusion(T=20, prediction_type='v', weighting='min_snr')"


def test_the_example_in_its_docstring_runs():
    assert "diffusion" in run_examples(jd.Diffusion)
