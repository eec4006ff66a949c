"""Untrusted run folders: config.json, metrics.jsonl, snapshots and checkpoints."""

import json
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_ddpm import runs
from jax_ddpm.config.run import Config
from jax_ddpm.data.identity import Identity
from jax_ddpm.data.summary import DataSummary
from jax_ddpm.jobs.build import build
from jax_ddpm.models.unet import UNetConfig
from jax_ddpm.runs import checkpoint, metrics
from jax_ddpm.runs.checksums import seal
from jax_ddpm.runs.log import Log
from jax_ddpm.runs.snapshots import list_snapshots, read_snapshot, reconstruct_average
from jax_ddpm.training.state import create_state
from tests.shared.documents import documents, to_json
from tests.shared.mutations import (
    EXAMPLES,
    corruptions,
    read_or_refuse,
    valid_or_damaged,
)

CONFIG = Config(
    model=UNetConfig(channels=4, channel_mult=(1,), num_res_blocks=1, attn_levels=(), num_groups=2)
)
SUMMARY = DataSummary(2, (8, 8, 1), 0, 255, 2, ("cat", "dog"), (1, 1), ((".txt", 3),))
RUN = runs.Run(CONFIG.folder, CONFIG, (8, 8, 1), images=Identity(SUMMARY, 1, 2, 2))


def config_files():
    valid = runs.describe(RUN)
    deep = st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b'"' + b"x" * 10**6, b"1" * 100_000])
    return st.one_of(
        documents(valid).map(to_json),
        documents(valid).map(to_json),
        deep,
        valid_or_damaged(st.just(to_json(valid))),
    )


@given(raw=config_files())
def test_configurations_are_read_or_refused(scratch, raw):
    (scratch / "run").mkdir(exist_ok=True)
    (scratch / "run" / "config.json").write_bytes(raw)
    run = read_or_refuse(lambda: runs.load(scratch / "run"))
    if run is not None:
        assert run.folder == scratch / "run"
        assert runs.from_dict(json.loads(json.dumps(runs.to_dict(run.config)))) == run.config
        outside = [path for path in scratch.iterdir() if path.name != "run"]
        assert outside == []


@settings(max_examples=EXAMPLES // 20 or 3)
@given(data=st.data())
def test_a_configuration_that_is_read_is_built_or_refused(scratch, data):
    (scratch / "run").mkdir(exist_ok=True)
    document = data.draw(documents(runs.describe(RUN)))
    (scratch / "run" / "config.json").write_bytes(to_json(document))
    run = read_or_refuse(lambda: runs.load(scratch / "run"))
    if run is not None:
        read_or_refuse(lambda: build(run.config, run.image_shape))


ROW = {"step": 3, "loss": 0.5, "grad_norm": 1.5, "learning_rate": 1e-3, "skipped": 0}


@st.composite
def logs(draw):
    lines = draw(st.lists(documents(ROW, 1).map(to_json), max_size=4))
    return b"\n".join(lines) + draw(st.sampled_from([b"", b"\n"]))


@given(raw=valid_or_damaged(logs()))
def test_metrics_are_read_or_refused(scratch, raw):
    path = scratch / "metrics.jsonl"
    path.write_bytes(raw)
    rows = read_or_refuse(lambda: metrics.read(path))
    if rows is not None:
        Log(path).resume(2**70, None)
        np.testing.assert_equal(
            [tuple(row) for row in metrics.read(path)], [tuple(row) for row in rows]
        )


PARAMS = {
    "a": {"kernel": jnp.arange(6.0, dtype=jnp.float32).reshape(2, 3)},
    "b": jnp.ones(4, jnp.float32),
}
TENSORS = {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}
SNAPSHOT = safetensors.numpy.save(TENSORS)


@st.composite
def snapshots(draw):
    """A valid snapshot, or one with another header for its 40 bytes."""
    kernel = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    header = {"a/kernel": kernel, "b": {"dtype": "F32", "shape": [4], "data_offsets": [24, 40]}}
    text = to_json(draw(documents(header)))
    return draw(st.sampled_from([SNAPSHOT, struct.pack("<Q", len(text)) + text + SNAPSHOT[-40:]]))


@given(raw=valid_or_damaged(snapshots()))
def test_snapshots_are_read_or_refused(scratch, raw):
    path = scratch / "snapshot.safetensors"
    path.write_bytes(raw)
    params = read_or_refuse(lambda: read_snapshot(path, PARAMS))
    if params is not None:
        assert jax.tree.structure(params) == jax.tree.structure(PARAMS)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


WIDTHS = st.sampled_from(["0.05", "0.1", "0.2", ".", "1e999", "1e-200", "0.1.1", "0.10", "-1", "5"])
STEPS = st.sampled_from(["0", "1", "0000005", "9" * 100, "2147483648", "-5", "100"])


@settings(max_examples=EXAMPLES // 10 or 5)
@given(
    names=st.lists(st.tuples(WIDTHS, STEPS), max_size=4),
    width=st.sampled_from([0.1, 0.15, 0.3, 1e-9, -1.0]),
)
def test_names_of_snapshots_are_read_or_refused(scratch, names, width):
    folder = scratch / "ema"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for sigma_rel, step in names:
        (folder / f"sigma_rel_{sigma_rel}_step_{step}.safetensors").write_bytes(SNAPSHOT)
    found = read_or_refuse(lambda: list_snapshots(folder))
    if found:
        read_or_refuse(lambda: reconstruct_average(folder, PARAMS, width))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints of a tiny state."""
    folder = tmp_path_factory.mktemp("saved")
    state = create_state(PARAMS, optax.sgd(0.1))
    with checkpoint.open_checkpoints(folder) as checkpoints:
        for step in (1, 2):
            stepped = state.replace(step=jnp.asarray(step, jnp.int32))
            checkpoint.save(checkpoints, stepped, {"format": 3}, loss=0.5)
    return folder, state


@pytest.mark.filterwarnings("ignore")  # Orbax leaves coroutines behind if a file is damaged
@settings(max_examples=EXAMPLES // 20 or 5)
@given(data=st.data())
def test_checkpoints_are_restored_or_refused(scratch, saved, data):
    folder, like = saved
    there = scratch / "checkpoints"
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(folder, there)
    files = sorted(path.relative_to(there) for path in (there / "2").rglob("*") if path.is_file())
    path = there / data.draw(st.sampled_from(files))
    if data.draw(st.booleans()) and b'"custom_metadata"' in path.read_bytes():
        document = data.draw(documents(json.loads(path.read_bytes())))
        if isinstance(document, dict) and isinstance(document.get("custom_metadata"), dict):
            about = {n: v for n, v in document["custom_metadata"].items() if n != "seal"}
            document["custom_metadata"] = seal(about)
        path.write_bytes(to_json(document))
    else:
        path.write_bytes(data.draw(corruptions(path.read_bytes())))

    def read():
        with checkpoint.open_checkpoints(there) as checkpoints:
            checkpoint.find_best_step(checkpoints)
            return checkpoint.restore(checkpoints, like)

    found = read_or_refuse(read)
    if found is not None:
        assert int(found.step) in (1, 2)
        jax.tree.map(np.testing.assert_array_equal, found.params, PARAMS)
