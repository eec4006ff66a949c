from contextlib import suppress

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.devices.parallel import parallelize
from jax_ddpm.errors import UserError
from jax_ddpm.optim.optimizers import make_optimizer
from jax_ddpm.runs import checkpoint
from jax_ddpm.training.state import create_state
from tests.shared.disk import limit_file_size
from tests.shared.saved_states import ABOUT, assert_same_bits, make_state


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints 2 and 3; the first one has been removed again."""
    folder = tmp_path_factory.mktemp("checkpoints") / "new"
    with checkpoint.open_checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoint.save(checkpoints, make_state(step), ABOUT)
    return folder


def test_the_newest_state_is_restored_bit_by_bit(saved):
    with checkpoint.open_checkpoints(saved) as checkpoints:
        assert checkpoint.find_latest_step(checkpoints) == 3
        assert_same_bits(checkpoint.restore(checkpoints, make_state(0)), make_state(3))


def test_shapes_are_enough_to_restore(saved):
    like = jax.eval_shape(lambda: make_state(0))
    with checkpoint.open_checkpoints(saved) as checkpoints:
        assert_same_bits(checkpoint.restore(checkpoints, like), make_state(3))


def test_only_the_newest_are_kept(saved):
    with checkpoint.open_checkpoints(saved) as checkpoints:
        assert checkpoint.list_steps(checkpoints) == [2, 3]


def test_a_checkpoint_describes_its_run(saved):
    with checkpoint.open_checkpoints(saved) as checkpoints:
        assert checkpoint.describe(checkpoints, 3).items() >= ABOUT.items()


def test_a_complete_checkpoint_is_not_saved_again(tmp_path):
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, make_state(3), ABOUT)
        other = make_state(4).replace(step=jnp.array(3, jnp.int32))
        checkpoint.save(checkpoints, other, ABOUT)
        assert_same_bits(checkpoint.restore(checkpoints, make_state(0)), make_state(3))


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"width": 5}, r"params/a/kernel is of shape \(2, 3\) there, of shape \(2, 5\) here"),
        ({"names": ("a", "b", "c")}, r"params/c/kernel is missing there, of shape \(2, 3\) here"),
        ({"names": ("a",)}, r"params/b/kernel is of shape \(2, 3\) there, missing here"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_with_the_first_difference(saved, like, message):
    with (
        checkpoint.open_checkpoints(saved) as checkpoints,
        pytest.raises(
            UserError, match=f"checkpoint 3 in .* belongs to another network: .*{message}"
        ),
    ):
        checkpoint.restore(checkpoints, make_state(0, **like))


def test_a_folder_without_checkpoint_is_refused(tmp_path):
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        assert checkpoint.find_latest_step(checkpoints) is None
        with pytest.raises(UserError, match="there is no checkpoint in"):
            checkpoint.restore(checkpoints, make_state(0))


def test_a_state_from_eight_devices_is_restored_on_one(tmp_path):
    def make_step(axis_name):
        return lambda state, pixels, key: (state.replace(step=state.step + 1), {})

    pixels = np.zeros((8, 1, 1, 1), np.uint8)
    state, _ = parallelize(make_step, "pmap")(make_state(6), pixels, jax.random.key(0))
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, state, ABOUT)
        found = checkpoint.restore(checkpoints, make_state(0))
    assert_same_bits(found, make_state(6).replace(step=jnp.array(7, jnp.int32)))
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(found)} == {1}


def test_the_checkpoint_with_the_lowest_loss_stays_beside_the_newest(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 5.0, 5: 4.0}
    with checkpoint.open_checkpoints(tmp_path, keep=2, keep_best=True) as checkpoints:
        for step, loss in losses.items():
            checkpoint.save(checkpoints, make_state(step), ABOUT, loss=loss)
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        assert checkpoint.list_steps(checkpoints) == [2, 4, 5]
        assert checkpoint.find_best_step(checkpoints) == 2
        assert checkpoint.find_latest_step(checkpoints) == 5
        assert_same_bits(checkpoint.restore(checkpoints, make_state(0), step=2), make_state(2))


def test_without_losses_there_is_no_best(saved):
    with checkpoint.open_checkpoints(saved) as checkpoints:
        assert checkpoint.find_best_step(checkpoints) is None


def test_a_checkpoint_holds_no_field_that_is_not_in_use(saved):
    """So checkpoints from before the state had these fields can still be restored."""
    with checkpoint.open_checkpoints(saved) as checkpoints:
        leaves = checkpoint.describe(checkpoints, 3)["leaves"]
    found = {name.split("/")[0] for name in leaves}
    assert found == {"step", "params", "ema_params", "opt_state", "skipped"}


def test_all_averages_are_restored(tmp_path):
    params = make_state(0).params
    state = create_state(params, make_optimizer(0.1), num_more_ema=2, num_posthoc_ema=1)
    leaves, structure = jax.tree.flatten(state)
    state = jax.tree.unflatten(structure, [leaf + i for i, leaf in enumerate(leaves)])
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, state, ABOUT)
        assert_same_bits(checkpoint.restore(checkpoints, jax.eval_shape(lambda: state)), state)
        with pytest.raises(UserError, match=r"more_ema/0/a/kernel is of shape .* there, missing"):
            checkpoint.restore(checkpoints, make_state(0))


def test_only_the_parameters_are_restored_whatever_the_optimiser_was(saved):
    with checkpoint.open_checkpoints(saved) as checkpoints:
        found = checkpoint.restore_params(checkpoints, make_state(0).params, step=2)
        assert_same_bits(found, make_state(2).params)
        with pytest.raises(UserError, match=r"another network: params/a/kernel is of shape"):
            checkpoint.restore_params(checkpoints, make_state(0, width=5).params, step=2)


def wait_quietly(checkpoints):
    """Wait until writing ends, and leave any error to be reported later."""
    with suppress(Exception):
        checkpoints.pending.response.result()


@pytest.mark.parametrize("reported_by", ["wait", "save", "leaving"])
def test_a_save_that_fails_is_reported_and_leaves_the_earlier_one(tmp_path, reported_by):
    message = r"of step 2 could not be written .*\(File too large\); the one of step 1 is intact"
    with pytest.raises(UserError, match=message), checkpoint.open_checkpoints(tmp_path) as saved:
        checkpoint.save(saved, make_state(1), ABOUT)
        checkpoint.wait(saved)
        with limit_file_size(200):
            checkpoint.save(saved, make_state(2), ABOUT)
            wait_quietly(saved)
        if reported_by == "save":
            checkpoint.save(saved, make_state(3), ABOUT)
        if reported_by == "wait":
            checkpoint.wait(saved)
    with checkpoint.open_checkpoints(tmp_path) as saved:
        assert_same_bits(checkpoint.restore(saved, make_state(0)), make_state(1))
        assert checkpoint.list_steps(saved) == [1]
        checkpoint.save(saved, make_state(2), ABOUT)  # there is space again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_an_old_checkpoint_that_cannot_be_removed_is_named_and_the_new_one_stays(
    tmp_path, monkeypatch
):
    def refuse(path):
        raise OSError(30, "Read-only file system", path)

    message = (
        r"old checkpoint .*1 could not be removed \(Read-only .*\); the one of step 2 is intact"
    )
    with (
        pytest.raises(UserError, match=message),
        checkpoint.open_checkpoints(tmp_path, keep=1) as saved,
    ):
        checkpoint.save(saved, make_state(1), ABOUT)
        checkpoint.wait(saved)
        monkeypatch.setattr(checkpoint.shutil, "rmtree", refuse)
        checkpoint.save(saved, make_state(2), ABOUT)
    monkeypatch.undo()
    with checkpoint.open_checkpoints(tmp_path, keep=1) as saved:
        assert_same_bits(checkpoint.restore(saved, make_state(0)), make_state(2))
        checkpoint.save(saved, make_state(3), ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    message = r"the checkpoint of step 1 could not be written to .*file/here \(Not a directory\)"
    with (
        checkpoint.open_checkpoints(tmp_path / "file" / "here") as checkpoints,
        pytest.raises(UserError, match=message),
    ):
        checkpoint.save(checkpoints, make_state(1), ABOUT)


def test_a_failed_save_does_not_hide_an_earlier_error(tmp_path, capsys):
    with pytest.raises(KeyError, match="first"), checkpoint.open_checkpoints(tmp_path) as saved:
        with limit_file_size(200):
            checkpoint.save(saved, make_state(2), ABOUT)
            wait_quietly(saved)
        raise KeyError("first")
    assert "checkpoint of step 2 could not be written" in capsys.readouterr().err


def test_the_state_may_be_donated_as_soon_as_saving_returns(tmp_path):
    """Many large leaves, each overwritten in place while it is being written."""
    step = jax.jit(lambda state: jax.tree.map(lambda a: a + 1, state), donate_argnums=0)
    size = (64, 1024)
    state = make_state(0).replace(params={f"{i}": jnp.full(size, float(i)) for i in range(20)})
    with checkpoint.open_checkpoints(tmp_path, keep=1) as checkpoints:
        for _ in range(4):
            checkpoint.save(checkpoints, state, ABOUT)
            for _ in range(3):
                state = step(state)
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        found = checkpoint.restore(checkpoints, state)
    assert int(found.step) == 9
    for i in range(20):
        np.testing.assert_array_equal(found.params[f"{i}"], np.full(size, i + 9.0))


def test_reading_a_folder_changes_nothing_in_it(tmp_path):
    with checkpoint.open_checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoint.find_latest_step(checkpoints) is None
    assert not (tmp_path / "none").exists()


def test_leftovers_of_killed_processes_are_ignored_and_removed_by_the_next_save(tmp_path):
    for name in ("5.orbax-checkpoint-tmp", "4.removed"):
        (tmp_path / name / "state").mkdir(parents=True)
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        assert checkpoint.find_latest_step(checkpoints) is None
        checkpoint.save(checkpoints, make_state(5), ABOUT)
        checkpoint.wait(checkpoints)
        assert [path.name for path in tmp_path.iterdir()] == ["5"]
        assert_same_bits(checkpoint.restore(checkpoints, make_state(0)), make_state(5))


def test_checkpoints_of_multiples_of_keep_every_stay_for_ever(tmp_path):
    with checkpoint.open_checkpoints(tmp_path, keep=1, keep_every=4) as checkpoints:
        for step in range(2, 11, 2):
            checkpoint.save(checkpoints, make_state(step), ABOUT)
    assert checkpoint.list_steps(checkpoints) == [4, 8, 10]


def test_files_that_threads_write_after_a_failure_are_removed(tmp_path, monkeypatch):
    """TensorStore reports the first thread that fails at once, while the others go on."""
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) < 4:
            (unfinished / "state").mkdir(parents=True)

    monkeypatch.setattr(checkpoint.time, "sleep", sleep)
    checkpoints = checkpoint.Checkpoints(tmp_path, checkpoint.Keep())
    sleep(0)
    checkpoint._failed(checkpoints, 2, OSError(28, "No space left on device"))
    assert len(waits) == 4
    assert not unfinished.exists()
