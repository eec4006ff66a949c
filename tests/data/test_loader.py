from itertools import islice

import numpy as np
import pytest

from jax_ddpm.data.loader import batches, require_full_batch, require_labels
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.errors import UserError

N = 20
NUMBERED = ImageSource(
    np.tile(np.arange(N, dtype=np.uint8)[:, None, None, None], (1, 2, 2, 1)),
    np.arange(100, 100 + N),
)


def first(count, batch_size=4, seed=0, start_step=0):
    """The numbers of the images in the first batches, [batch, example]."""
    found = list(islice(batches(NUMBERED, batch_size, seed, start_step=start_step), count))
    for pixels, labels in found:
        assert pixels.shape == (batch_size, 2, 2, 1)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(labels, pixels[:, 0, 0, 0] + 100)  # each keeps its label
    return np.stack([pixels for pixels, _ in found])[..., 0, 0, 0]


def test_the_same_seed_gives_the_same_batches():
    np.testing.assert_array_equal(first(12), first(12))


def test_another_seed_gives_another_order():
    assert not np.array_equal(first(5, seed=0), first(5, seed=1))


@pytest.mark.parametrize("start_step", [1, 4, 5, 7, 50])
@pytest.mark.parametrize("batch_size", [4, 6])
def test_starting_late_equals_skipping(start_step, batch_size):
    every = first(start_step + 4, batch_size)
    np.testing.assert_array_equal(first(4, batch_size, start_step=start_step), every[start_step:])


@pytest.mark.parametrize("batch_size", [4, 6, 20])
def test_every_image_comes_once_per_epoch_even_if_a_batch_spans_two(batch_size):
    stream = first(3 * N, batch_size).ravel()[: 5 * N].reshape(5, N)
    np.testing.assert_array_equal(np.sort(stream, axis=1), np.tile(np.arange(N), (5, 1)))


def test_every_epoch_has_its_own_order():
    epochs = first(15).reshape(3, N)
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
    assert tuple(range(N)) not in {tuple(epoch) for epoch in epochs.tolist()}


def test_a_batch_larger_than_the_data_set_is_refused():
    with pytest.raises(UserError, match=r"--train.batch-size 21 .* 20 images"):
        require_full_batch(NUMBERED, 21)


def test_a_class_that_the_network_does_not_have_is_refused():
    require_labels(NUMBERED, None)
    require_labels(NUMBERED, 120)
    with pytest.raises(UserError, match="class 119, but the network only 0 to 9"):
        require_labels(NUMBERED, 10)


def test_the_label_for_no_class_is_not_one_of_the_data():
    """A network of 121 labels knows classes 0 to 119 if the last label means none."""
    require_labels(NUMBERED, 120, 120)
    with pytest.raises(UserError, match=r"class 119, .* only 0 to 118, because 119 stands for no"):
        require_labels(NUMBERED, 119, 119)
