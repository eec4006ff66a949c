"""Untrusted data: IDX, NumPy and picture files."""

import gzip
import io
import math
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jax_ddpm.data.cifar10 import read_cifar10
from jax_ddpm.data.idx import read_idx
from jax_ddpm.data.sources import open_source
from jax_ddpm.files.untrusted import read_npz
from tests.shared.cifar10 import LABELS as CLASSES
from tests.shared.cifar10 import PIXELS, list_files, write_archive, write_binary, write_python_2
from tests.shared.mutations import INTERESTING, corruptions, read_or_refuse, valid_or_damaged

SIZES = st.one_of(st.integers(0, 4), st.sampled_from([n for n in INTERESTING if n < 2**32]))


@st.composite
def idx_files(draw):
    """Headers of any shape, followed by the announced bytes or others, gzipped or not."""
    shape = draw(st.lists(SIZES, max_size=4))
    announced = math.prod(shape)
    count = draw(st.sampled_from([announced, announced - 1, announced + 1, 24]))
    start = draw(st.sampled_from([b"\0\0\x08", b"\0\0\x08", b"\0\0\x0d", b"\0\1\x08"]))
    dims = draw(st.sampled_from([len(shape), len(shape), 0, 255]))
    header = start + bytes([dims]) + struct.pack(f">{len(shape)}I", *shape)
    raw = header + bytes(range(250)) * (min(max(count, 0), 1000) // 250 + 1)
    raw = raw[: len(header) + min(max(count, 0), 1000)]
    return gzip.compress(raw) if draw(st.booleans()) else raw


@given(raw=valid_or_damaged(idx_files()))
def test_idx_files_are_read_or_refused(scratch, raw):
    path = scratch / "any-idx3-ubyte"
    path.write_bytes(raw)
    array = read_or_refuse(lambda: read_idx(path))
    if array is not None:
        inside = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        assert array.dtype == np.uint8
        assert inside.endswith(array.tobytes())
        assert len(inside) == 4 + 4 * array.ndim + array.size


NUMERIC = ["|u1", "<f2", "<f4", ">f4", "<i8", "<c16", "|b1"]
DTYPES = [*NUMERIC, "|O", "<U3", "<U999999999", "V7", "<M8[s]", "nonsense", "<f4,<O8", "|S0"]


@st.composite
def npy_files(draw):
    """Headers of any dtype, order and shape, followed by about as many bytes as they announce."""
    shape = tuple(draw(st.lists(SIZES, max_size=4)))
    text = draw(st.sampled_from([repr(shape), repr(shape), "(-1, 4)", "(2.5,)", "4", "()" * 400]))
    order = draw(st.sampled_from(["False", "True", "None", "__import__('os')"]))
    header = f"{{'descr': {draw(st.sampled_from(DTYPES))!r}, 'fortran_order': {order}, 'shape': {text}, }}"
    header = header.ljust(118) + "\n"
    version = draw(st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"]))
    form = "<H" if version == b"\x01\x00" else "<I"
    start = b"\x93NUMPY" + version + struct.pack(form, len(header)) + header.encode()
    return start + bytes(min(math.prod(shape) * draw(st.sampled_from([1, 4, 8])), 4096))


def make_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


IMAGES = make_npy(np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3))
LABELS = make_npy(np.array([1, 0]))
MEMBERS = ["images.npy", "labels.npy", "x.npy", "../../outside.npy", "images", "a" * 3000 + ".npy"]
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@st.composite
def npz_files(draw):
    """Archives of valid, invented and damaged arrays with all kinds of names and compression."""
    buffer = io.BytesIO()
    bodies = st.one_of(
        st.sampled_from([IMAGES, LABELS]), npy_files(), npy_files().flatmap(corruptions)
    )
    members = draw(st.lists(st.tuples(st.sampled_from(MEMBERS), bodies), max_size=3))
    if draw(st.booleans()):
        members = [("images.npy", IMAGES), ("labels.npy", LABELS), *members]
    with zipfile.ZipFile(buffer, "w") as file:
        for name, body in members:
            file.writestr(name, body, draw(st.sampled_from(METHODS)))
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name", "ignore:Stored array")
@given(raw=valid_or_damaged(npz_files()))
def test_npz_files_are_read_or_refused(scratch, raw):
    path = scratch / "any.npz"
    path.write_bytes(raw)
    arrays = read_or_refuse(lambda: read_npz(path))
    for array in (arrays or {}).values():
        assert not array.dtype.hasobject
        assert array.nbytes <= 2**26
    open_images(path)


@pytest.mark.filterwarnings("ignore:Stored array")
@given(raw=valid_or_damaged(st.one_of(npy_files(), st.just(IMAGES))))
def test_npy_files_are_read_or_refused(scratch, raw):
    path = scratch / "any.npy"
    path.write_bytes(raw)
    open_images(path)


def open_images(path):
    source = read_or_refuse(lambda: open_source("arrays", path))
    if source is not None:
        assert len(source.images) == len(source.labels) > 0
        assert source.images[0].dtype == np.uint8
        assert source.images[0].shape == source.image_shape
        assert source.image_shape[-1] in (1, 3)
        assert np.asarray(source.labels).dtype.kind in "iu"


def make_picture(kind, mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    frame = Image.fromarray(pixels, "RGBA").convert(mode)
    frame.save(buffer, kind, **options)
    return buffer.getvalue()


def make_exif():
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags


FRAMES = {"save_all": True, "append_images": [Image.new("P", (7, 9))]}
PICTURES = {
    "a.png": [make_picture("PNG", mode) for mode in ("RGB", "P", "RGBA", "I;16")],
    "a.jpg": [
        make_picture("JPEG", exif=make_exif()),
        make_picture("JPEG", "CMYK"),
        make_picture("JPEG", "L", progressive=True),
    ],
    "a.gif": [make_picture("GIF", "P"), make_picture("GIF", "P", **FRAMES)],
    "a.webp": [make_picture("WEBP"), make_picture("WEBP", "RGBA", lossless=True)],
    "a.bmp": [make_picture("BMP", mode) for mode in ("RGB", "P", "1")],
    "a.tif": [
        make_picture("TIFF", exif=make_exif()),
        make_picture("TIFF", "I;16", compression="tiff_adobe_deflate"),
        make_picture("TIFF", "RGB", compression="jpeg"),
        make_picture("TIFF", "P", compression="tiff_lzw", **FRAMES),
    ],
}


def read_chunks(png):
    """Read the (kind, body) of each chunk of a PNG."""
    at = 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += 12 + length


@st.composite
def damaged_pngs(draw, png):
    """PNGs with one chunk damaged, moved or repeated, and with correct checksums."""
    found = list(read_chunks(png))
    i, j = draw(st.integers(0, len(found) - 1)), draw(st.integers(0, len(found) - 1))
    found.insert(j, (found[i][0], draw(corruptions(found[i][1]))))
    if draw(st.booleans()):
        del found[i]
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in found
    )
    return png[:8] + b"".join(packed)


@pytest.mark.filterwarnings("ignore")  # Pillow warns about data that it ignores
@pytest.mark.parametrize("name", PICTURES)
@given(data=st.data())
def test_pictures_are_read_or_refused(scratch, name, data):
    valid = data.draw(
        st.sampled_from(
            [one for ones in PICTURES.values() for one in ones[:2]] + 6 * PICTURES[name]
        )
    )
    png = valid.startswith(b"\x89PNG") and data.draw(st.booleans())
    raw = data.draw(damaged_pngs(valid) if png else valid_or_damaged(st.just(valid)))
    folder = scratch / f"pictures {name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / name).write_bytes(raw)
    size, channels = data.draw(st.sampled_from([(None, 3), (4, 1), (4, 3)]))
    source = read_or_refuse(
        lambda: open_source("folder", folder, image_size=size, channels=channels)
    )
    if source is not None:
        found = read_or_refuse(lambda: source.images[0])
        assert found is None or (found.dtype, found.shape[-1]) == (np.uint8, channels)


BATCHES = [write(PIXELS[0], CLASSES[0]) for write in (write_python_2, write_binary)]


@given(raw=valid_or_damaged(st.sampled_from(BATCHES)), suffix=st.sampled_from(["", ".bin"]))
def test_batches_of_cifar10_are_read_or_refused(scratch, raw, suffix):
    folder = scratch / f"batches{suffix}"
    folder.mkdir(exist_ok=True)
    (folder / f"test_batch{suffix}").write_bytes(raw)
    check_cifar10(folder)


@given(
    data=st.data(), kind=st.sampled_from(["python", "binary"]), mode=st.sampled_from(["w", "w:gz"])
)
def test_archives_of_cifar10_are_read_or_refused(scratch, data, kind, mode):
    path = write_archive(scratch / "any.tar.gz", list_files(kind), mode)
    path.write_bytes(data.draw(valid_or_damaged(st.just(path.read_bytes()))))
    check_cifar10(path)


def check_cifar10(path):
    source = read_or_refuse(lambda: read_cifar10(path, "test"))
    if source is not None:
        assert source.images.shape == (len(source.labels), 32, 32, 3)
        assert source.images.dtype == np.uint8
        assert 0 <= source.labels.min() <= source.labels.max() <= 9


@given(data=st.data())
def test_parquet_files_are_read_or_refused(scratch, data):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"image": [make_picture("PNG")] * 5, "label": [0, 1, 2, 1, 0]})
    path = scratch / "any.parquet"
    pytest.importorskip("pyarrow.parquet").write_table(table, path, row_group_size=2)
    path.write_bytes(data.draw(valid_or_damaged(st.just(path.read_bytes()))))
    source = read_or_refuse(lambda: open_source("parquet", path))
    if source is not None:
        assert len(source.images) == len(source.labels) > 0
        assert source.images[0].shape == source.image_shape
