import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import jax_ddpm
from jax_ddpm.data.idx import read_idx
from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import (
    open_regular,
    read_bounded,
    read_json,
    read_npz,
    require_bounded,
    require_plain_tree,
)
from jax_ddpm.interop.files import read_weights

ZEROS = 2**28  # they compress to a thousandth, and a file may not unpack to that many bytes
# Measured: 4 to 3,872 KiB for the four; without the check the archive alone takes 263,340.
LIMIT_KIB = 32 * 2**10
ROOT = Path(jax_ddpm.__file__).parents[1]


def make_npy_header(shape, descr="|u1"):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(118) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def write_archive(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, chunks in members.items():
            with file.open(name, "w") as stream:
                for chunk in chunks:
                    stream.write(chunk)
    return path


def make_zeros(count):
    return [bytes(2**20)] * (count // 2**20)


def write_gzip_bomb(path):
    import gzip

    with gzip.open(path, "wb") as file:
        file.write(struct.pack(">BBBB3I", 0, 0, 8, 3, ZEROS // 2**20, 2**10, 2**10))
        for chunk in make_zeros(ZEROS):
            file.write(chunk)
    return path


def write_npz_bomb(path):
    return write_archive(path, {"x.npy": [make_npy_header((ZEROS,)), *make_zeros(ZEROS)]})


def write_torch_bomb(path):
    """Write a PyTorch file with a compressed storage, which PyTorch never does."""
    torch = pytest.importorskip("torch")
    plain = io.BytesIO()
    torch.save({"a": torch.zeros(4)}, plain)
    with zipfile.ZipFile(plain) as file:
        members = {name: [file.read(name)] for name in file.namelist()}
    members = {
        name: make_zeros(ZEROS) if name.endswith("/0") else body for name, body in members.items()
    }
    return write_archive(path, members)


def write_twins(path):
    """Write ten thousand names for one tensor of 128 KiB; copies would take 1.2 GiB."""
    torch = pytest.importorskip("torch")
    one = torch.zeros(2**15)
    torch.save({f"a{i}": one for i in range(10_000)}, path)
    return path


BOMBS = {
    "a-idx3-ubyte.gz": (write_gzip_bomb, read_idx),
    "a.npz": (write_npz_bomb, read_npz),
    "a.pt": (write_torch_bomb, read_weights),
    "twins.pt": (write_twins, read_weights),
}
MEASURE = """
import sys
sys.path[:0] = sys.argv[1:2]
from pathlib import Path
from tests.files.test_untrusted import BOMBS
from jax_ddpm.errors import UserError
import torch

def peak():  # in KiB, of this process alone: getrusage would start with its parent's
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

before = peak()
for name, (make, read) in BOMBS.items():
    try:
        read(Path(sys.argv[2]) / name)
    except UserError as error:
        print(peak() - before, error)
"""


@pytest.mark.slow
def test_a_bomb_is_refused_before_it_takes_memory(tmp_path):
    pytest.importorskip("torch")
    for name, (make, _) in BOMBS.items():
        assert make(tmp_path / name).stat().st_size < ZEROS / 100
    command = [sys.executable, "-c", MEASURE, str(ROOT), str(tmp_path)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(BOMBS)
    for line in lines:
        grown, _, message = line.partition(" ")
        assert "decompression bomb" in message
        assert int(grown) < LIMIT_KIB, line


def test_an_array_that_announces_more_than_its_archive_holds_is_refused(tmp_path):
    path = write_archive(tmp_path / "a.npz", {"x.npy": [make_npy_header((10**12,)), bytes(100)]})
    with pytest.raises(UserError, match=r"a.npz .*x.npy of shape .* announces .* but holds 100"):
        read_npz(path)


@pytest.mark.parametrize(
    ("members", "method", "message"),
    [
        ({"x.npy": [make_npy_header((1,), "|O"), bytes(8)]}, zipfile.ZIP_STORED, "Python objects"),
        ({"x.npy": [make_npy_header((0,), "|S0")]}, zipfile.ZIP_STORED, "no array has shape"),
        ({"x.npy": [make_npy_header((4,)), bytes(4)]}, zipfile.ZIP_LZMA, "compressed in a way"),
        ({"x.txt": [b"text"]}, zipfile.ZIP_STORED, "x.txt is not an array"),
    ],
)
def test_an_archive_that_numpy_would_not_write_is_refused(tmp_path, members, method, message):
    with pytest.raises(UserError, match=message):
        read_npz(write_archive(tmp_path / "a.npz", members, method))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "is not a thing"),
        ('{"a": NaN}', "NaN is not a number"),
        ("\udcff", "is not a thing"),
        ("1" * 5000, "is not a thing"),
        (" " * (2**24 + 1), "more than 16,777,216 bytes"),
    ],
    ids=["deep", "nan", "bytes", "digits", "long"],
)
def test_hostile_json_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as caught:
        read_json(tmp_path / "a.json", "a thing")
    assert "\n" not in str(caught.value)


def test_a_path_without_json_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        read_json(tmp_path / "a.json", "a thing")
    with pytest.raises(UserError, match=r"is a folder, but it must be a regular file"):
        read_json(tmp_path, "a thing")


def test_a_file_may_unpack_to_a_hundred_times_its_size_or_64_mib(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(2**20))
    require_bounded(100 * 2**20, path)
    with pytest.raises(
        UserError, match="1,048,576 bytes and would take 104,857,601 in memory, so it is refused"
    ):
        require_bounded(100 * 2**20 + 1, path)
    require_bounded(100 * 2**20, tmp_path)  # a folder: the files in it
    path.write_bytes(b"")
    require_bounded(2**26, path)
    with pytest.raises(UserError, match="0 bytes and would take 67,108,865 in memory"):
        require_bounded(2**26 + 1, tmp_path)


def test_a_message_is_one_printable_line_whatever_it_quotes(tmp_path):
    text = str(UserError("a\n\x1b[2J\tb" + "x" * 10**6))
    assert text.isprintable()
    assert len(text) < 2100
    assert text.startswith("a \\x1b[2J b")


HOSTILE = {
    "not an object": [1],
    "no format": {},
    "huge image": {"format": 2, "image_shape": [10**9, 10**9, 3], "config": {}},
    "infinite image": {"format": 2, "image_shape": [1e999, 1, 1], "config": {}},
}


@pytest.mark.parametrize("document", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_configuration_is_refused(tmp_path, document):
    from jax_ddpm import runs

    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"config.json is not the configuration of a run"):
        runs.load(tmp_path)


def test_a_link_out_of_a_run_folder_is_refused(tmp_path):
    from jax_ddpm import runs
    from jax_ddpm.config.run import Config

    run = runs.Run(tmp_path / "run", Config(), (8, 8, 1))
    runs.write_config(run)
    (tmp_path / "link").symlink_to(run.folder)
    (run.folder / "samples").symlink_to("checkpoints")
    assert runs.load(tmp_path / "link").image_shape == (8, 8, 1)
    (run.folder / "metrics.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=r"run/metrics.jsonl is a link out of the run folder"):
        runs.load(run.folder)


@pytest.mark.parametrize("place", ["a", "samples/b", "checkpoints/3/state/c"])
def test_links_and_pipes_are_found_at_every_level(tmp_path, place):
    run, path = tmp_path / "run", tmp_path / "run" / place
    path.parent.mkdir(parents=True)
    (run / "file").write_text("")
    path.symlink_to(run / "file")
    require_plain_tree(run)
    for target in ("/dev/zero", tmp_path / "nothing", path):
        path.unlink()
        path.symlink_to(target)
        with pytest.raises(UserError, match=rf"{path.name} is a link (out|that leads to itself)"):
            require_plain_tree(run)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=rf"{path.name} is a pipe or socket: remove it"):
        require_plain_tree(run)


def test_only_a_regular_file_is_opened_and_nobody_waits_for_a_pipe(tmp_path):
    pipe, folder, file = tmp_path / "pipe", tmp_path / "folder", tmp_path / "file"
    os.mkfifo(pipe)
    folder.mkdir()
    file.write_text("text")
    for path, kind in ((pipe, "a pipe"), (folder, "a folder"), (Path("/dev/zero"), "a device")):
        with pytest.raises(UserError, match=f"{path.name} is {kind}.*must be a regular file"):
            open_regular(path)
    assert read_bounded(file, 4) == b"text"
    with pytest.raises(UserError, match="has more than 3 bytes"):
        read_bounded(file, 3)


def test_a_link_may_not_leave_the_folder_that_it_is_in(tmp_path):
    snapshot, blobs = tmp_path / "models--a" / "snapshots" / "1", tmp_path / "models--a" / "blobs"
    for folder in (snapshot, blobs, tmp_path / "mine"):
        folder.mkdir(parents=True)
    (blobs / "b").write_text("blob")
    (snapshot / "weights").symlink_to("../../blobs/b")
    assert read_bounded(snapshot / "weights", 9, inside=snapshot) == b"blob"
    (tmp_path / "mine" / "weights").symlink_to(blobs / "b")
    assert read_bounded(tmp_path / "mine" / "weights", 9) == b"blob"
    with pytest.raises(UserError, match="weights is a link out of its folder"):
        read_bounded(tmp_path / "mine" / "weights", 9, inside=tmp_path / "mine")
    (tmp_path / "mine" / "loop").symlink_to("loop")
    with pytest.raises((UserError, OSError)):
        open_regular(tmp_path / "mine" / "loop", inside=tmp_path / "mine")


def test_a_lock_that_is_a_link_leaves_its_target_alone(tmp_path):
    from jax_ddpm import runs

    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "precious")
    with (
        pytest.raises(UserError, match="lock could not be written"),
        runs.lock_folder(tmp_path / "run"),
    ):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_the_arrays_of_an_archive_are_read(tmp_path):
    arrays = {"a": np.arange(6).reshape(2, 3).T, "b": np.ones((0, 2)), "c": np.array(1.5)}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = read_npz(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
