import numpy as np
import pytest

from jax_ddpm.data.sources import ImageSource
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.rulers import make_ruler, split_data


def test_the_data_is_split_into_parts_that_share_no_image():
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    data = split_data(ImageSource(images, None), 10)
    assert (data.reference.shape, [len(others) for others in data.others]) == ((30, 1, 1, 1), [10])
    assert len(np.unique(np.concatenate([data.reference, *data.others]))) == 40
    with pytest.raises(UserError, match=r"--num is 21, .* at most half the 40 images of the data"):
        split_data(ImageSource(images, None), 21)


def test_two_halves_of_the_data_are_no_further_apart_than_by_chance():
    images = np.random.default_rng(0).integers(0, 255, (200, 3, 3, 1), np.uint8)
    ruler = make_ruler(ImageSource(images, None), 100, None, 64)
    assert ruler.name == "energy distance between pixels"
    assert abs(ruler.by_chance[0]) < 0.05  # measured: -0.009


@pytest.mark.usefixtures("unchecked_types")  # images of more than 256 values
def test_a_large_data_set_gives_several_groups():
    images = np.arange(5000, dtype=np.uint16).reshape(5000, 1, 1, 1)
    data = split_data(ImageSource(images, None), 100)
    assert (len(data.reference), [len(others) for others in data.others]) == (4000, [100] * 10)
    assert len(np.unique(np.concatenate([data.reference, *data.others]))) == 5000


def test_images_that_fit_are_compared_in_the_features_that_ship():
    images = np.random.default_rng(0).integers(0, 255, (24, 28, 28, 1), np.uint8)
    ruler = make_ruler(ImageSource(images, None), 8, None, 5)
    assert ruler.name == "FD (Fashion features)"
    grey = np.full((8, 28, 28, 1), 128, np.uint8)
    assert 0 < ruler.by_chance[0] < ruler.measure(grey) / 3
