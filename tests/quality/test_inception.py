import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.quality.inception import convert_inception, resize_as_tensorflow_1


def test_corners_are_tensorflow_1s():
    ramp = jnp.arange(4, dtype=jnp.float32)[None, None, :, None]
    found = np.asarray(resize_as_tensorflow_1(ramp, side=8))[0, 0, :, 0]
    np.testing.assert_array_equal(found, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3])


def test_other_weights_are_refused():
    with pytest.raises(UserError, match="not the weights of the Inception network of FID"):
        convert_inception({"Mixed_5b.branch1x1.conv.weight": np.zeros((64, 192, 1, 1))})
