"""Event files that TensorBoard reads."""

import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.runs.board import Board, crc32c, encode_bytes, encode_int, encode_record


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_tensorboard_reads_curves_and_images(tmp_path):
    grey, colour = (np.arange(3 * 5 * c, dtype=np.uint8).reshape(3, 5, c) for c in (1, 3))
    with Board(tmp_path) as board:
        for step in (0, 1, 300, 2**40):
            board.add_scalar("loss", step / 3, step)
        board.add_scalar("loss", float("nan"), 2**40 + 1)
        board.add_image("grey", grey, 7)
        board.add_image("colour", colour, 2**33)
    events = read_events(tmp_path)
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found[:-1] == [(step, float(np.float32(step / 3))) for step in (0, 1, 300, 2**40)]
    assert np.isnan(found[-1][1])
    for name, step in (("grey", 7), ("colour", 2**33)):
        (image,) = events.Images(name)
        assert (image.step, image.width, image.height) == (step, 5, 3)
        assert image.encoded_image_string.startswith(b"\x89PNG")


def test_a_resumed_run_makes_tensorboard_forget_the_steps_after(tmp_path):
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with Board(tmp_path) as board:
            board.start_after(start)
            for step in steps:
                board.add_scalar("loss", 10 * start + step, step)
    assert len(list(tmp_path.iterdir())) == 2
    found = [(event.step, event.value) for event in read_events(tmp_path).Scalars("loss")]
    assert found == [(1, 1), (2, 2), (3, 23), (4, 24)]


def test_the_encoding_equals_published_examples():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert encode_int(1, 150) == bytes.fromhex("089601")  # protobuf.dev, "Encoding"
    assert encode_bytes(2, b"testing") == bytes.fromhex("120774657374696e67")
    assert encode_record(b"")[:8] == bytes(8)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"file/here could not be written"),
        Board(tmp_path / "file" / "here") as board,
    ):
        board.add_scalar("loss", 1.0, 1)
