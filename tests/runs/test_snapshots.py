import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.optim.averages import make_posthoc_ema
from jax_ddpm.runs.snapshots import (
    list_snapshots,
    read_snapshot,
    reconstruct_average,
    select_snapshots,
    write_snapshots,
)

PAIR = (0.05, 0.1)
LIKE = {"a": {"kernel": np.zeros((2, 3), np.float32)}, "b": np.zeros(4, np.float32)}


def draw_parameters(step):
    numbers = np.random.default_rng(step)
    return {"a": {"kernel": numbers.normal(step, 1, (2, 3))}, "b": numbers.normal(step, 1, 4)}


def follow(sigma_rel, num_steps):
    """The averages after each step, in float64."""
    ema, average, averages = make_posthoc_ema(sigma_rel), draw_parameters(0), []
    for step in range(num_steps):
        average = ema(average, draw_parameters(step), jnp.array(step))
        averages.append(average)
    return averages


@pytest.fixture(scope="module")
def followed():
    return {sigma_rel: follow(sigma_rel, 40) for sigma_rel in (*PAIR, 0.08)}


@pytest.fixture(scope="module")
def stored(followed, tmp_path_factory):
    """A folder with snapshots of the pair every fourth step."""
    folder = tmp_path_factory.mktemp("run") / "ema"
    for step in range(4, 41, 4):
        write_snapshots(folder, PAIR, [followed[width][step - 1] for width in PAIR], step)
    return folder


def test_there_is_one_file_for_each_width_and_step(stored):
    found = list_snapshots(stored)
    assert [(s.step, s.sigma_rel) for s in found] == [(n, w) for n in range(4, 41, 4) for w in PAIR]
    assert found[0].path.name == "sigma_rel_0.05_step_0000004.safetensors"
    assert {path.name for path in stored.iterdir()} == {s.path.name for s in found}


def test_a_snapshot_is_read_bit_by_bit_and_describes_itself(stored, followed):
    import safetensors

    path = list_snapshots(stored)[3].path
    found = read_snapshot(path, LIKE)
    np.testing.assert_array_equal(found["a"]["kernel"], followed[0.1][7]["a"]["kernel"])
    np.testing.assert_array_equal(found["b"], followed[0.1][7]["b"])
    with safetensors.safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["average"])
    assert (about["sigma_rel"], about["step"]) == (0.1, 8)


def test_a_snapshot_that_is_written_again_is_the_same_file(stored, followed, tmp_path):
    write_snapshots(tmp_path, PAIR, [followed[width][7] for width in PAIR], 8)
    for snapshot in list_snapshots(tmp_path):
        assert snapshot.path.read_bytes() == (stored / snapshot.path.name).read_bytes()


@pytest.mark.parametrize(("step", "last"), [(None, 40), (40, 40), (37, 40), (36, 36), (1, 4)])
def test_snapshots_later_than_needed_are_left_out(stored, step, last):
    used, at = select_snapshots(stored, step)
    assert at == (step or 40)
    assert [s.step for s in used] == [n for n in range(4, last + 1, 4) for _ in PAIR]


def test_a_stored_average_is_reconstructed_exactly_and_another_closely(stored, followed):
    for sigma_rel, tolerance in ((0.05, 4e-6), (0.08, 0.03)):
        found = reconstruct_average(stored, LIKE, sigma_rel)
        expected = followed[sigma_rel][39]
        assert (found.step, found.num_snapshots) == (40, 20)
        assert found.params["b"].dtype == np.float32
        # Measured: 1.4e-6, the rounding of numbers near 40 to float32, and 0.008. The
        # averages of the pair are at least 2.1 apart.
        off = np.abs(found.params["a"]["kernel"] - expected["a"]["kernel"]).max()
        assert off < tolerance
    assert 0 < found.error < 0.02


@pytest.mark.parametrize(
    ("sigma_rel", "step", "message"),
    [
        (0.08, 41, "step 41 must be between 1 and 40"),
        (0.08, 0, "step 0 must be"),
        (0.3, None, "a relative width is between 0 and 0.2887, got 0.3"),
        (-1.0, None, "a relative width"),
    ],
)
def test_an_impossible_average_is_refused(stored, sigma_rel, step, message):
    with pytest.raises(UserError, match=message):
        reconstruct_average(stored, LIKE, sigma_rel, step)


def test_a_folder_without_snapshots_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"has no snapshots: train with --train.posthoc-ema"):
            reconstruct_average(folder, LIKE, 0.08)


@pytest.mark.parametrize(
    "like",
    [{"b": np.zeros(4)}, {"a": {"kernel": np.zeros((2, 4))}, "b": np.zeros(4)}, LIKE | {"c": 0}],
)
def test_a_snapshot_of_another_network_is_refused(stored, like):
    with pytest.raises(UserError, match=r"is a snapshot of another network: \S+ differs"):
        read_snapshot(list_snapshots(stored)[0].path, like)


def test_a_damaged_snapshot_is_refused(stored, tmp_path):
    whole = list_snapshots(stored)[0].path
    cut = tmp_path / whole.name
    cut.write_bytes(whole.read_bytes()[:-5])
    with pytest.raises(UserError, match="is not a complete snapshot"):
        read_snapshot(cut, LIKE)


def test_a_flipped_bit_of_a_snapshot_is_found(stored, tmp_path):
    whole = list_snapshots(stored)[0].path
    data = bytearray(whole.read_bytes())
    data[-8] ^= 1  # the number stays finite
    (tmp_path / whole.name).write_bytes(data)
    with pytest.raises(UserError, match="is damaged: its checksum is wrong"):
        read_snapshot(tmp_path / whole.name, LIKE)


def test_a_copied_snapshot_under_another_name_is_refused(stored, tmp_path):
    one = list_snapshots(stored)[0].path
    for name in ("sigma_rel_0.05_step_0000120", "sigma_rel_0.1_step_0000004"):
        copy = tmp_path / f"{name}.safetensors"
        shutil.copy(one, copy)
        with pytest.raises(UserError, match=r"width 0\.05 at step 4, so it was copied or renamed"):
            read_snapshot(copy, LIKE)


@pytest.mark.parametrize("width", ["1e999", "1e-200", ".", "0.1.1", "0.5"])
def test_a_name_with_an_impossible_width_is_refused(tmp_path, width):
    (tmp_path / f"sigma_rel_{width}_step_0000003.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="its name must give a step and a relative width"):
        list_snapshots(tmp_path)


def test_the_same_snapshot_twice_is_refused(tmp_path):
    for width in ("0.1", "0.10"):
        (tmp_path / f"sigma_rel_{width}_step_0000003.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="are the same snapshot: remove one"):
        list_snapshots(tmp_path)
