"""Files of drawn images: arrays written as they come, captions, and names that tell them apart."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_ddpm.config.jobs import SampleJob, Weights
from jax_ddpm.config.run import SourceConfig
from jax_ddpm.config.sample import SampleConfig
from jax_ddpm.data.sources import open_source
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.edit import ImageToImage, Inpaint, Interpolation
from jax_ddpm.jobs.edit_pictures import choose_columns, read_beside
from jax_ddpm.jobs.generate import Samples
from jax_ddpm.jobs.sample_files import (
    make_name,
    require_possible_size,
    write_files,
    write_samples,
)

IMAGES = np.arange(5 * 8 * 8, dtype=np.uint8).reshape(5, 8, 8, 1)
LABELS = np.array([0, 1, 0, 1, 0])
NO_FRAMES = np.empty((0, 5, 8, 8, 1), np.uint8)


def batches(on_disk=None, stop=None):
    """Two batches; `on_disk` is told the folder's files between them."""
    for part in (slice(0, 3), slice(3, 5)):
        if on_disk is not None and part.start:
            on_disk()
        if stop is not None and part.start:
            raise stop
        yield Samples(IMAGES[part], NO_FRAMES[:, part], LABELS[part])


def test_an_array_is_written_as_its_images_come_and_has_labels_and_names(tmp_path):
    out, seen = tmp_path / "a.npz", []
    write_files([out], batches(lambda: seen.append(out.exists())), 5, class_names=("cat", "dog"))
    assert seen == [False]  # it appears when it is complete
    with np.load(out) as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], IMAGES)
        assert arrays["labels"].tolist() == LABELS.tolist()
        assert arrays["class_names"].tolist() == ["cat", "dog"]
    source = open_source("arrays", out)
    assert source.class_names == ("cat", "dog") and source.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("name", ["a.npz", "a.png"])
def test_nothing_remains_of_an_interrupted_file(tmp_path, name):
    with pytest.raises(KeyboardInterrupt):
        write_files([tmp_path / name], batches(stop=KeyboardInterrupt()), 5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "num", "shape", "fits"),
    [
        (["a.npz"], 10**6, (256, 256, 3), True),
        (["a.png"], 50_000, (32, 32, 3), True),
        (["a.png"], 50_000, (256, 256, 3), False),
        (["a.gif"], 64, (256, 256, 3), True),
        (["a.npz", "a.gif"], 50_000, (32, 32, 3), False),
    ],
)
def test_a_picture_of_too_many_images_is_refused(names, num, shape, fits):
    files = [Path(name) for name in names]
    if fits:
        require_possible_size(files, num, shape, 25)
        return
    with pytest.raises(UserError, match=f"{num:,} images of {shape[0]}x.* are too many for"):
        require_possible_size(files, num, shape, 25)


def test_a_grid_shows_the_names_of_the_classes(tmp_path):
    samples = Samples(IMAGES, NO_FRAMES, LABELS)
    write_samples(tmp_path / "with.png", samples, class_names=("cat", "dog"))
    write_samples(tmp_path / "without.png", samples)
    named, plain = (
        np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("with", "without")
    )
    assert plain.shape == (2 * 58 + 2, 3 * 58 + 2)
    assert named.shape == (2 * 71 + 2, 3 * 58 + 2)
    captions = [named[58:71, 2 + 58 * i : 58 + 58 * i] for i in range(3)]
    assert all(caption.max() > 127 for caption in captions)
    assert (captions[0] == captions[2]).all() and (captions[0] != captions[1]).any()


def save_picture(path, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


def test_an_edits_pictures_stand_beside_its_images(tmp_path):
    """In PNG and GIF: input, mask, images, in one row; a row of an interpolation between its ends."""
    image = save_picture(tmp_path / "image.png", np.full((8, 8), 200))
    mask = save_picture(tmp_path / "mask.png", np.repeat([[0], [255]], 4, axis=0) * np.ones((1, 8)))
    samples = Samples(IMAGES[:2], np.stack([IMAGES[:2], IMAGES[2:4]]))
    out = {name: tmp_path / name for name in ("inpaint.png", "inpaint.gif", "row.png", "a.npz")}
    edits = {"row.png": Interpolation((image, mask))}
    for name, path in out.items():
        edit = edits.get(name, Inpaint(image, mask))
        columns, beside = choose_columns(edit, 2), read_beside(edit, (8, 8, 1), SourceConfig())
        write_samples(path, samples, columns, beside=beside)
    grid = np.asarray(Image.open(out["inpaint.png"]))
    assert grid.shape == (71 + 2, 4 * 58 + 2)  # a line of captions below the pictures
    tiles = [grid[2:58, 2 + 58 * i : 58 + 58 * i] for i in range(4)]
    assert (tiles[0] == 200).all()
    assert (tiles[1][:28] == 0).all() and (tiles[1][28:] == 255).all()
    assert (tiles[2][::7, ::7] == IMAGES[0, ..., 0]).all()
    assert [grid[58:71, 2 + 58 * i :][:, :56].any() for i in range(4)] == [True, True, False, False]
    with Image.open(out["inpaint.gif"]) as gif:
        assert gif.size == grid.shape[::-1] and gif.n_frames == 2
    row = np.asarray(Image.open(out["row.png"]))
    assert (row[2:58, 2:58] == 200).all() and (row[30:58, -58:-2] == 255).all()
    with np.load(out["a.npz"]) as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], IMAGES[:2])


def test_pictures_beside_are_read_like_the_images_of_the_run(tmp_path):
    """As those that are edited: here, 4095 is white in a picture of 16 bits."""
    Image.fromarray(np.tile(np.array([0, 4095], np.uint16), (2, 1))).save(tmp_path / "a.png")
    edit, data = ImageToImage(tmp_path / "a.png"), SourceConfig(max_value=4095)
    ((_, picture),) = read_beside(edit, (2, 2, 1), data).before
    assert picture[..., 0].tolist() == [[0, 255]] * 2


@pytest.mark.parametrize(
    ("edit", "num", "columns"),
    [
        (None, 4, None),
        (Inpaint(Path("a"), Path("b")), 6, 8),
        (Inpaint(Path("a"), Path("b")), 7, None),
        (ImageToImage(Path("a")), 7, 8),
        (Interpolation((Path("a"), Path("b"))), 30, 32),
    ],
)
def test_few_pictures_and_interpolations_are_one_row(edit, num, columns):
    assert choose_columns(edit, num) == columns


OF_RUN = SampleConfig(sampler="ddim", num_steps=50)
RAW = Weights("raw")


@pytest.mark.parametrize(
    ("job", "changes", "more", "expected"),
    [
        ({}, {}, {}, "seed_0"),
        ({"seed": 3}, {"sampler": "ddim", "steps": 50}, {}, "seed_3"),
        ({}, {"sampler": "heun", "steps": 20}, {}, "heun_num_steps_20_seed_0"),
        ({}, {"eta": 0.5}, {}, "eta_0.5_seed_0"),
        ({"label": ("cat", "dog/wolf")}, {}, {}, "label_cat_dog-wolf_seed_0"),
        ({"num": 4, "dtype": "float64"}, {}, {"weights": RAW}, "weights_raw_num_4_dtype_float64"),
        ({"classifier": "a/b.py:f"}, {"guidance": 2.0}, {}, "guidance_2_classifier_b_seed_0"),
        ({}, {}, {"edit": ImageToImage(Path("d/a.png"), 0.3)}, "image_a_strength_0.3_seed_0"),
        ({}, {}, {"edit": Interpolation((Path("a.png"), Path("b.png")))}, "interpolate_a_b_seed_0"),
    ],
)
def test_a_default_name_holds_all_that_differs(job, changes, more, expected):
    name = make_name(SampleJob(**job), OF_RUN, changes, **more)
    assert name.startswith(expected) and name.endswith(".png")


def test_a_long_name_is_cut_but_stays_its_own():
    names = [
        make_name(SampleJob(), OF_RUN, {"timesteps": ",".join(map(str, range(n)))})
        for n in (100, 101)
    ]
    assert names[0] != names[1] and all(len(name) < 120 for name in names)
