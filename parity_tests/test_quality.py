"""Features and measures of image quality, against what torch-fidelity computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.parity.parts import LIBRARY
from jax_ddpm.parity.quantities import measure_part
from jax_ddpm.parity.random_inception import draw_pictures, draw_state_dict
from jax_ddpm.parity.report import use_full_precision
from jax_ddpm.quality.distances import inception_score, kernel_distance
from jax_ddpm.quality.frechet import distance_of_features, fit_gaussian, frechet_distance
from jax_ddpm.quality.inception import convert_inception, extract, resize_as_tensorflow_1
from jax_ddpm.quality.manifolds import precision_and_recall
from parity_tests.comparing import QUICK, SHORT, read_golden

THEIRS = "torch-fidelity (recorded)"


@functools.cache
def load_recorded(case):
    return read_golden(f"torch_fidelity/{case}")[1]


@pytest.mark.parametrize("how", ["enlarged", "shrunk"])
def test_images_are_resized_as_theirs(compare, dtype, how):
    images = draw_pictures()
    if how == "shrunk":
        images = np.random.default_rng(3).integers(0, 256, (1, 310, 400, 3))
    found = resize_as_tensorflow_1(jnp.asarray(images, dtype))[:, ::23, ::29]
    compare("resized images", found, load_recorded("inception")[f"{SHORT[dtype]}.{how}"], dtype)


@pytest.mark.slow
@pytest.mark.guard
def test_inceptions_features_and_logits_are_theirs(compare, dtype):
    io = load_recorded("inception")
    np.testing.assert_array_equal(io["in.images"], draw_pictures())
    params = convert_inception(draw_state_dict(), dtype)
    found = jax.jit(extract, compiler_options=QUICK)(params, io["in.images"])
    compare("Inception", found.features, io[f"{SHORT[dtype]}.features"], dtype)
    compare("Inception", found.logits, io[f"{SHORT[dtype]}.logits"], dtype)


def test_measures_of_the_same_features_are_theirs():
    io = load_recorded("measures")
    theirs = {
        name.removeprefix("both."): float(value) for name, value in io.items() if value.ndim == 0
    }
    drawn, real = io["in.drawn"], io["in.real"]
    reference = fit_gaussian(real)
    kid = kernel_distance(drawn, real, num_subsets=20, subset_size=100)
    score = inception_score(io["in.logits"])
    shares = precision_and_recall(drawn, real)
    ours = {
        "frechet_inception_distance": frechet_distance(fit_gaussian(drawn), reference),
        "frechet_inception_distance_of_15": distance_of_features(drawn[:15], reference),
        "kernel_inception_distance_mean": kid.mean,
        "kernel_inception_distance_std": kid.spread,
        "inception_score_mean": score.mean,
        "inception_score_std": score.spread,
        "precision": shares.precision,
        "recall": shares.recall,
    }
    for name, value in ours.items():
        # measured: 2e-15 and less; 5e-8 for precision and recall, which are float32 there
        np.testing.assert_allclose(value, theirs[name], rtol=1e-6, err_msg=name)


@pytest.mark.slow
def test_the_reports_part_is_within_tolerance():
    """Live; the other tests compare with what was recorded."""
    pytest.importorskip("torch_fidelity")
    (part,) = [part for part in LIBRARY if part.name == "quality"]
    with use_full_precision():
        quantities = list(measure_part(part, seed=0))
    assert len(quantities) == 13
    assert [quantity.what for quantity in quantities if not quantity.ok] == []
