import os
from pathlib import Path

import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.files import atomic
from jax_ddpm.files.atomic import (
    remove_unfinished,
    require_writable,
    write_atomically,
    write_folder_atomically,
)


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


def plant_links(folder, name, target):
    """Leave links to `target` under every temporary name that can be guessed."""
    for number in (os.getpid(), 0):
        (folder / f".{name}.{number}.tmp").symlink_to(target)
    (folder / f".{name}.tmp").symlink_to(target)


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    plant_links(tmp_path, "file", tmp_path / "precious")
    write_atomically(tmp_path / "file", lambda temporary: temporary.write_text("new"))
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "new"


def test_a_planted_link_under_the_very_name_is_refused(tmp_path, monkeypatch):
    """As if somebody had guessed the temporary name."""
    monkeypatch.setattr(atomic, "name_temporary", lambda path: path.with_name(".guessed.tmp"))
    (tmp_path / ".guessed.tmp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"file could not be written \(File exists\)"):
        write_atomically(tmp_path / "file", lambda temporary: temporary.write_text("new"))
    with pytest.raises(FileExistsError), write_folder_atomically(tmp_path / "folder"):
        pass
    with pytest.raises(FileExistsError):
        atomic.open_new(tmp_path / ".guessed.tmp")
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / ".guessed.tmp").is_symlink()


def test_a_folder_appears_completely_or_not_at_all(tmp_path):
    with write_folder_atomically(tmp_path / "a" / "folder") as temporary:
        (temporary / "file").write_text("whole")
        assert atomic.is_leftover(temporary)
        assert not (tmp_path / "a" / "folder").exists()
    assert (tmp_path / "a" / "folder" / "file").read_text() == "whole"
    with pytest.raises(KeyError), write_folder_atomically(tmp_path / "b") as temporary:
        raise KeyError
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_only_a_regular_file_is_appended_to(tmp_path, kind):
    path = tmp_path / "log"
    with atomic.open_to_append(path) as file:
        file.write(b"one")
    with atomic.open_to_append(path) as file:
        file.write(b" two")
    assert path.read_text() == "one two"
    other = tmp_path / kind
    match kind:
        case "link":
            other.symlink_to(path)
        case "pipe":
            os.mkfifo(other)
        case "device":
            other = Path("/dev/null")
    with pytest.raises(OSError, match=r"Too many levels|No such device|not a regular file"):
        atomic.open_to_append(other)
    assert path.read_text() == "one two"


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


def test_what_is_being_written_is_removed_before_the_process_ends(tmp_path):
    def interrupt(temporary):
        temporary.write_text("half")
        remove_unfinished()
        assert not temporary.exists()
        raise InterruptedError

    with pytest.raises((InterruptedError, UserError)):
        write_atomically(tmp_path / "file", interrupt)
    with pytest.raises(FileNotFoundError), write_folder_atomically(tmp_path / "folder") as folder:
        (folder / "part").write_text("half")
        remove_unfinished()
        assert not folder.exists()
    assert list(tmp_path.iterdir()) == []
