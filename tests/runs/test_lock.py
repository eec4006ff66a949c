"""A run folder has one writer, who notices if the folder is moved or removed."""

import shutil

import pytest

from jax_ddpm import runs
from jax_ddpm.errors import UserError
from jax_ddpm.runs import checkpoint
from tests.shared.saved_states import ABOUT, make_state


def test_a_removed_lock_lets_nobody_in(tmp_path):
    with runs.lock_folder(tmp_path / "run"):
        (tmp_path / "run" / "lock").unlink()
        with (
            pytest.raises(UserError, match=r"another process is training in .*run \(its lock was"),
            runs.lock_folder(tmp_path / "run"),
        ):
            pass


def test_a_removed_lock_is_made_again(tmp_path):
    with runs.lock_folder(tmp_path / "run") as held:
        (tmp_path / "run" / "lock").unlink()
        held.check()
        assert (tmp_path / "run" / "lock").read_text().startswith("process ")
        held.check()
    with runs.lock_folder(tmp_path / "run"):
        pass


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("how", [shutil.move, lambda folder, _: shutil.rmtree(folder)])
def test_a_folder_that_is_moved_or_removed_is_noticed(tmp_path, how, again):
    with runs.lock_folder(tmp_path / "run") as held:
        held.check()
        how(tmp_path / "run", tmp_path / "moved")
        if again:
            (tmp_path / "run").mkdir()
        with pytest.raises(UserError, match="run was moved, removed or replaced while training"):
            held.check()


def link_to_itself(folder, _):
    shutil.rmtree(folder)
    folder.symlink_to(folder)


def link_elsewhere(folder, other):
    shutil.rmtree(folder)
    other.mkdir()
    folder.symlink_to(other)


@pytest.mark.parametrize("how", [link_to_itself, link_elsewhere])
def test_a_folder_that_is_replaced_by_a_link_is_noticed(tmp_path, how):
    with runs.lock_folder(tmp_path / "run") as held:
        how(tmp_path / "run", tmp_path / "other")
        with pytest.raises(UserError, match="run was moved, removed or replaced while training"):
            held.check()


def test_a_folder_that_is_moved_while_a_checkpoint_is_written_is_not_made_again(tmp_path):
    with (
        runs.lock_folder(tmp_path / "run") as held,
        pytest.raises(UserError, match="moved, removed or replaced"),
        checkpoint.open_checkpoints(tmp_path / "run/checkpoints", guard=held.check) as checkpoints,
    ):
        checkpoint.save(checkpoints, make_state(3), ABOUT)
        (tmp_path / "run").rename(tmp_path / "moved")
        checkpoint.wait(checkpoints)
    assert not (tmp_path / "run").exists()
