"""The data that each call of the compiled step gets."""

from itertools import islice

import numpy as np
import pytest

from jax_ddpm.data.loader import batches
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.errors import UserError
from jax_ddpm.training import feed
from jax_ddpm.training.feed import fits_on_device, load_into_memory, make_feed, plan_calls

IMAGES = np.random.default_rng(0).integers(0, 255, (24, 2, 2, 1), dtype=np.uint8)
SOURCE = ImageSource(IMAGES, np.arange(24))


@pytest.mark.parametrize(
    ("first", "last", "each", "expected"),
    [
        (0, 3, 1, [(0, 1), (1, 2), (2, 3)]),
        (0, 7, 3, [(0, 3), (3, 6), (6, 7)]),
        (4, 9, 3, [(4, 6), (6, 9)]),
        (5, 5, 3, []),
    ],
)
def test_calls_start_at_multiples_and_the_first_and_last_may_be_short(first, last, each, expected):
    assert [(c.start, c.stop) for c in plan_calls(first, last, each)] == expected


@pytest.mark.parametrize("process", [(0, 1), (1, 2)])
def test_the_feed_gives_the_batches_of_the_loader_in_every_form(process):
    settings = {"start_step": 2, "end_step": 7, "process": process}
    mine = slice(process[0] * 8 // process[1], (process[0] + 1) * 8 // process[1])
    wanted = [[a[mine] for a in batch] for batch in islice(batches(SOURCE, 8, 3), 2, 7)]
    pixels, labels = (np.stack(arrays) for arrays in zip(*wanted, strict=True))

    plain = list(make_feed(SOURCE, 8, 3, **settings))
    assert [count for _, count in plain] == [1] * 5
    np.testing.assert_array_equal(np.stack([batch.pixels for batch, _ in plain]), pixels)
    np.testing.assert_array_equal(np.stack([batch.labels for batch, _ in plain]), labels)

    several = list(make_feed(SOURCE, 8, 3, steps_per_call=3, **settings))
    assert [count for _, count in several] == [1, 3, 1]
    np.testing.assert_array_equal(np.concatenate([batch.pixels for batch, _ in several]), pixels)

    data = (IMAGES, np.arange(24))
    indexed = list(make_feed(SOURCE, 8, 3, steps_per_call=3, on_device=data, **settings))
    assert all(batch.pixels is IMAGES for batch, _ in indexed)
    indices = np.concatenate([batch.indices for batch, _ in indexed])
    np.testing.assert_array_equal(IMAGES[indices], pixels)


class Decoded(list):
    """Images that are decoded on demand."""


def test_small_data_in_memory_go_to_the_device_and_others_on_request(monkeypatch):
    decoded = ImageSource(Decoded(IMAGES), SOURCE.labels)
    for wanted, expected in {"auto": True, "always": True, "never": False}.items():
        assert fits_on_device(SOURCE, wanted) == expected
        assert not fits_on_device(decoded, wanted)
        assert load_into_memory(SOURCE, wanted) is SOURCE
    assert load_into_memory(decoded, "auto") is decoded
    loaded = load_into_memory(decoded, "always")
    np.testing.assert_array_equal(loaded.images, IMAGES)
    assert fits_on_device(loaded, "always")
    monkeypatch.setattr(feed, "AUTO_BYTES", IMAGES.nbytes - 1)
    assert not fits_on_device(SOURCE, "auto") and fits_on_device(SOURCE, "always")


def test_images_that_do_not_fit_into_memory_are_refused(monkeypatch):
    def full(*args):
        raise MemoryError

    monkeypatch.setattr(np, "empty", full)
    with pytest.raises(UserError, match=r"data-on-device always: 24 images take 0.0 GiB"):
        load_into_memory(ImageSource(Decoded(IMAGES), SOURCE.labels), "always")
