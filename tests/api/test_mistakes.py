"""Mistakes that new users make in Python: each gets one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ddpm as jd

# Users do not check types at run time, so the library itself has to notice.
pytestmark = pytest.mark.usefixtures("unchecked_types")

KEY = jax.random.key(0)
SHAPE = (4, 8, 8, 3)
SCHEDULE = jd.named_schedule("cosine", 10)
DIFFUSION = jd.Diffusion(SCHEDULE, prediction_type="v")
IMAGES = jnp.zeros(SHAPE, jnp.float32)
PARAMS = {"scale": jnp.float32(1)}


def network(params, x_t, t, *, label=None):
    return params["scale"] * x_t


def network_with_any_keyword(params, x_t, t, **network_args):
    return params["scale"] * x_t


def compute_loss(apply_fn=network, params=PARAMS, images=IMAGES, key=KEY, **network_args):
    return DIFFUSION.loss(apply_fn, params, images, key, **network_args)


def draw_samples(apply_fn=network, params=PARAMS, key=KEY, shape=SHAPE, **settings):
    return DIFFUSION.sample(apply_fn, params, key, shape, **{"steps": 2} | settings)


ZERO_SNR = jd.named_schedule("cosine", 10, zero_terminal_snr=True)
MISTAKES = {
    "a misspelt keyword": (
        lambda: jd.Diffusion(SCHEDULE, predicton_type="v"),
        "Diffusion takes no keyword 'predicton_type': did you mean 'prediction_type'?",
    ),
    "a schedule by its name": (
        lambda: jd.Diffusion("cosine"),
        "schedule is str, but it must be a Schedule, such as named_schedule",
    ),
    "betas for a schedule": (
        lambda: jd.Diffusion(jd.linear_betas(10)),
        "schedule is ndarray, but it must be a Schedule, such as .* or make_schedule",
    ),
    "an unknown prediction type": (
        lambda: jd.Diffusion(SCHEDULE, prediction_type="x0"),
        "prediction_type is 'x0', but it must be eps, x_0 or v: did you mean 'x_0'?",
    ),
    "an unknown weighting": (
        lambda: jd.Diffusion(SCHEDULE, weighting="minsnr"),
        "weighting is 'minsnr', but it must be .*: did you mean 'min_snr'?",
    ),
    "an unknown loss": (lambda: jd.Diffusion(SCHEDULE, loss_type="mse"), "loss_type is 'mse'"),
    "an unknown variance": (
        lambda: jd.Diffusion(SCHEDULE, variance="fixedsmall"),
        "did you mean 'fixed_small'?",
    ),
    "an objective that does not train the variance": (
        lambda: jd.Diffusion(SCHEDULE, variance="learned_range"),
        "objective 'simple' does not go with variance 'learned_range'",
    ),
    "eps where no signal is left": (
        lambda: jd.Diffusion(ZERO_SNR),
        "prediction_type is 'eps', but it must be 'x_0' or 'v' with zero terminal SNR",
    ),
    "an impossible quantile": (
        lambda: jd.Diffusion(SCHEDULE, dynamic_threshold=99.5),
        "dynamic_threshold is 99.5, but it must be a quantile, above 0 and at most 1",
    ),
    "a setting passed to a method": (
        lambda: compute_loss(prediction_type="v"),
        "prediction_type is a setting of Diffusion: give it there, Diffusion",
    ),
    "a misspelt keyword of the network": (
        lambda: compute_loss(lable=0),
        "the network takes no keyword 'lable': did you mean 'label'?",
    ),
    "a misspelt keyword of a network that takes any": (
        lambda: draw_samples(network_with_any_keyword, trian=True),
        "the network takes no keyword 'trian': did you mean 'train'?",
    ),
    "a misspelt keyword of sample": (
        lambda: draw_samples(network_with_any_keyword, samplr="ddim"),
        "did you mean 'sampler'?",
    ),
    "pixels": (
        lambda: compute_loss(images=jnp.zeros(SHAPE, jnp.uint8)),
        r"images are uint8: convert them to \[-1, 1\] with jd.from_uint8\(images\)",
    ),
    "whole numbers": (
        lambda: compute_loss(images=jnp.zeros(SHAPE, int)),
        r"images has dtype int64, but images are floats in \[-1, 1\]",
    ),
    "floats up to 255": (
        lambda: compute_loss(images=255 + IMAGES),
        "images go from 255 to 255, but samples are clipped",
    ),
    "a list of images": (
        lambda: compute_loss(images=[[0.0]]),
        "images is list, but it must be an array",
    ),
    "one image": (
        lambda: compute_loss(images=IMAGES[0]),
        r"images have shape \(8, 8, 3\), but it must be \(images, height, width, channels\)",
    ),
    "channels first": (
        lambda: compute_loss(images=jnp.moveaxis(IMAGES, -1, 1)),
        r"shape \(4, 3, 8, 8\), which looks like \[batch, channels, .* use jnp.moveaxis\(x, 1, -1\)",
    ),
    "the shape of images with channels first": (
        lambda: draw_samples(shape=(4, 1, 28, 28)),
        r"shape \(4, 1, 28, 28\), which looks like \[batch, channels,",
    ),
    "the shape of one image": (
        lambda: draw_samples(shape=(8, 8, 3)),
        r"shape is \(8, 8, 3\), but it must be \(images, height, width, channels\)",
    ),
    "a number for a shape": (lambda: draw_samples(shape=16), "shape is 16, but it must be"),
    "a seed": (
        lambda: compute_loss(key=0),
        r"key is 0, but it must be a random key .* jax.random.key\(0\)",
    ),
    "no key": (lambda: draw_samples(key=None), "key is NoneType, but it must be a random key"),
    "keys of other images": (
        lambda: compute_loss(key=jax.random.split(KEY, 3)),
        r"key has shape \(3,\) for 4 images: give one key, or one per image",
    ),
    "no parameters": (lambda: compute_loss(params=None), "params is None, .* such as network.init"),
    "a network for its function": (
        lambda: compute_loss(jd.NetworkFns(lambda key: PARAMS, network)),
        "apply_fn is a network: give its function, network.apply_fn",
    ),
    "no function": (lambda: draw_samples("unet"), "apply_fn is str, but it must be a function"),
    "a network with other channels": (
        lambda: draw_samples(lambda params, x_t, t: x_t[..., :1]),
        r"the network's output has shape \(4, 8, 8, 1\), but .* it must be \(4, 8, 8, 3\)",
    ),
    "a network without a variance": (
        lambda: jd.Diffusion(SCHEDULE, objective="hybrid", variance="learned").loss(
            network, PARAMS, IMAGES, KEY
        ),
        r"output has shape .* with a learned variance it must be \(4, 8, 8, 6\)",
    ),
    "an unknown sampler": (
        lambda: draw_samples(sampler="dimm"),
        "sampler is 'dimm', but it must be ddpm, ddim, .*: did you mean 'ddim'?",
    ),
    "a sampler that was not called": (
        lambda: draw_samples(sampler=jd.ddim),
        r"sampler is a function: call it, as in ddim\(eta=0.0\)",
    ),
    "more steps than timesteps": (lambda: draw_samples(steps=11), "between 1 and T = 10, got 11"),
    "an unknown spacing": (
        lambda: draw_samples(spacing="trailling"),
        "spacing is 'trailling', but it must be .* karras_trailing: did you mean 'trailing'?",
    ),
    "no steps": (lambda: draw_samples(steps=0), "between 1 and T = 10, got 0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_sentence(mistake):
    make, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        make()


def test_other_names_from_the_field_are_understood():
    names = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v", "v": "v"}
    for given, ours in names.items():
        assert jd.Diffusion(SCHEDULE, prediction_type=given).prediction_type == ours


def test_unusual_but_valid_arguments_are_accepted():
    assert compute_loss(images=np.zeros((4, 1, 12, 7), np.float32)).shape == (
        4,
    )  # series of 12 steps
    assert compute_loss(images=np.zeros((4, 3, 3, 3), np.float32)).shape == (4,)
    unclipped = jd.Diffusion(SCHEDULE, clip_x_0=False)  # latents go beyond 1
    assert unclipped.loss(network, PARAMS, 5 + IMAGES, KEY).shape == (4,)
    assert draw_samples(lambda params, x_t, t: 0 * x_t, params={}).shape == SHAPE
