"""What is in a folder of pictures, and what becomes of files that cannot be used."""

import os
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from jax_ddpm.data import folder as folder_module
from jax_ddpm.data.folder import look_at
from jax_ddpm.data.loader import batch_indices, batches
from jax_ddpm.data.sources import open_source
from jax_ddpm.errors import UserError
from jax_ddpm.jobs import train as loop
from jax_ddpm.jobs.build import open_data

RNG = np.random.default_rng(0)


def picture(path, size=(40, 40), **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **settings)
    return path


def truncated(path):
    data = picture(path).read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


@pytest.fixture(params=["decoded at once", "looked at"])
def few_or_many(request, monkeypatch):
    """Few pictures are decoded when the folder is opened, of many the files are looked at."""
    if request.param == "looked at":
        monkeypatch.setattr(folder_module, "IN_MEMORY", 0)


@pytest.fixture
def mixed(tmp_path):
    """A folder with five good pictures and one of every kind of bad file."""
    folder, outside = tmp_path / "data", tmp_path / "outside"
    for name in ("a/1.png", "a/2.jpg", "b/3.webp", "b/4.bmp", "c/5.gif"):
        picture(folder / name)
    for suffix in ("png", "jpg", "webp", "bmp", "gif"):
        truncated(folder / f"bad/cut.{suffix}")
    (folder / "bad/empty.png").touch()
    (folder / "bad/text.jpg").write_text("<html>not found</html>")
    (folder / "bad/bomb.gif").write_bytes(b"GIF89a" + b"\xff" * 7)
    picture(outside / "secret.png")
    (folder / "bad/link.png").symlink_to(outside / "secret.png")
    (folder / "bad/nowhere.png").symlink_to(outside / "nothing.png")
    (folder / "bad/circle.png").symlink_to(folder / "bad/circle.png")
    (folder / "elsewhere").symlink_to(outside)
    (folder / "around").symlink_to(folder / "a")
    (folder / "inside.png").symlink_to(folder / "a/1.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


REASONS = {
    "bad/cut.png": "", "bad/cut.jpg": "", "bad/cut.webp": "", "bad/cut.bmp": "", "bad/cut.gif": "",
    "bad/empty.png": "an empty file", "bad/text.jpg": "it is none of PNG, JPEG",
    "bad/bomb.gif": "", "bad/link.png": "a link that leaves the folder",
    "bad/nowhere.png": "a link to nothing", "bad/circle.png": "a link to nothing",
    "elsewhere": "a link that leaves the folder",
}  # fmt: skip


def test_bad_files_are_listed_with_their_reason_and_refused(mixed, few_or_many, monkeypatch):
    monkeypatch.setattr(folder_module, "SHOWN", len(REASONS))
    with pytest.raises(UserError) as caught:
        open_source("folder", mixed, image_size=8)
    message = str(caught.value)
    assert message.startswith(f"12 of 18 pictures in {mixed} cannot be used (")
    assert message.endswith("leave them out with --data.skip-bad") and "\n" not in message
    listed = dict(part.split(": ", 1) for part in message.split("(", 1)[1].split("; "))
    assert listed.keys() == REASONS.keys()
    assert all(reason in listed[name] for name, reason in REASONS.items())


def test_only_the_first_bad_files_are_listed(mixed):
    with pytest.raises(UserError, match=r"; and 2 more\): repair or remove them"):
        open_source("folder", mixed, image_size=8)


def test_bad_files_are_skipped_on_request_and_counted_in_one_line(mixed, few_or_many):
    said = []
    source = open_source("folder", mixed, image_size=8, skip_bad=True, tell=said.append)
    assert len(said) == 1 and "\n" not in said[0]
    assert said[0].startswith(f"Skipping 12 of 18 pictures in {mixed} (bad/bomb.gif: ")
    assert source.labels.tolist() == [1, 1, 2, 2, 4, 0]  # the root 0, a 1, b 2, bad keeps 3, c 4
    pictures = np.stack([source.images[i] for i in range(6)])
    assert pictures.shape == (6, 8, 8, 3)
    np.testing.assert_array_equal(pictures[5], pictures[0])  # inside.png is a link to a/1.png
    assert isinstance(source.images, np.ndarray) == (folder_module.IN_MEMORY > 0)


def test_a_folder_of_nothing_but_bad_files_is_refused_even_then(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match="holds no picture that can be read"):
        open_source("folder", tmp_path, skip_bad=True, tell=lambda line: None)


def test_pictures_decoded_at_once_and_one_by_one_are_the_same(tmp_path, monkeypatch):
    for i, suffix in enumerate(("png", "jpg", "webp")):
        picture(tmp_path / f"{i}.{suffix}", size=(30 + i, 40))
    known = {"image_size": 8, "channels": 1, "crop": "none", "resize": "lanczos"}
    at_once = open_source("folder", tmp_path, **known)
    monkeypatch.setattr(folder_module, "IN_MEMORY", 0)
    one_by_one = open_source("folder", tmp_path, **known)
    assert at_once.images.shape == (3, 8, 8, 1)
    np.testing.assert_array_equal(
        np.stack([one_by_one.images[i] for i in range(3)]), at_once.images
    )
    assert isinstance(at_once.images, np.ndarray) and not isinstance(one_by_one.images, np.ndarray)


def test_sizes_are_those_after_turning(tmp_path):
    """A picture that lies on its side has the size it is shown in, also if a PNG says so late."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "a.jpg", (20, 30))
    assert look_at(picture(tmp_path / "b.jpg", (30, 20), exif=exif)) == (20, 30)
    assert look_at(picture(tmp_path / "c.png", (30, 20), exif=exif)) == (20, 30)
    assert open_source("folder", tmp_path).images.shape == (3, 30, 20, 3)


def test_a_jpeg_with_something_behind_its_end_is_whole(tmp_path):
    """Phones append films to their photographs."""
    path = picture(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes() + b"\0" * 10_000)
    assert look_at(path) == (40, 40)


def test_a_picture_that_goes_bad_later_ends_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "IN_MEMORY", 0)
    paths = [picture(tmp_path / f"{i}.png") for i in range(4)]
    sized = open_source("folder", tmp_path, image_size=8)
    source = open_source("folder", tmp_path)
    for damage, message in (
        (os.unlink, "cannot be read as a picture: No such file"),
        (truncated, "cannot be read as a picture: "),
    ):
        damage(paths[2])
        with pytest.raises(UserError, match=rf"2\.png {message}") as caught:
            list(islice(batches(sized, 4, 0), 2))  # from one of the threads that read ahead
        assert "\n" not in str(caught.value)
    picture(paths[2], (8, 8))
    with pytest.raises(UserError, match=r"2.png was 40x40 and has been replaced"):
        list(islice(batches(source, 4, 0), 2))


@pytest.mark.slow
def test_training_ends_there_and_goes_on_when_the_picture_is_back(
    tmp_path, monkeypatch, make_config, capsys
):
    """A hundred pictures, of which the twelve steps use each at most once; one goes at step 11."""
    for i in range(100):
        pixels = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"data/{i:02d}.png")
    monkeypatch.setattr(folder_module, "IN_MEMORY", 0)
    data = {"name": "folder", "path": tmp_path / "data", "channels": 1}
    config = make_config(tmp_path / "run", data=data)
    used = batch_indices(100, config.train.batch_size, config.seed, step=10)[0]
    gone, kept = tmp_path / f"data/{used:02d}.png", tmp_path / "kept.png"

    def open_and_lose(data):
        source = open_data(data)
        gone.rename(kept)
        return source

    with monkeypatch.context() as patch:
        patch.setattr(loop, "open_data", open_and_lose)
        with pytest.raises(UserError, match=rf"{gone} cannot be read as a picture: No such file"):
            loop.train(config)
    kept.rename(gone)
    capsys.readouterr()
    assert loop.train(config).final_grid.exists()
    assert "Continuing after step 6 of 12" in capsys.readouterr().out


def coordinates(path, size=(64, 16)):
    """A picture whose red is the column."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 0] = np.arange(size[0])
    Image.fromarray(pixels).save(path)


@pytest.fixture
def wide(tmp_path):
    for i in range(6):
        coordinates(tmp_path / f"{i}.png")
    return open_source("folder", tmp_path, image_size=16, crop="random")


def lefts(source, count, **settings):
    """The left edge of every cut, [batch, example]."""
    found = list(islice(batches(source, 4, 0, **settings), count))
    assert all(batch.pixels.shape[1:] == (16, 16, 3) for batch in found)
    return np.stack([batch.pixels[:, 0, 0, 0] for batch in found])


def test_a_random_crop_is_another_at_every_step_and_within_the_picture(wide):
    found = lefts(wide, 40)
    assert found.min() >= 0 and found.max() <= 48
    assert len(np.unique(found)) > 40  # of 49
    assert (wide.images[0][0, 0] == [24, 0, 0]).all()  # outside training, the centre


def test_a_random_crop_depends_on_seed_and_place_in_the_stream_alone(wide):
    """So a run that is resumed, or that more processes share, sees the same cuts."""
    every = lefts(wide, 8)
    np.testing.assert_array_equal(lefts(wide, 3, start_step=5), every[5:])
    parts = [lefts(wide, 8, process=(i, 2)) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), every)
