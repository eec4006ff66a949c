import numpy as np
import pytest

from jax_ddpm.config.run import DataConfig
from jax_ddpm.data import holdout
from jax_ddpm.data.base import ImageSource
from jax_ddpm.data.holdout import fixed_order, hold_out, split_off
from jax_ddpm.data.loader import batches
from jax_ddpm.data.pictures import FittedArrays, Form
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.build import open_data

IMAGES = np.arange(20 * 12, dtype=np.uint8).reshape(20, 2, 2, 3)
SOURCE = ImageSource(IMAGES, np.arange(20) % 4, ("a", "b", "c", "d"))


def test_the_order_never_changes():
    """A resumed run, on any version of any library, must hold out the same images."""
    assert fixed_order(10).tolist() == [2, 4, 6, 8, 5, 1, 7, 0, 9, 3]
    assert sorted(fixed_order(1000)) == list(range(1000))


@pytest.mark.parametrize(("fraction", "count"), [(0.05, 1), (0.01, 1), (0.3, 6), (0.5, 10)])
def test_every_image_is_in_one_part_with_its_label(fraction, count):
    kept, held = hold_out(SOURCE, fraction)
    assert len(held.images) == len(held.labels) == count
    numbers = [[int(image[0, 0, 0]) // 12 for image in part.images] for part in (kept, held)]
    assert sorted(numbers[0] + numbers[1]) == list(range(20))
    assert numbers[0] == sorted(numbers[0]) and numbers[1] == sorted(numbers[1])
    for part, indices in zip((kept, held), numbers, strict=True):
        assert part.labels.tolist() == SOURCE.labels[indices].tolist()
        assert part.class_names == SOURCE.class_names


def test_a_larger_part_includes_a_smaller_one():
    small, large = (hold_out(SOURCE, fraction)[1].images[:, 0, 0, 0] for fraction in (0.1, 0.4))
    assert set(small) < set(large)


def test_images_on_demand_are_held_out_alike(monkeypatch):
    expected, _ = hold_out(SOURCE, 0.3)
    monkeypatch.setattr(holdout, "IN_MEMORY", 0)
    lazy = SOURCE._replace(images=FittedArrays(IMAGES, Form()))
    kept, _ = hold_out(lazy, 0.3)
    assert not isinstance(kept.images, np.ndarray)
    np.testing.assert_array_equal(list(kept.images), expected.images)
    np.testing.assert_array_equal(np.asarray(kept.labels), expected.labels)
    assert int(kept.labels.max()) == 3
    one, other = (next(batches(source, 8, seed=3)) for source in (kept, expected))
    np.testing.assert_array_equal(one.pixels, other.pixels)


def test_random_crops_reach_the_images_that_are_kept():
    form = Form(size=1, crop="random")
    kept, _ = hold_out(SOURCE._replace(images=FittedArrays(IMAGES, form)), 0.3)
    assert kept.images.form is form
    assert next(batches(kept, 8, seed=0)).pixels.shape == (8, 1, 1, 3)


def test_every_job_sees_the_training_images_without_those_held_out(tiny_folder):
    data = DataConfig("fashion_mnist", tiny_folder, holdout=0.25)
    assert len(open_data(data).images) == 30
    assert len(open_data(data, "test").images) == 40


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.05), (2, 0.9)])
def test_a_fraction_that_leaves_no_image_is_refused(count, fraction):
    source = ImageSource(np.zeros((count, 2, 2, 1), np.uint8), np.zeros(count, np.int32))
    with pytest.raises(
        UserError, match=rf"--data.holdout {fraction} leaves none of {count} images"
    ):
        split_off(source, fraction)
