"""Damaged checkpoints, and checkpoints of older and newer versions."""

import json
import resource
import shutil
import zipfile
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.runs import checkpoint, stored
from jax_ddpm.runs.checksums import seal
from tests.shared.damage import copy_and_damage, list_damages
from tests.shared.saved_states import ABOUT, assert_same_bits, make_state

OLD = Path(__file__).with_name("format_2_checkpoints.zip")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with the checkpoints 2 and 3."""
    folder = tmp_path_factory.mktemp("two")
    with checkpoint.open_checkpoints(folder) as checkpoints:
        for step in (2, 3):
            checkpoint.save(checkpoints, make_state(step), ABOUT)
    return folder


@pytest.fixture
def copy(two, tmp_path):
    return shutil.copytree(two, tmp_path / "copy")


def restore_newest(folder):
    with checkpoint.open_checkpoints(folder) as checkpoints:
        return checkpoint.restore(checkpoints, make_state(0))


def check_every_damage(two, folder, every, capsys, flips):
    """Check that every restored state equals a saved one, to the bit, and damage is reported."""
    found = {2: 0, 3: 0}
    shutil.copytree(two / "2", folder / "2")
    for damage in list(list_damages(two / "3", flips))[::every]:
        copy_and_damage(two / "3", folder / "3", damage)
        state = restore_newest(folder)
        step = int(state.step)
        assert_same_bits(state, make_state(step))
        found[step] += 1
        printed = capsys.readouterr().err
        assert ("3 is damaged (" in printed) == (step == 2), damage
        assert printed.count("\n") == (2 if step == 2 else 0), printed
    return found


def test_a_damaged_file_never_gives_a_wrong_state(two, tmp_path, capsys):
    found = check_every_damage(two, tmp_path, 5, capsys, flips=40)
    assert min(found.values()) > 3


@pytest.mark.guard
@pytest.mark.slow
def test_none_of_many_damages_gives_a_wrong_state(two, tmp_path, capsys):
    found = check_every_damage(two, tmp_path, 1, capsys, flips=100)
    assert min(found.values()) > 30


@contextmanager
def forbid_open_files():
    """Keep this process from opening another file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_checkpoint_that_cannot_be_read_at_the_moment_is_not_skipped(copy, capsys):
    message = r"checkpoint .*3 cannot be read \(Too many open files\): make it readable"
    with checkpoint.open_checkpoints(copy) as checkpoints:

        def read(step):
            with forbid_open_files():
                return stored.read(copy / str(step), make_state(0))

        with pytest.raises(UserError, match=message):
            checkpoint.read_newest(checkpoints, read)
    assert_same_bits(restore_newest(copy), make_state(3))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            ValueError(
                'PERMISSION_DENIED: Error opening "zarr3" driver: Error reading "d": Failed to '
                "open: [OS error 13: EACCES Permission denied]"
            ),
            UserError,
            r"cannot be read \(Permission denied\)",
        ),
        (ValueError("NOT_FOUND: no zarr.json"), stored.Damaged, r"is damaged \(NOT_FOUND"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), jax.errors.JaxRuntimeError, "EXHAUST"),
    ],
)
def test_only_some_errors_of_reading_count_as_damage(two, monkeypatch, error, kind, message):
    monkeypatch.setattr(stored.ocp, "load", Mock(side_effect=error))
    with pytest.raises(kind, match=message) as found:
        stored.read(two / "3", make_state(0))
    assert found.type is kind


def test_flipped_bits_of_arrays_are_found_by_the_checksums_alone(tmp_path, capsys):
    """Orbax returns garbage for most of these without an error."""
    numbers = jax.random.bits(jax.random.key(0), (2000,), jnp.uint32)  # which zstd cannot compress
    state = make_state(3).replace(params={"a": numbers}, ema_params={"a": numbers})
    with checkpoint.open_checkpoints(tmp_path / "one") as checkpoints:
        checkpoint.save(checkpoints, state, ABOUT)
    folder = tmp_path / "one" / "3"
    data = max((path for path in folder.rglob("*") if path.is_file()), key=get_size)
    kept = data.read_bytes()
    for place in range(1000, len(kept) - 1000, len(kept) // 7):
        data.write_bytes(kept[:place] + bytes([kept[place] ^ 4]) + kept[place + 1 :])
        with (
            checkpoint.open_checkpoints(tmp_path / "one") as checkpoints,
            pytest.raises(UserError, match=r"the checksum of \w+/a is wrong"),
        ):
            checkpoint.restore(checkpoints, state)


def get_size(path):
    return path.stat().st_size


def test_if_no_checkpoint_is_intact_one_sentence_says_so(copy):
    for step in (2, 3):
        (copy / str(step) / "_CHECKPOINT_METADATA").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"no checkpoint in .* is intact \(step 3: .*; step 2: .*\)"
    ):
        restore_newest(copy)


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_saved_again(copy, capsys):
    shutil.rmtree(copy / "3" / "state" / "d")
    with checkpoint.open_checkpoints(copy, keep=2) as checkpoints:
        assert int(checkpoint.restore(checkpoints, make_state(0)).step) == 2
        assert checkpoint.find_latest_step(checkpoints) == 2
        assert (copy / "3").is_dir()  # nothing is removed before it is saved again
        checkpoint.save(checkpoints, make_state(3), ABOUT)
    assert sorted(path.name for path in copy.iterdir()) == ["2", "3"]
    capsys.readouterr()
    assert_same_bits(restore_newest(copy), make_state(3))
    assert capsys.readouterr().err == ""


def test_a_damaged_checkpoint_of_a_given_step_is_an_error(copy):
    shutil.rmtree(copy / "3" / "state" / "d")
    with (
        checkpoint.open_checkpoints(copy) as checkpoints,
        pytest.raises(UserError, match=r"the checkpoint .*3 is damaged \("),
    ):
        checkpoint.restore(checkpoints, make_state(0), step=3)


def test_a_checkpoint_that_is_removed_while_it_is_read_is_skipped(copy, capsys, monkeypatch):
    read = stored.read

    def remove_meanwhile(path, like):
        if path.name == "3":
            shutil.rmtree(path)
            with checkpoint.open_checkpoints(copy) as other:
                checkpoint.save(other, make_state(4), ABOUT)
        return read(path, like)

    monkeypatch.setattr(stored, "read", remove_meanwhile)
    assert_same_bits(restore_newest(copy), make_state(4))
    assert capsys.readouterr().err == ""


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path):
    with (
        checkpoint.open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(
            UserError, match=r"4 has format 99, but this version reads .* a newer version"
        ),
    ):
        checkpoint.save(checkpoints, make_state(4), {"format": 99})
        checkpoint.restore(checkpoints, make_state(0))


def test_a_checkpoint_of_this_version_without_checksums_is_damaged(copy):
    path = copy / "3" / "_CHECKPOINT_METADATA"
    document = json.loads(path.read_text())
    document["custom_metadata"] = {"format": 3}
    path.write_text(json.dumps(document))
    assert int(restore_newest(copy).step) == 2


def test_a_checkpoint_of_an_older_version_is_restored_and_new_fields_are_zero(tmp_path):
    zipfile.ZipFile(OLD).extractall(tmp_path)
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        assert_same_bits(checkpoint.restore(checkpoints, make_state(0)), make_state(3))
        shapes = jax.eval_shape(lambda: make_state(0))
        assert_same_bits(checkpoint.restore(checkpoints, shapes), make_state(3))
        assert checkpoint.find_best_step(checkpoints) == 2
        with pytest.raises(UserError, match=r"to another network: .*/c/kernel is missing there"):
            checkpoint.restore(checkpoints, make_state(0, names=("a", "b", "c")))


def test_only_newer_fields_may_be_missing(copy):
    with checkpoint.open_checkpoints(copy) as checkpoints:
        like = make_state(0)
        with pytest.raises(UserError, match=r"more_ema/0/a/kernel is missing there"):
            checkpoint.restore(checkpoints, like.replace(more_ema=(like.params,)))


def test_leaves_of_every_kind_are_restored(tmp_path):
    params = {
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(1), 3),
        "flag": jnp.array([True, False]),
        "half": jnp.arange(5, dtype=jnp.bfloat16),
        "double": jnp.arange(5, dtype=jnp.float64) / 3,
        "long": jnp.array(2**40 + 1),
        "empty": jnp.zeros((0, 3)),
    }
    state = make_state(1).replace(params=params)
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, state, ABOUT)
        found = checkpoint.restore(checkpoints, state)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for name, leaf in params.items():
        back = found.params[name]
        if name.startswith("key"):
            back, leaf = jax.random.key_data(back), jax.random.key_data(leaf)
        assert back.dtype == leaf.dtype
        assert back.shape == leaf.shape
        assert bool((back == leaf).all())


@pytest.mark.parametrize(
    "leaf", [[[None], "float32", [1]], ["3", "float32", [1]], [[3], "float32"], 3]
)
def test_a_sealed_description_of_something_else_is_damage(tmp_path, leaf):
    sealed = seal({"loss": None, "leaves": {"w": leaf}})
    (tmp_path / stored.DESCRIPTION).write_text(json.dumps({"custom_metadata": sealed}))
    with pytest.raises(stored.Damaged, match="does not describe a checkpoint"):
        stored.describe(tmp_path)


def test_a_checkpoint_has_the_seal_of_its_description(two):
    with checkpoint.open_checkpoints(two) as checkpoints:
        about = checkpoint.describe(checkpoints, 3)
    written = about.pop("seal")
    assert seal(about)["seal"] == written


@pytest.mark.parametrize("sealed", [True, False])
def test_the_step_inside_a_checkpoint_decides(copy, capsys, sealed):
    """Also in checkpoints of earlier versions, which did not write the step down."""
    if not sealed:
        for step in (2, 3):
            forget_step(copy / str(step) / stored.DESCRIPTION)
    shutil.copytree(copy / "2", copy / "9")
    assert_same_bits(restore_newest(copy), make_state(3))
    what = "step 2" if sealed else "another step"
    assert f"9 is damaged (it holds {what}, so it was copied or renamed)" in capsys.readouterr().err
    with checkpoint.open_checkpoints(copy) as checkpoints:
        assert not checkpoint.is_intact(checkpoints, 9)
        with pytest.raises(stored.Misnamed):
            checkpoint.restore(checkpoints, make_state(0), step=9)


def forget_step(path):
    document = json.loads(path.read_text())
    about = document["custom_metadata"]
    del about["step"], about["seal"]
    document["custom_metadata"] = seal(about)
    path.write_text(json.dumps(document))


def test_swapped_checkpoints_are_refused(copy):
    for old, new in (("2", "x"), ("3", "2"), ("x", "3")):
        (copy / old).rename(copy / new)
    with pytest.raises(UserError, match=r"step 3: it holds step 2.*; step 2: it holds step 3"):
        restore_newest(copy)


def test_a_renamed_checkpoint_of_the_second_format_is_refused(tmp_path):
    zipfile.ZipFile(OLD).extractall(tmp_path)
    (tmp_path / "3").rename(tmp_path / "7")
    with (
        checkpoint.open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(stored.Misnamed, match="it holds step 3"),
    ):
        checkpoint.restore(checkpoints, make_state(0), step=7)
