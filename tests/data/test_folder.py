"""A folder of pictures as a source, and what happens to files that cannot be used."""

import os
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from jax_ddpm.data import folder as folder_module
from jax_ddpm.data import listing, pictures
from jax_ddpm.data.folder import inspect_picture
from jax_ddpm.data.loader import batch_indices, batches
from jax_ddpm.data.sources import open_source
from jax_ddpm.errors import UserError
from jax_ddpm.jobs import train as loop

RNG = np.random.default_rng(0)


def save_picture(path, size=(40, 40), **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **settings)
    return path


def save_truncated(path):
    data = save_picture(path).read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


@pytest.fixture(params=["decoded at once", "inspected"])
def few_or_many(request, monkeypatch):
    """Small folders are decoded when they are opened; in large ones the files are inspected."""
    if request.param == "inspected":
        monkeypatch.setattr(pictures, "IN_MEMORY", 0)


def test_a_folder_of_pictures_is_a_source_with_its_subfolders_as_classes(tmp_path):
    for name in ("dogs/b.png", "cats/a.jpg", "cats/deep/c.webp", "dogs/d.bmp", "dogs/e.gif"):
        save_picture(tmp_path / name)
    (tmp_path / "dogs/notes.txt").write_text("not a picture")
    source = open_source("folder", tmp_path, image_size=4)
    assert len(source.images) == 5
    assert source.labels.tolist() == [0, 0, 1, 1, 1]
    assert source.image_shape == (4, 4, 3)
    assert open_source("folder", tmp_path, image_size=4, channels=1).image_shape == (4, 4, 1)


def test_without_a_size_pictures_keep_theirs(tmp_path):
    path = save_picture(tmp_path / "a.png", (6, 4))
    source = open_source("folder", tmp_path)
    np.testing.assert_array_equal(source.images[0], np.asarray(Image.open(path)))
    save_picture(tmp_path / "b.png", (5, 4))
    with pytest.raises(UserError, match=r"a.png is 6x4 and .*b.png is 5x4.*--data.image-size"):
        open_source("folder", tmp_path)


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no picture"):
        open_source("folder", tmp_path)
    with pytest.raises(UserError, match=r"no folder"):
        open_source("folder", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"--data.path"):
        open_source("folder")


@pytest.fixture
def mixed(tmp_path):
    """A folder with five good pictures and one of every kind of bad file."""
    folder, outside = tmp_path / "data", tmp_path / "outside"
    for name in ("a/1.png", "a/2.jpg", "b/3.webp", "b/4.bmp", "c/5.gif"):
        save_picture(folder / name)
    for suffix in ("png", "jpg", "webp", "bmp", "gif"):
        save_truncated(folder / f"bad/cut.{suffix}")
    (folder / "bad/empty.png").touch()
    (folder / "bad/text.jpg").write_text("<html>not found</html>")
    (folder / "bad/bomb.gif").write_bytes(b"GIF89a" + b"\xff" * 7)
    save_picture(outside / "secret.png")
    (folder / "bad/link.png").symlink_to(outside / "secret.png")
    (folder / "bad/nowhere.png").symlink_to(outside / "nothing.png")
    (folder / "bad/circle.png").symlink_to(folder / "bad/circle.png")
    (folder / "elsewhere").symlink_to(outside)
    (folder / "around").symlink_to(folder / "a")
    (folder / "inside.png").symlink_to(folder / "a/1.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


REASONS = {
    **{f"bad/cut.{suffix}": "" for suffix in ("png", "jpg", "webp", "bmp", "gif")},
    "bad/empty.png": "an empty file",
    "bad/text.jpg": "it is none of PNG, JPEG",
    "bad/bomb.gif": "",
    "bad/link.png": "a link that leaves the folder",
    "bad/nowhere.png": "a link to nothing",
    "bad/circle.png": "a link to nothing",
    "elsewhere": "a link that leaves the folder",
}


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


def test_bad_files_are_skipped_on_request_and_one_line_says_how_many(mixed, few_or_many):
    printed = []
    source = open_source("folder", mixed, image_size=8, skip_bad=True, tell=printed.append)
    assert len(printed) == 1 and "\n" not in printed[0]
    assert printed[0].startswith(f"Skipping 12 of 18 pictures in {mixed} (bad/bomb.gif: ")
    assert source.labels.tolist() == [1, 1, 2, 2, 4, 0]  # the root 0, a 1, b 2, bad keeps 3, c 4
    images = np.stack([source.images[i] for i in range(6)])
    assert images.shape == (6, 8, 8, 3)
    np.testing.assert_array_equal(images[5], images[0])  # inside.png is a link to a/1.png
    assert isinstance(source.images, np.ndarray) == (pictures.IN_MEMORY > 0)


def test_a_folder_with_only_bad_files_is_refused_even_with_skip_bad(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match="holds no picture that can be read"):
        open_source("folder", tmp_path, skip_bad=True, tell=lambda line: None)


@pytest.fixture
def linked(tmp_path):
    """Two classes and a picture on another disk, with links that lead round in circles."""
    folder, disk = tmp_path / "data", tmp_path / "disk"
    for name in ("a/1.png", "b/2.png", "3.png"):
        save_picture(disk / name)
    folder.mkdir()
    for name in ("a", "b", "3.png"):
        (folder / name).symlink_to(disk / name)
    (disk / "a/again").symlink_to(disk / "b")
    (disk / "b/back").symlink_to(disk / "a")
    (disk / "b/up").symlink_to(tmp_path)
    return folder


def test_links_to_another_disk_are_followed_only_on_request(linked):
    with pytest.raises(UserError, match=r"a link that leaves the folder \(--data.follow-links"):
        open_source("folder", linked)
    told = []
    source = open_source("folder", linked, follow_links=True, skip_bad=True, tell=told.append)
    assert source.class_names == ("", "a", "b")
    assert source.labels.tolist() == [0, 1, 1, 2, 2]  # each class also links to the other
    (line,) = told
    assert "a link to a folder that contains it" in line


@pytest.mark.parametrize("name", ["folder", "parquet", "cifar10"])
def test_a_folder_of_other_files_is_refused_before_all_of_them_are_listed(
    tmp_path, monkeypatch, name
):
    """Such as "/", if a stranger's configuration names it."""
    monkeypatch.setattr(listing, "MAX_OTHERS", 10)
    for i in range(12):
        (tmp_path / f"{i}.txt").touch()
    message = "cifar-10" if name == "cifar10" else "more than 10 files and folders"
    with pytest.raises(UserError, match=message):
        open_source(name, tmp_path)


def test_pictures_decoded_at_once_and_on_demand_are_the_same(tmp_path, monkeypatch):
    for i, suffix in enumerate(("png", "jpg", "webp")):
        save_picture(tmp_path / f"{i}.{suffix}", size=(30 + i, 40))
    form = {"image_size": 8, "channels": 1, "crop": "none", "resize": "lanczos"}
    at_once = open_source("folder", tmp_path, **form)
    monkeypatch.setattr(pictures, "IN_MEMORY", 0)
    on_demand = open_source("folder", tmp_path, **form)
    assert at_once.images.shape == (3, 8, 8, 1)
    np.testing.assert_array_equal([on_demand.images[i] for i in range(3)], at_once.images)
    assert isinstance(at_once.images, np.ndarray) and not isinstance(on_demand.images, np.ndarray)


def test_a_rotated_picture_has_the_size_at_which_it_is_shown(tmp_path):
    """Even if a PNG states its orientation after the pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    save_picture(tmp_path / "a.jpg", (20, 30))
    assert inspect_picture(save_picture(tmp_path / "b.jpg", (30, 20), exif=exif)) == (20, 30)
    assert inspect_picture(save_picture(tmp_path / "c.png", (30, 20), exif=exif)) == (20, 30)
    assert open_source("folder", tmp_path).images.shape == (3, 30, 20, 3)


def test_a_jpeg_with_data_after_its_end_is_complete(tmp_path):
    """Phones append videos to their photographs."""
    path = save_picture(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes() + b"\0" * 10_000)
    assert inspect_picture(path) == (40, 40)


def test_a_picture_that_goes_bad_later_gives_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "IN_MEMORY", 0)
    paths = [save_picture(tmp_path / f"{i}.png") for i in range(4)]
    sized = open_source("folder", tmp_path, image_size=8)
    source = open_source("folder", tmp_path)
    for damage, message in (
        (os.unlink, "cannot be read as a picture: No such file"),
        (save_truncated, "cannot be read as a picture: "),
    ):
        damage(paths[2])
        with pytest.raises(UserError, match=rf"2\.png {message}") as caught:
            list(islice(batches(sized, 4, 0), 2))  # raised in a thread that reads ahead
        assert "\n" not in str(caught.value)
    save_picture(paths[2], (8, 8))
    with pytest.raises(UserError, match=r"2.png is no longer 40x40: restore it"):
        list(islice(batches(source, 4, 0), 2))


@pytest.mark.slow
def test_training_stops_at_a_lost_picture_and_continues_when_it_is_back(
    tmp_path, monkeypatch, make_config, capsys
):
    """Twelve steps use each of a hundred pictures at most once; one that step 11 needs is lost."""
    for i in range(100):
        pixels = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"data/{i:02d}.png")
    monkeypatch.setattr(pictures, "IN_MEMORY", 0)
    data = {"name": "folder", "path": tmp_path / "data", "channels": 1}
    config = make_config(tmp_path / "run", data=data)
    used = batch_indices(100, config.train.batch_size, config.seed, step=10)[0]
    gone, kept = tmp_path / f"data/{used:02d}.png", tmp_path / "kept.png"

    def begin_and_lose(*args):
        gone.rename(kept)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "tell_summary", begin_and_lose)
        with pytest.raises(UserError, match=rf"{gone} cannot be read as a picture: No such file"):
            loop.train(config)
    kept.rename(gone)
    capsys.readouterr()
    assert loop.train(config).final_grid.exists()
    assert "Continuing after step 6 of 12" in capsys.readouterr().out


def save_coordinates(path, size=(64, 16)):
    """A picture in which red is the column."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 0] = np.arange(size[0])
    Image.fromarray(pixels).save(path)


@pytest.fixture
def wide(tmp_path):
    for i in range(6):
        save_coordinates(tmp_path / f"{i}.png")
    return open_source("folder", tmp_path, image_size=16, crop="random")


def find_left_edges(source, count, **settings):
    """Find the left edge of every crop, [batch, example]."""
    found = list(islice(batches(source, 4, 0, **settings), count))
    assert all(batch.pixels.shape[1:] == (16, 16, 3) for batch in found)
    return np.stack([batch.pixels[:, 0, 0, 0] for batch in found])


def test_a_random_crop_changes_at_every_step_and_stays_inside_the_picture(wide):
    found = find_left_edges(wide, 20)
    assert found.min() >= 0 and found.max() <= 48
    assert len(np.unique(found)) > 30  # of 49
    assert (wide.images[0][0, 0] == [24, 0, 0]).all()  # outside training, the centre


def test_a_random_crop_depends_only_on_the_seed_and_the_position_in_the_stream(wide):
    """So a resumed run, or one on several processes, sees the same crops."""
    every = find_left_edges(wide, 8)
    np.testing.assert_array_equal(find_left_edges(wide, 3, start_step=5), every[5:])
    parts = [find_left_edges(wide, 8, process=(i, 2)) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), every)
