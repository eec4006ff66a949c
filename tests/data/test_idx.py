import gzip
import struct

import numpy as np
import pytest

from jax_ddpm.data.idx import read_idx, write_idx
from jax_ddpm.errors import UserError

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
GOOD = struct.pack(">BBBB3I", 0, 0, 8, 3, 2, 3, 4) + ARRAY.tobytes()


@pytest.mark.parametrize("shape", [(24,), (2, 3, 4), (1, 2, 3, 4), (0, 28, 28)])
def test_a_written_array_is_read_back(tmp_path, shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    write_idx(tmp_path / "a.gz", array)
    np.testing.assert_array_equal(read_idx(tmp_path / "a.gz"), array)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_plain_and_gzipped_files_are_distinguished_by_their_bytes(tmp_path, pack):
    (tmp_path / "any.name").write_bytes(pack(GOOD))
    found = read_idx(tmp_path / "any.name")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, ARRAY)


def test_the_same_array_gives_the_same_bytes(tmp_path):
    write_idx(tmp_path / "one.gz", ARRAY)
    write_idx(tmp_path / "other.gz", ARRAY)
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "other.gz").read_bytes()


BROKEN = {
    "empty": (b"", "is not an IDX file"),
    "text": (b"<html>not found</html>", "is not an IDX file"),
    "floats": (GOOD[:2] + b"\x0d" + GOOD[3:], "is not an IDX file of unsigned bytes"),
    "truncated header": (GOOD[:10], "ends inside its 16-byte header"),
    "truncated data": (GOOD[:-1], "announces 24 bytes .* holds 23"),
    "trailing bytes": (GOOD + b"\0", "announces 24 bytes .* holds more"),
    "huge shape": (GOOD[:4] + b"\xff" * 12 + GOOD[16:], "announces .* holds 24"),
    "empty but huge": (GOOD[:4] + b"\0" * 4 + b"\xff" * 8, "announces the impossible shape"),
    "truncated gzip": (gzip.compress(GOOD)[:-9], "gzip data end early or are corrupt"),
    "gzip header only": (b"\x1f\x8b", "gzip data end early or are corrupt"),
    "corrupt gzip": (gzip.compress(GOOD)[:-8] + b"\0" * 8, "gzip data end early or are corrupt"),
}


@pytest.mark.parametrize(("raw", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_with_its_name_and_the_reason(tmp_path, raw, message):
    path = tmp_path / "broken-idx3-ubyte"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=f"broken-idx3-ubyte.*{message}") as caught:
        read_idx(path)
    assert "\n" not in str(caught.value)
