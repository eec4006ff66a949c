import jax
import numpy as np

from jax_ddpm.data.sources import open_source
from jax_ddpm.quality.classifier import WEIGHTS, classify, load_classifier


def test_the_shipped_classifier_is_small_and_knows_the_test_images():
    source = open_source("embedded", split="test")
    images, labels = source.images[:500], source.labels[:500]
    found = jax.jit(classify)(load_classifier(), np.asarray(images))
    accuracy = (np.asarray(found.logits).argmax(1) == labels).mean()
    assert 0.88 < accuracy < 1  # 90.0 % of all 2,000
    assert found.features.shape == (500, 128)
    assert WEIGHTS.stat().st_size < 2**20
