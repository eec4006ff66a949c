import numpy as np
import pytest
from PIL import Image

from jax_ddpm.data.pictures import fit, fit_all, read_picture
from jax_ddpm.data.sources import open_source
from jax_ddpm.errors import UserError

RNG = np.random.default_rng(0)


def picture(path, size=(6, 4), mode="RGB", **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    Image.fromarray(array, "RGBA").convert(mode).save(path, **kwargs)
    return path


def test_a_folder_of_pictures_is_a_source_with_its_subfolders_as_classes(tmp_path):
    for name in ("dogs/b.png", "cats/a.jpg", "cats/deep/c.webp", "dogs/d.bmp", "dogs/e.gif"):
        picture(tmp_path / name)
    (tmp_path / "dogs/notes.txt").write_text("not a picture")
    source = open_source("folder", tmp_path, image_size=4)
    assert len(source.images) == 5
    assert source.labels.tolist() == [0, 0, 1, 1, 1]
    assert source.image_shape == (4, 4, 3)
    assert open_source("folder", tmp_path, image_size=4, channels=1).image_shape == (4, 4, 1)


def test_without_a_size_pictures_stay_as_they_are(tmp_path):
    path = picture(tmp_path / "a.png")
    source = open_source("folder", tmp_path)
    np.testing.assert_array_equal(source.images[0], np.asarray(Image.open(path)))
    picture(tmp_path / "b.png", size=(5, 4))
    with pytest.raises(UserError, match=r"a.png is 6x4 and .*b.png 5x4.*--data.image-size"):
        open_source("folder", tmp_path)


def test_fit_cuts_the_centre_and_resizes():
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200  # the centred square
    assert (fit(Image.fromarray(wide), 2, 3) == 200).all()
    assert fit(Image.fromarray(wide), 4, 1).shape == (4, 4, 1)


def test_transparent_pixels_become_white():
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert (fit(clear, None, 3) == 255).all()


def test_grey_images_become_colour_with_equal_channels():
    grey = RNG.integers(0, 256, (3, 5, 5, 1), dtype=np.uint8)
    np.testing.assert_array_equal(fit_all(grey, None, 3), grey.repeat(3, axis=-1))
    assert fit_all(grey, None, 1) is grey
    assert fit_all(grey, 5, 1) is grey
    assert fit_all(grey, 8, 1).shape == (3, 8, 8, 1)


def test_the_embedded_images_come_in_any_size_and_in_colour():
    source = open_source("embedded", split="test", image_size=32, channels=3)
    assert source.image_shape == (32, 32, 3)


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken.png cannot be read as a picture: it is none of"):
        read_picture(tmp_path / "broken.png", None, 3)


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no picture"):
        open_source("folder", tmp_path)
    with pytest.raises(UserError, match=r"no folder"):
        open_source("folder", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"--data.path"):
        open_source("folder")
