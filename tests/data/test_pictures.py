"""Every kind of picture file decodes to known pixels, in the requested form."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jax_ddpm.data import pictures
from jax_ddpm.data.folder import inspect_picture
from jax_ddpm.data.pictures import Form, fit_picture, read_picture
from jax_ddpm.data.sources import fit_images, open_source
from jax_ddpm.errors import UserError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
COLOURS = np.array([[RED, GREEN, BLUE], [WHITE, (0, 0, 0), (10, 20, 30)]], np.uint8)
GREYS = np.array([[0, 255, 7], [128, 129, 254]], np.uint8)


def decode(tmp_path, image, suffix, channels=3, **settings):
    path = tmp_path / f"picture.{suffix}"
    image.save(path, **settings)
    return read_picture(path, Form(channels=channels))


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_a_lossless_file_keeps_every_colour(tmp_path, suffix):
    settings = {"lossless": True} if suffix == "webp" else {}
    found = decode(tmp_path, Image.fromarray(COLOURS), suffix, **settings)
    np.testing.assert_array_equal(found, COLOURS)


def test_a_jpeg_keeps_colours_to_rounding(tmp_path):
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    found = decode(tmp_path, Image.fromarray(flat), "jpg", quality=95)
    assert np.abs(found.astype(int) - flat).max() <= 1  # measured: 0


def test_grey_stays_grey_in_one_channel_or_three(tmp_path):
    grey = Image.fromarray(GREYS)
    np.testing.assert_array_equal(decode(tmp_path, grey, "png", 1), GREYS[..., None])
    three = np.repeat(GREYS[..., None], 3, axis=-1)
    np.testing.assert_array_equal(decode(tmp_path, grey, "png", 3), three)


def test_one_bit_is_black_and_white(tmp_path):
    bits = Image.fromarray(GREYS > 127)
    assert bits.mode == "1"
    expected = np.where(GREYS > 127, 255, 0)[..., None]
    np.testing.assert_array_equal(decode(tmp_path, bits, "png", 1), expected)


def test_a_palette_is_applied_and_its_transparent_entry_becomes_white(tmp_path):
    indexed = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    indexed.putpalette([*RED, *GREEN, *BLUE])
    np.testing.assert_array_equal(decode(tmp_path, indexed, "png"), [[RED, GREEN, BLUE]])
    found = decode(tmp_path, indexed, "png", transparency=1)
    np.testing.assert_array_equal(found, [[RED, WHITE, BLUE]])
    found = decode(tmp_path, indexed, "gif", transparency=1)
    np.testing.assert_array_equal(found, [[RED, WHITE, BLUE]])


def test_transparent_pictures_are_laid_on_white(tmp_path):
    rgba = np.array([[(*RED, 0), (*RED, 255), (0, 0, 0, 51)]], np.uint8)
    found = decode(tmp_path, Image.fromarray(rgba), "png")
    np.testing.assert_array_equal(found, [[WHITE, RED, (204, 204, 204)]])  # a fifth black
    grey = Image.fromarray(np.array([[(0, 0), (100, 255)]], np.uint8), "LA")
    np.testing.assert_array_equal(decode(tmp_path, grey, "png", 1)[..., 0], [[255, 100]])


def test_the_transparent_colour_of_a_picture_without_alpha_becomes_white(tmp_path):
    found = decode(tmp_path, Image.fromarray(COLOURS), "png", transparency=RED)
    np.testing.assert_array_equal(found[0], [WHITE, GREEN, BLUE])
    grey = decode(tmp_path, Image.fromarray(GREYS), "png", 1, transparency=7)
    np.testing.assert_array_equal(grey[0, :, 0], [0, 255, 255])


def test_sixteen_bits_are_scaled_rather_than_clipped(tmp_path):
    shades = np.array([[0, 255, 256, 257, 32768, 65535]], np.uint16)
    found = decode(tmp_path, Image.fromarray(shades), "png", 1)
    np.testing.assert_array_equal(found[..., 0], [[0, 1, 1, 1, 128, 255]])


def make_chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def make_png16(color_type, samples, more=b""):
    """A PNG of one row with 16 bits per channel, which Pillow cannot write."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
    header = struct.pack(">IIBBBBB", len(samples) // channels, 1, 16, color_type, 0, 0, 0)
    row = b"\0" + struct.pack(f">{len(samples)}H", *samples)
    chunks = make_chunk(b"IHDR", header) + more + make_chunk(b"IDAT", zlib.compress(row))
    return b"\x89PNG\r\n\x1a\n" + chunks + make_chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("color_type", "samples", "expected"),
    [
        (2, [65535, 0, 257 * 7], [(255, 0, 7)]),
        (6, [65535, 0, 257 * 7, 65535, 0, 0, 0, 0], [(255, 0, 7), WHITE]),
        (4, [257 * 9, 65535, 0, 0], [(9, 9, 9), WHITE]),
    ],
)
def test_sixteen_bits_of_colour_and_alpha(tmp_path, color_type, samples, expected):
    (tmp_path / "a.png").write_bytes(make_png16(color_type, samples))
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", Form())[0], expected)


def test_the_transparent_shade_of_a_sixteen_bit_picture_becomes_white(tmp_path):
    see_through = make_chunk(b"tRNS", struct.pack(">H", 1000))
    (tmp_path / "a.png").write_bytes(make_png16(0, [1000, 0, 65535, 257], see_through))
    found = read_picture(tmp_path / "a.png", Form(channels=1))
    np.testing.assert_array_equal(found[0, :, 0], [255, 0, 255, 1])


CMYK = {
    (0, 255, 255, 0): RED,
    (255, 0, 255, 0): GREEN,
    (0, 0, 0, 255): (0, 0, 0),
    (0, 0, 0, 0): WHITE,
}


@pytest.mark.parametrize(("inks", "colour"), CMYK.items())
def test_cmyk_becomes_colour(tmp_path, inks, colour):
    """Adobe inverts the inks and marks the file, and so does Pillow."""
    image = Image.new("CMYK", (16, 16), inks)
    found = decode(tmp_path, image, "jpg", quality=100)
    assert b"Adobe" in (tmp_path / "picture.jpg").read_bytes()
    assert np.abs(found.astype(int) - colour).max() <= 1  # measured: 0
    grey = read_picture(tmp_path / "picture.jpg", Form(channels=1))
    expected = Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0))
    assert abs(int(grey[0, 0, 0]) - expected) <= 1


EXIF_CASES = [("jpg", orientation) for orientation in range(1, 9)] + [("png", 6), ("webp", 6)]


@pytest.mark.parametrize(("suffix", "orientation"), EXIF_CASES)
def test_a_picture_is_turned_upright_as_its_exif_says(tmp_path, orientation, suffix):
    """The stored picture is turned so that EXIF's rotation restores it (Exif 2.3, 4.6.4)."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255
    transposed = upright.swapaxes(0, 1)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: transposed,
        6: transposed[::-1],
        7: transposed[::-1, ::-1],
        8: transposed[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(
        tmp_path, Image.fromarray(np.ascontiguousarray(stored)), suffix, exif=exif, quality=100
    )
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).max() <= 1  # measured: 0


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_the_first_of_several_frames_is_read(tmp_path, suffix):
    first, second = Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), BLUE)
    settings = {"save_all": True, "append_images": [second]}
    if suffix == "webp":
        settings["lossless"] = True
    assert (decode(tmp_path, first, suffix, **settings) == RED).all()


def test_the_content_of_a_file_matters_and_not_its_name(tmp_path):
    """PostScript, for which Pillow would start another program, is refused under any name."""
    Image.fromarray(COLOURS).save(tmp_path / "a.bmp", format="PNG")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.bmp", Form()), COLOURS)
    Image.fromarray(COLOURS).save(tmp_path / "b.png", format="EPS")
    with pytest.raises(UserError, match=r"b.png cannot be read as a picture: it is none of PNG"):
        read_picture(tmp_path / "b.png", Form())


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 5)
    with pytest.raises(UserError, match=r"a.png .*: 3x2 is more than 5 pixels"):
        read_picture(tmp_path / "a.png", Form())
    monkeypatch.undo()
    header = make_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0))
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + make_chunk(b"IEND", b""))
    with pytest.raises(UserError, match=r"b.png cannot be read as a picture: .* pixels"):
        read_picture(tmp_path / "b.png", Form())


WIDE = np.zeros((4, 12, 3), np.uint8)
WIDE[:, :4], WIDE[:, 4:8], WIDE[:, 8:] = RED, GREEN, BLUE


def test_crop_chooses_the_square():
    image = Image.fromarray(WIDE)
    assert (fit_picture(image, Form(4)) == GREEN).all()
    at_random = Form(4, crop="random")
    assert (fit_picture(image, at_random) == GREEN).all()  # the centre, if no place is given
    assert (fit_picture(image, at_random, (0.0, 0.5)) == RED).all()
    assert (fit_picture(image, at_random, (0.999, 0.5)) == BLUE).all()
    squeezed = fit_picture(image, Form(3, crop="none", resize="box"))
    np.testing.assert_array_equal(squeezed, np.tile(np.array([RED, GREEN, BLUE]), (3, 1, 1)))


@pytest.mark.parametrize("resize", ["bicubic", "bilinear", "box", "lanczos"])
def test_resize_names_the_filter(resize):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8))
    expected = image.resize((4, 4), Image.Resampling[resize.upper()])
    np.testing.assert_array_equal(fit_picture(image, Form(4, resize=resize)), expected)


def test_box_bicubic_halves_first():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8))
    half = image.resize((10, 10), Image.Resampling.BOX)
    expected = half.resize((6, 6), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(fit_picture(image, Form(6, resize="box_bicubic")), expected)


def test_a_png_in_memory_is_read_too():
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, "PNG")
    file.seek(0)
    np.testing.assert_array_equal(fit_picture(pictures.open_upright(file), Form()), COLOURS)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"crop": "centre"}, "crop is 'centre', .* center, random or none: did you mean 'center'"),
        ({"resize": "Lanczos3"}, "resize is 'Lanczos3', .* or box_bicubic: did you mean 'lanczos'"),
    ],
)
def test_a_misspelt_crop_or_filter_is_refused_with_a_suggestion(form, message):
    with pytest.raises(UserError, match=message):
        open_source("embedded", split="test", image_size=8, **form)


def test_grey_images_become_colour_with_equal_channels():
    grey = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 1), np.uint8)
    np.testing.assert_array_equal(fit_images(grey, Form()), grey.repeat(3, axis=-1))
    assert fit_images(grey, Form(channels=1)) is grey
    assert fit_images(grey, Form(5, channels=1)) is grey
    assert fit_images(grey, Form(8, channels=1)).shape == (3, 8, 8, 1)


@pytest.mark.parametrize(
    ("values", "dtype", "max_value", "expected"),
    [
        ([0, 1], np.uint8, 1, [0, 255]),
        ([0, 2, 4, 9], np.uint8, 4, [0, 128, 255, 255]),
        ([0, 2048, 4095], np.uint16, 4095, [0, 128, 255]),
        ([0, 65536, 131072], np.int32, 131072, [0, 128, 255]),
        ([0, 0.5, 1], np.float32, 1, [0, 128, 255]),
    ],
)
def test_the_value_that_means_white_can_be_given(tmp_path, values, dtype, max_value, expected):
    Image.fromarray(np.array([values], dtype)).save(tmp_path / "a.tif")
    form = Form(channels=1, max_value=max_value)
    assert read_picture(tmp_path / "a.tif", form)[0, :, 0].tolist() == expected


def test_the_value_that_means_white_holds_for_each_colour_and_not_for_transparency():
    array = np.array([[[0, 1, 2, 255], [1, 1, 1, 0]]], np.uint8)
    found = fit_picture(Image.fromarray(array, "RGBA"), Form(max_value=2))
    assert found.tolist() == [[[0, 128, 255], [255, 255, 255]]]
    grey = np.array([[[0, 0, 2], [2, 2, 2]]], np.uint8)
    assert fit_picture(Image.fromarray(grey), Form(max_value=2)).tolist() == [
        [[0, 0, 255], [255, 255, 255]]
    ]


@pytest.mark.parametrize(
    ("values", "dtype", "max_value", "message"),
    [
        ([0, 1], np.uint8, 4095, "go up to 255, but white is 4095"),
        ([0, 1], np.float32, None, "floating-point numbers: say with --data.max-value"),
        ([-1, 1], np.int32, 255, "negative values"),
        ([0, np.nan], np.float32, 1, "negative values"),
    ],
)
def test_values_without_a_known_white_are_refused(tmp_path, values, dtype, max_value, message):
    Image.fromarray(np.array([values], dtype)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=message):
        read_picture(tmp_path / "a.tif", Form(channels=1, max_value=max_value))


def test_a_tile_larger_than_any_photo_is_refused(tmp_path):
    """A TIFF of 2x2 pixels may declare one tile of 40,000x40,000."""
    size, tiles = {256: 2, 257: 2}, {322: 40_000, 323: 40_000, 324: 8, 325: 4}
    tags = size | {258: 8, 259: 8, 262: 1, 277: 1} | tiles
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = struct.pack("<2sHI8xH", b"II", 42, 16, len(tags))
    (tmp_path / "a.tif").write_bytes(start + entries + bytes(4))
    with pytest.raises(UserError, match="40000x40000 is more than 89,478,485 pixels"):
        read_picture(tmp_path / "a.tif", Form())


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_a_rotated_tiff_is_upright_and_has_the_size_at_which_it_is_shown(
    tmp_path, orientation, turns, compression
):
    path, pixels = tmp_path / "a.tif", np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(pixels).save(path, tiffinfo={274: orientation}, compression=compression)
    found = read_picture(path, Form(channels=1))[..., 0]
    np.testing.assert_array_equal(found, np.rot90(pixels, turns))
    assert inspect_picture(path) == found.shape[::-1]
