"""The emoji data set, drawn from a small font with three bitmaps."""

import io

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib import newTable
from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics
from fontTools.ttLib.tables.C_B_D_T_ import cbdt_bitmap_format_17
from fontTools.ttLib.tables.E_B_L_C_ import (
    BitmapSizeTable,
    SbitLineMetrics,
    Strike,
    eblc_index_sub_table_1,
)
from PIL import Image

from jax_ddpm.cli import prepare
from jax_ddpm.data.emoji import draw_emoji
from jax_ddpm.data.sources import open_source
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.prepare_emoji import prepare_emoji

COLOURS = {"b": (0, 0, 255, 255), "a": (255, 0, 0, 255), "again": (255, 0, 0, 255)}

LINE_METRICS = ["ascender", "descender", "widthMax", "maxBeforeBL", "minAfterBL", "pad1", "pad2"]
LINE_METRICS += ["caretSlopeNumerator", "caretSlopeDenominator", "caretOffset"]
LINE_METRICS += ["minOriginSB", "minAdvanceSB"]


def make_bitmap(colour):
    file = io.BytesIO()
    Image.new("RGBA", (136, 128), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def font(tmp_path_factory):
    """A font with a blue, a red and the same red picture again, in this order."""
    path = tmp_path_factory.mktemp("font") / "three.ttf"
    order = [".notdef", *COLOURS]
    builder = FontBuilder(128, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap({97 + i: name for i, name in enumerate(COLOURS)})
    pictures, places = newTable("CBDT"), newTable("CBLC")
    pictures.version = places.version = 3.0
    glyphs = {}
    for name, colour in COLOURS.items():
        glyph = cbdt_bitmap_format_17(b"", None)
        glyph.metrics = SmallGlyphMetrics()
        for field in ("height", "width", "BearingX", "BearingY", "Advance"):
            setattr(glyph.metrics, field, 100)
        glyph.imageData = make_bitmap(colour)
        glyphs[name] = glyph
    pictures.strikeData = [glyphs]
    strike = Strike()
    table = strike.bitmapSizeTable = BitmapSizeTable()
    for direction in ("hori", "vert"):
        metrics = SbitLineMetrics()
        for field in LINE_METRICS:
            setattr(metrics, field, 0)
        setattr(table, direction, metrics)
    table.colorRef, table.ppemX, table.ppemY, table.bitDepth, table.flags = 0, 109, 109, 32, 1
    table.startGlyphIndex, table.endGlyphIndex = 1, 3
    index = eblc_index_sub_table_1(b"", None)
    index.names, index.imageFormat, index.indexFormat = list(COLOURS), 17, 1
    index.firstGlyphIndex, index.lastGlyphIndex = 1, 3
    strike.indexSubTables = [index]
    places.strikes = [strike]
    builder.font["CBDT"], builder.font["CBLC"] = pictures, places
    builder.font.save(path)
    return path


def test_every_different_picture_of_the_font_is_drawn_on_a_white_square(font):
    images = draw_emoji(font)
    assert images.shape == (2, 32, 32, 3)  # one of the two red ones is left out
    assert (images[:, 2:-2] == [[[[0, 0, 255]]], [[[255, 0, 0]]]]).all()
    assert (images[:, [0, -1]] > 100).any(axis=-1).all()  # 4 of 136 rows above and below are white
    assert (images[:, 0].mean(axis=(1, 2)) > images[:, 16].mean(axis=(1, 2))).all()


def test_the_file_is_always_the_same_and_is_a_source(font, tmp_path, capsys):
    files = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for file in files:
        prepare.run(["emoji", "--font", str(font), "--out", str(file)])
    assert files[0].read_bytes() == files[1].read_bytes()
    assert f"--data.name arrays --data.path {files[0]}" in capsys.readouterr().out
    source = open_source("arrays", files[0], channels=3)
    np.testing.assert_array_equal(source.images, draw_emoji(font))


def test_a_missing_or_wrong_font_is_refused_with_advice(tmp_path):
    with pytest.raises(UserError, match=r"no font .*none.ttf: apt install fonts-noto-color-emoji"):
        prepare_emoji(tmp_path / "none.ttf", tmp_path / "a.npz")
    (tmp_path / "other.ttf").write_bytes(b"not a font")
    with pytest.raises(UserError, match=r"other.ttf holds no coloured bitmaps"):
        prepare_emoji(tmp_path / "other.ttf", tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"a.zip, but it must be a file that ends in .npz"):
        prepare_emoji(tmp_path / "other.ttf", tmp_path / "a.zip")
    assert not (tmp_path / "a.npz").exists()
