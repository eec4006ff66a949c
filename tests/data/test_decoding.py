"""Every kind of picture file decodes to known pixels."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jax_ddpm.data import pictures
from jax_ddpm.data.pictures import fit, read_picture
from jax_ddpm.errors import UserError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
COLOURS = np.array([[RED, GREEN, BLUE], [WHITE, (0, 0, 0), (10, 20, 30)]], np.uint8)
GREYS = np.array([[0, 255, 7], [128, 129, 254]], np.uint8)


def decoded(tmp_path, image, suffix, channels=3, **settings):
    path = tmp_path / f"picture.{suffix}"
    image.save(path, **settings)
    return read_picture(path, None, channels)


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_colours_come_back_exactly_from_what_is_lossless(tmp_path, suffix):
    settings = {"lossless": True} if suffix == "webp" else {}
    found = decoded(tmp_path, Image.fromarray(COLOURS), suffix, **settings)
    np.testing.assert_array_equal(found, COLOURS)


def test_a_jpeg_is_near(tmp_path):
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    found = decoded(tmp_path, Image.fromarray(flat), "jpg", quality=95)
    assert np.abs(found.astype(int) - flat).max() <= 1  # measured: 0


def test_grey_is_grey_in_one_channel_or_three(tmp_path):
    grey = Image.fromarray(GREYS)
    np.testing.assert_array_equal(decoded(tmp_path, grey, "png", 1), GREYS[..., None])
    three = np.repeat(GREYS[..., None], 3, axis=-1)
    np.testing.assert_array_equal(decoded(tmp_path, grey, "png", 3), three)


def test_one_bit_is_black_and_white(tmp_path):
    bits = Image.fromarray(GREYS > 127)
    assert bits.mode == "1"
    expected = np.where(GREYS > 127, 255, 0)[..., None]
    np.testing.assert_array_equal(decoded(tmp_path, bits, "png", 1), expected)


def test_a_palette_is_looked_up_and_its_transparent_entry_white(tmp_path):
    indexed = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    indexed.putpalette([*RED, *GREEN, *BLUE])
    np.testing.assert_array_equal(decoded(tmp_path, indexed, "png"), [[RED, GREEN, BLUE]])
    found = decoded(tmp_path, indexed, "png", transparency=1)
    np.testing.assert_array_equal(found, [[RED, WHITE, BLUE]])
    found = decoded(tmp_path, indexed, "gif", transparency=1)
    np.testing.assert_array_equal(found, [[RED, WHITE, BLUE]])


def test_alpha_is_laid_on_white(tmp_path):
    rgba = np.array([[(*RED, 0), (*RED, 255), (0, 0, 0, 51)]], np.uint8)
    found = decoded(tmp_path, Image.fromarray(rgba), "png")
    np.testing.assert_array_equal(found, [[WHITE, RED, (204, 204, 204)]])  # a fifth black
    grey = Image.fromarray(np.array([[(0, 0), (100, 255)]], np.uint8), "LA")
    np.testing.assert_array_equal(decoded(tmp_path, grey, "png", 1)[..., 0], [[255, 100]])


def test_a_transparent_colour_of_a_picture_without_alpha_is_white(tmp_path):
    found = decoded(tmp_path, Image.fromarray(COLOURS), "png", transparency=RED)
    np.testing.assert_array_equal(found[0], [WHITE, GREEN, BLUE])
    grey = decoded(tmp_path, Image.fromarray(GREYS), "png", 1, transparency=7)
    np.testing.assert_array_equal(grey[0, :, 0], [0, 255, 255])


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    shades = np.array([[0, 255, 256, 257, 32768, 65535]], np.uint16)
    found = decoded(tmp_path, Image.fromarray(shades), "png", 1)
    np.testing.assert_array_equal(found[..., 0], [[0, 1, 1, 1, 128, 255]])


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png16(color_type, samples, more=b""):
    """A PNG of one row with 16 bits per channel, which Pillow itself does not write."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
    header = struct.pack(">IIBBBBB", len(samples) // channels, 1, 16, color_type, 0, 0, 0)
    row = b"\0" + struct.pack(f">{len(samples)}H", *samples)
    chunks = chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(row))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("color_type", "samples", "expected"),
    [
        (2, [65535, 0, 257 * 7], [(255, 0, 7)]),
        (6, [65535, 0, 257 * 7, 65535, 0, 0, 0, 0], [(255, 0, 7), WHITE]),
        (4, [257 * 9, 65535, 0, 0], [(9, 9, 9), WHITE]),
    ],
)
def test_sixteen_bits_of_colour_and_alpha(tmp_path, color_type, samples, expected):
    (tmp_path / "a.png").write_bytes(png16(color_type, samples))
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", None, 3)[0], expected)


def test_the_transparent_shade_of_sixteen_bits_is_white(tmp_path):
    see_through = chunk(b"tRNS", struct.pack(">H", 1000))
    (tmp_path / "a.png").write_bytes(png16(0, [1000, 0, 65535, 257], see_through))
    found = read_picture(tmp_path / "a.png", None, 1)
    np.testing.assert_array_equal(found[0, :, 0], [255, 0, 255, 1])


CMYK = {
    (0, 255, 255, 0): RED,
    (255, 0, 255, 0): GREEN,
    (0, 0, 0, 255): (0, 0, 0),
    (0, 0, 0, 0): WHITE,
}


@pytest.mark.parametrize(("inks", "colour"), CMYK.items())
def test_the_inks_of_a_jpeg_become_colours(tmp_path, inks, colour):
    """Adobe writes them inverted and marks the file, and so does Pillow."""
    image = Image.new("CMYK", (16, 16), inks)
    found = decoded(tmp_path, image, "jpg", quality=100)
    assert b"Adobe" in (tmp_path / "picture.jpg").read_bytes()
    assert np.abs(found.astype(int) - colour).max() <= 1  # measured: 0
    grey = read_picture(tmp_path / "picture.jpg", None, 1)
    assert (
        abs(int(grey[0, 0, 0]) - Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0)))
        <= 1
    )


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(tmp_path, orientation, suffix):
    """What is stored is turned so that EXIF's turn brings it back (Exif 2.3, 4.6.4, tag 0x0112)."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255
    transposed = upright.swapaxes(0, 1)
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
              5: transposed, 6: transposed[::-1], 7: transposed[::-1, ::-1],
              8: transposed[:, ::-1]}[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decoded(
        tmp_path, Image.fromarray(np.ascontiguousarray(stored)), suffix, exif=exif, quality=100
    )
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).max() <= 1  # measured: 0


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_several_frames_the_first_is_taken(tmp_path, suffix):
    first, second = Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), BLUE)
    settings = {"save_all": True, "append_images": [second]}
    if suffix == "webp":
        settings["lossless"] = True
    assert (decoded(tmp_path, first, suffix, **settings) == RED).all()


def test_what_a_file_is_called_does_not_matter_but_what_it_is(tmp_path):
    """PostScript, for which Pillow would start another program, is not read under any name."""
    Image.fromarray(COLOURS).save(tmp_path / "a.bmp", format="PNG")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.bmp", None, 3), COLOURS)
    Image.fromarray(COLOURS).save(tmp_path / "b.png", format="EPS")
    with pytest.raises(UserError, match=r"b.png cannot be read as a picture: it is none of PNG"):
        read_picture(tmp_path / "b.png", None, 3)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 5)
    with pytest.raises(UserError, match=r"a.png .*: 3x2 are more than 5 pixels"):
        read_picture(tmp_path / "a.png", None, 3)
    monkeypatch.undo()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0))
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IEND", b""))
    with pytest.raises(UserError, match=r"b.png cannot be read as a picture: .* pixels"):
        read_picture(tmp_path / "b.png", None, 3)


WIDE = np.zeros((4, 12, 3), np.uint8)
WIDE[:, :4], WIDE[:, 4:8], WIDE[:, 8:] = RED, GREEN, BLUE


def test_crop_chooses_the_square():
    image = Image.fromarray(WIDE)
    assert (fit(image, 4, 3) == GREEN).all()
    assert (fit(image, 4, 3, crop="random") == GREEN).all()  # without a place, the centre
    assert (fit(image, 4, 3, crop="random", place=(0.0, 0.5)) == RED).all()
    assert (fit(image, 4, 3, crop="random", place=(0.999, 0.5)) == BLUE).all()
    squeezed = fit(image, 3, 3, crop="none", resize="box")
    np.testing.assert_array_equal(squeezed, np.tile(np.array([RED, GREEN, BLUE]), (3, 1, 1)))


@pytest.mark.parametrize("resize", ["bicubic", "bilinear", "box", "lanczos"])
def test_resize_names_the_filter(resize):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8))
    expected = image.resize((4, 4), Image.Resampling[resize.upper()])
    np.testing.assert_array_equal(fit(image, 4, 3, resize=resize), expected)


def test_box_bicubic_halves_first():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8))
    half = image.resize((10, 10), Image.Resampling.BOX)
    expected = half.resize((6, 6), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(fit(image, 6, 3, resize="box_bicubic"), expected)


def test_a_png_in_memory_is_read_too():
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, "PNG")
    file.seek(0)
    np.testing.assert_array_equal(fit(pictures.open_upright(file), None, 3), COLOURS)
