import os

import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import require_writable, write_atomically


def test_the_folder_is_created_and_the_file_written(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    write_atomically(path, lambda temporary: temporary.write_text("whole"))
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_the_old_file_is_replaced_only_when_the_new_one_is_complete(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("new")
        assert path.read_text() == "old"

    write_atomically(path, write)
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("ha")
        raise error

    with pytest.raises(error):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_replaces_neither_a_folder_nor_a_device(tmp_path):
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for path, kind in ((pipe, "not a file but a device or pipe"), (folder, "a folder")):
        with pytest.raises(UserError, match=f"{path.name} is {kind}: give the name of a file"):
            write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert pipe.is_fifo()
    assert sorted(tmp_path.iterdir()) == [folder, pipe]


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    (tmp_path / "other").write_text("other")
    (tmp_path / "file").symlink_to(tmp_path / "other")
    write_atomically(tmp_path / "file", lambda temporary: temporary.write_text("new"))
    assert (tmp_path / "other").read_text() == "other"
    assert (tmp_path / "file").read_text() == "new"


def test_checking_that_a_file_can_be_written_leaves_nothing_behind(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    require_writable(path)
    require_writable(tmp_path / "a" / "b" / "file.txt")
    assert path.read_text() == "old"
    assert list(tmp_path.rglob("*")) == [path]


def test_a_path_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def read_only(**kwargs):
        raise OSError(30, "Read-only file system")

    with pytest.raises(UserError, match="is a folder: give the name of a file"):
        require_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a could not be written \(Not a directory\)"):
        require_writable(tmp_path / "file" / "a")
    monkeypatch.setattr("jax_ddpm.files.atomic.TemporaryFile", read_only)
    with pytest.raises(UserError, match=r"b could not be written \(Read-only file system\)"):
        require_writable(tmp_path / "b")
