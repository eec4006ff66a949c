"""Files of a run that carry checksums: whatever is read of them, and differs, is noticed."""

import io
import json
from contextlib import redirect_stderr

import numpy as np
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from jax_ddpm import runs
from jax_ddpm.runs import metrics
from jax_ddpm.runs.checksums import is_whole, seal
from jax_ddpm.runs.log import (
    Log,
    count_lines,
    describe_loss,
    read_lines,
    read_rows,
    written_from_json,
)
from jax_ddpm.runs.recovery import warn_once
from jax_ddpm.runs.snapshots import checksum_arrays, read_snapshot
from tests.fuzz.test_run_files import PARAMS, RUN, TENSORS
from tests.shared.documents import documents, to_json
from tests.shared.mutations import corruptions, read_or_refuse, valid_or_damaged

VALID = seal(json.loads(to_json(runs.describe(RUN))))


def reseal(document):
    """Seal what somebody has changed, as a stranger can."""
    if not isinstance(document, dict):
        return document
    return seal({name: value for name, value in document.items() if name != "seal"})


@given(
    raw=st.one_of(
        corruptions(to_json(VALID)),
        documents(VALID).map(to_json),
        documents(VALID).map(reseal).map(to_json),
    )
)
def test_a_sealed_configuration_that_is_changed_is_refused(scratch, raw):
    folder = scratch / "sealed"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(raw)
    run = read_or_refuse(lambda: runs.load(folder))
    if run is not None:
        document = json.loads(raw)
        assert is_whole(document) or "seal" not in document
        assert runs.describe(run).keys() <= document.keys()
        if document == VALID:
            assert (run.config, run.images) == (RUN.config, RUN.images)


LINES = [
    metrics.encode_row(metrics.Row(step, 1 / step, 0.1 + step, 1e-3)) for step in (3, 6, 9, 12)
]
KNOWN = count_lines(LINES[:3])._asdict()


@given(raw=st.just(b"".join(LINES)).flatmap(corruptions), known=st.just(KNOWN) | documents(KNOWN))
def test_a_log_that_is_not_what_a_checkpoint_knows_is_noticed(scratch, raw, known):
    path = scratch / "metrics.jsonl"
    path.write_bytes(raw)
    written = written_from_json(known)
    if known == KNOWN:
        assert written is not None
    found = read_lines(path, 9)
    loss = describe_loss(path, found, 9, written)
    assert loss is None or loss.isprintable()
    if loss is None and known == KNOWN:
        assert list(found.lines) == LINES[:3]
    warn_once.cache_clear()
    with redirect_stderr(io.StringIO()) as printed:
        log = Log(path)
        log.resume(9, written)
    assert bool(printed.getvalue()) == (loss is not None)
    assert path.read_bytes() == b"".join(log.lines)
    path.with_name(f"{path.name}.damaged").unlink(missing_ok=True)
    assert [row.step for row in read_rows(path, scratch / "none")] == [
        metrics.parse_row(line).step for line in log.lines
    ]


ABOUT = {"sigma_rel": 0.05, "step": 5, "checksum": checksum_arrays(TENSORS)}
NAME = "sigma_rel_0.05_step_0000005.safetensors"


def make_snapshot(about):
    return safetensors.numpy.save(TENSORS, {"average": to_json(about).decode(errors="replace")})


@given(
    raw=st.one_of(
        corruptions(make_snapshot(ABOUT)),
        documents(ABOUT).map(make_snapshot),
        valid_or_damaged(documents(ABOUT).map(make_snapshot)),
    )
)
def test_a_snapshot_that_describes_itself_is_right_or_refused(scratch, raw):
    path = scratch / NAME
    path.write_bytes(raw)
    params = read_or_refuse(lambda: read_snapshot(path, PARAMS))
    if params is None:
        return
    about = json.loads((safetensors_metadata(path) or {}).get("average", "{}"))
    found = {"a/kernel": params["a"]["kernel"], "b": params["b"]}
    if isinstance(about, dict) and "checksum" in about:
        assert about["checksum"] == checksum_arrays(found)
    if isinstance(about, dict) and about:
        assert (about["step"], about["sigma_rel"]) == (5, 0.05)
    assert all(np.isfinite(array).all() for array in found.values())


def safetensors_metadata(path):
    with safetensors.safe_open(path, "numpy") as file:
        return file.metadata()
