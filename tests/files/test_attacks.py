"""Structural attacks on runs, weights and data: one sentence, or the right result."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from jax_ddpm import runs
from jax_ddpm.data.sources import open_source
from jax_ddpm.interop.files import write_weights
from jax_ddpm.interop.source import read_source
from jax_ddpm.runs import metrics, stored
from jax_ddpm.runs.checkpoint import open_checkpoints, read_newest
from tests.shared.attacks import KINDS, Attack, copy_and_attack, list_attacks, survive
from tests.shared.cifar10 import list_files
from tests.shared.prepared import NAME, encode_picture, write_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and /dev/zero")
NOISE = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)


class Subject(NamedTuple):
    """What is attacked: how it is made, how it is read, and which results are right."""

    make: Callable[[Path], object]
    read: Callable[[Path], Any]
    is_right: Callable[[Any, Any], bool]
    """(what was found, what the folder holds before the attack)"""


def read_run(folder: Path) -> Any:
    """The step of the newest intact checkpoint, and the rows of metrics."""
    run = runs.load(folder)
    with open_checkpoints(run.checkpoints) as checkpoints:

        def verify(step: int) -> int:
            stored.verify(run.checkpoints / str(step))
            return step

        return read_newest(checkpoints, verify), metrics.read(run.metrics), run.config


def is_right_run(found: Any, before: Any) -> bool:
    """An older checkpoint may be used; a cut log ends earlier."""
    step, rows, config = found
    return step in (6, 12) and rows == before[1][: len(rows)] and config == before[2]


def make_shards(folder: Path) -> None:
    places = {}
    for i, name in enumerate(("a", "b")):
        file = f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        write_weights(folder / file, {name: np.full(100, i, np.float32)})
        places[name] = file
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"sample_size": 8}))


def write_one(suffix: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_weights(folder / f"model{suffix}", {"a": np.arange(100, dtype=np.float32)})
        (folder / "model.json").write_text(json.dumps({"dim": 8}))

    return make


def read_all(folder: Path) -> Any:
    source = read_source(folder)
    return {name: array.tolist() for name, array in source.tensors.items()}, source.arguments


def is_right_weights(found: Any, before: Any) -> bool:
    """The tensors are right; nothing says which arguments belong to them."""
    return found[0] == before[0]


def make_pictures(folder: Path) -> None:
    for i in range(4):
        (folder / str(i % 2)).mkdir(exist_ok=True)
        Image.fromarray(NOISE[i]).save(folder / str(i % 2) / f"{i}.{'png' if i < 2 else 'bmp'}")


def write_cifar10(folder: Path) -> None:
    for name, data in list_files("binary").items():
        (folder / Path(name).name).write_bytes(data)


def write_parquet(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    encoded = [encode_picture(image) for image in NOISE]
    parquet.write_table(pyarrow.table({"image": encoded}), folder / "a.parquet")
    parquet.write_table(pyarrow.table({"image": encoded}), folder / "b.parquet")


def read_images(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        images = open_source(name, folder, image_size=8, channels=3).images
        return [np.asarray(images[i]).tobytes() for i in range(len(images))]

    return read


def is_part(found: Any, before: Any) -> bool:
    """A folder of pictures may have fewer than before, or the same one twice; none is new."""
    return len(found) > 0 and set(found) <= set(before)


def is_as_long(found: Any, before: Any) -> bool:
    """A batch of CIFAR-10 may stand for another one."""
    return len(found) == len(before)


def is_same(found: Any, before: Any) -> bool:
    return found == before


SUBJECTS = {
    "safetensors": Subject(write_one(".safetensors"), read_all, is_right_weights),
    "npz": Subject(write_one(".npz"), read_all, is_right_weights),
    "shards": Subject(make_shards, read_all, is_right_weights),
    "pictures": Subject(make_pictures, read_images("folder"), is_part),
    "cifar10": Subject(write_cifar10, read_images("cifar10"), is_as_long),
    "parquet": Subject(write_parquet, read_images("parquet"), is_part),
    "prepared": Subject(write_folder, read_images(NAME), is_same),
}


def attack(subject: Subject, folder: Path, tmp_path: Path, attacks: list[Attack]) -> Counter[str]:
    """Make every one of the attacks; count the results."""
    before = subject.read(folder)
    assert subject.is_right(before, before)
    results: Counter[str] = Counter()
    for each in attacks:
        copy = copy_and_attack(folder, tmp_path / "copy", each)
        found = survive(partial(subject.read, copy), each)
        assert found is None or subject.is_right(found, before), each
        results["refused" if found is None else "right"] += 1
    return results


@pytest.fixture
def make(tmp_path):
    def make(subject: Subject) -> Path:
        folder = tmp_path / "whole"
        folder.mkdir()
        subject.make(folder)
        return folder

    return make


@pytest.mark.parametrize("name", ["safetensors", "shards", "pictures", "prepared"])
def test_some_attacks_are_survived(tmp_path, make, name):
    """One file of each kind of folder; the slow tests attack every file."""
    subject = SUBJECTS[name]
    folder = make(subject)
    first = next(list_attacks(folder)).name
    results = attack(subject, folder, tmp_path, [Attack(first, kind) for kind in KINDS])
    assert results["refused"] >= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_every_attack_on_weights_and_data_is_survived(tmp_path, make, name):
    subject = SUBJECTS[name]
    folder = make(subject)
    results = attack(subject, folder, tmp_path, list(list_attacks(folder)))
    print(f"{name}: {dict(results)}")
    assert results["refused"] > 0


RUN = Subject(Path.mkdir, read_run, is_right_run)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_pipe_in_a_run_is_not_waited_for(tmp_path, trained_run, name):
    attack(RUN, trained_run, tmp_path, [Attack(name, "pipe")])


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("metrics.jsonl", "device"),
        ("checkpoints/12/_CHECKPOINT_METADATA", "device"),
        ("checkpoints/12/state/_METADATA", "link"),
        ("checkpoints/12/state/manifest.ocdbt", "huge"),
    ],
)
def test_some_attacks_on_a_run_are_survived(tmp_path, trained_run, name, kind):
    attack(RUN, trained_run, tmp_path, [Attack(name, kind)])


@pytest.mark.slow
def test_every_attack_on_a_run_is_survived(tmp_path, trained_run):
    results = attack(RUN, trained_run, tmp_path, list(list_attacks(trained_run)))
    print(f"run: {dict(results)}")
    assert results["refused"] > 0 and results["right"] > 0
