from itertools import islice

import numpy as np
import pytest

from jax_ddpm.data.loader import batch_indices, batches, require_full_batch, require_labels
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.errors import UserError

N = 20
NUMBERED = ImageSource(
    np.tile(np.arange(N, dtype=np.uint8)[:, None, None, None], (1, 2, 2, 1)),
    np.arange(100, 100 + N),
)


def read_numbers(count, batch_size=4, seed=0, start_step=0, process=(0, 1)):
    """The numbers of the images in the first batches, [batch, example]."""
    stream = batches(NUMBERED, batch_size, seed, start_step=start_step, process=process)
    found = list(islice(stream, count))
    for pixels, labels in found:
        assert pixels.shape == (batch_size // process[1], 2, 2, 1)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(labels, pixels[:, 0, 0, 0] + 100)  # images keep their labels
    return np.stack([pixels for pixels, _ in found])[..., 0, 0, 0]


def test_the_same_seed_gives_the_same_batches():
    np.testing.assert_array_equal(read_numbers(12), read_numbers(12))


def test_another_seed_gives_another_order():
    assert not np.array_equal(read_numbers(5, seed=0), read_numbers(5, seed=1))


@pytest.mark.parametrize(("batch_size", "start_step"), [(4, 5), (6, 7)])
def test_starting_late_equals_skipping(start_step, batch_size):
    every = read_numbers(start_step + 4, batch_size)
    np.testing.assert_array_equal(
        read_numbers(4, batch_size, start_step=start_step), every[start_step:]
    )


@pytest.mark.parametrize("batch_size", [6, 20])
def test_every_image_comes_once_per_epoch_even_if_a_batch_spans_two(batch_size):
    stream = read_numbers(-(-3 * N // batch_size), batch_size).ravel()[: 3 * N].reshape(3, N)
    np.testing.assert_array_equal(np.sort(stream, axis=1), np.tile(np.arange(N), (3, 1)))


def test_every_epoch_has_its_own_order():
    epochs = read_numbers(15).reshape(3, N)
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
    assert tuple(range(N)) not in {tuple(epoch) for epoch in epochs.tolist()}


def test_the_order_of_a_seed_never_changes():
    """A run that began with an older version continues with the same images."""
    assert read_numbers(3, 6, seed=3).tolist() == [
        [4, 17, 16, 7, 5, 3],
        [18, 19, 15, 0, 2, 13],
        [14, 8, 11, 10, 9, 6],
    ]


def test_the_numbers_of_a_batch_are_known_without_reading_it():
    known = [batch_indices(N, 6, seed=3, step=step) for step in range(8)]
    np.testing.assert_array_equal(known, read_numbers(8, 6, seed=3))


@pytest.mark.parametrize(("count", "start_step"), [(2, 0), (3, 7)])
def test_the_parts_of_all_processes_form_the_batch_of_one(count, start_step):
    parts = [read_numbers(4, 12, start_step=start_step, process=(i, count)) for i in range(count)]
    whole = read_numbers(4, 12, start_step=start_step)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_a_process_reads_only_its_own_part():
    read = []

    class Recorded(list):
        def __getitem__(self, index):
            read.append(int(index))
            return NUMBERED.images[0]

    source = ImageSource(Recorded(range(400)), np.zeros(400, np.int32))
    stream = batches(source, 4, 0, process=(1, 2))
    for _ in range(3):
        next(stream)
    first_epoch = np.stack([batch_indices(400, 4, 0, step) for step in range(100)])
    assert set(first_epoch[:3, 2:].ravel()) <= set(read) <= set(first_epoch[:, 2:].ravel())


def test_a_batch_that_does_not_divide_over_the_processes_is_refused():
    with pytest.raises(UserError, match=r"--train.batch-size 4 does not divide over 3 processes"):
        batches(NUMBERED, 4, 0, process=(0, 3))


def test_the_step_is_the_position_from_which_another_iterator_continues():
    stream = batches(NUMBERED, 6, 0, process=(1, 2))
    rest = [next(stream) for _ in range(9)][5:]
    again = batches(NUMBERED, 6, 0, process=(1, 2), start_step=5)
    assert again.get_state() == {"next_index": 5}
    for one, other in zip(rest, islice(again, 4), strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_an_image_that_cannot_be_read_gives_its_own_sentence():
    """An error in a reading thread reaches the loop."""

    class Gone(list):
        def __getitem__(self, index):
            raise UserError(f"picture {index} is gone")

    with pytest.raises(UserError, match=r"picture .* is gone"):
        next(batches(ImageSource(Gone(range(N)), NUMBERED.labels), 4, 0))


def test_a_batch_larger_than_the_data_set_is_refused():
    with pytest.raises(UserError, match=r"--train.batch-size 21 .* 20 images"):
        require_full_batch(NUMBERED, 21)


def test_a_class_that_the_network_lacks_is_refused():
    require_labels(NUMBERED, None)
    require_labels(NUMBERED, 120)
    with pytest.raises(UserError, match="class 119, but the network has only 0 to 9"):
        require_labels(NUMBERED, 10)


def test_the_label_for_no_class_is_not_available_to_the_data():
    """A network with 121 labels knows classes 0 to 119 if the last label means none."""
    require_labels(NUMBERED, 120, 120)
    with pytest.raises(UserError, match=r"class 119, .* only 0 to 118, because 119 stands for no"):
        require_labels(NUMBERED, 119, 119)


def test_a_batch_may_hold_one_image_and_a_process_read_one_of_a_batch():
    """Grain counts the batches of an endless stream, which overflows for batches of one."""
    together = read_numbers(10, batch_size=2)
    np.testing.assert_array_equal(read_numbers(20, batch_size=1).ravel(), together.ravel())
    parts = [read_numbers(10, batch_size=2, process=(i, 2)) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), together)


def test_a_data_set_may_hold_one_image():
    source = ImageSource(np.zeros((1, 2, 2, 1), np.uint8), np.array([3]))
    assert [batch.labels.tolist() for batch in islice(batches(source, 1, 0), 3)] == [[3]] * 3
