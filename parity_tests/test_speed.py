"""The benchmarks measure what they claim to; these tests do not measure speed."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.jobs.bench import networks, page, start, step, suite, timing
from jax_ddpm.jobs.bench.data import DataArgs, bench_data
from jax_ddpm.jobs.bench.devices import DevicesArgs, bench_devices
from jax_ddpm.jobs.bench.growth import GrowthArgs, bench_growth, fit_line
from jax_ddpm.jobs.bench.memory import MemoryArgs, bench_memory
from jax_ddpm.jobs.bench.step import SamplingArgs, StepArgs, bench_sampling, bench_step


def test_a_table_has_medians_and_the_ratio_of_each_round():
    times = {"ours": [1.0, 2.0, 4.0], "theirs": [2.0, 8.0, 8.0]}
    ours, theirs = timing.make_rows(times, work=8, unit="images", rival="theirs")
    rates = {"images/s": 4.0, "lowest": 2.0, "highest": 8.0}
    assert ours == {"contestant": "ours", **rates, "times theirs": 2.0}
    assert theirs["times theirs"] == 1


def test_contestants_take_turns_after_their_warm_up(capsys):
    calls = []
    contestants = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = timing.time_in_turn(contestants, rounds=2, warmup=1)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2}
    assert "a: warm after" in capsys.readouterr().out


SMALLER = ("diffusers-narrow", "lucidrains-narrow", "fashion-cpu", "annotated-convnext", "pulfer")
SMALL = {"network": "tiny", "batch_size": 2, "peers": ("eager",), "rounds": 1}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A small network of diffusers among those that can be measured."""
    model = networks.make_diffusers((32, 32))
    subject = networks.Subject("a tiny one", model, (4, 4, 3), 2, "diffusers")
    monkeypatch.setitem(networks.NETWORKS, "tiny", subject)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bench", "args"),
    [
        pytest.param(
            bench_step,
            StepArgs(**SMALL, steps=2, steps_per_call=2, dtype="bfloat16"),
            marks=pytest.mark.guard,
        ),
        (bench_sampling, SamplingArgs(**SMALL, steps=2)),
    ],
)
def test_both_frameworks_are_measured(bench, args):
    rows = bench(args)
    assert [row["contestant"] for row in rows] == ["jax_ddpm", "eager"]
    assert all(row["images/s"] > 0 and 0 < row["of peak"] < 1 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLER)
def test_every_network_has_a_contestant_in_pytorch_with_the_same_weights(name):
    import torch

    from jax_ddpm.parity.speed import Work, make_call, make_their_network

    subject = networks.NETWORKS[name]
    ours = step.build_ours(StepArgs(name, 2), subject)
    apply_fn, labels = ours.parts.network.apply_fn, ours.parts.num_labels
    network = step.Network(subject.source, subject.model, ours.params, apply_fn)
    work = Work(network, subject.image_shape, 2, "float32", 1, labels)
    module, against = make_their_network("eager", work)
    assert against
    x_t = np.random.default_rng(0).normal(size=(2, *subject.image_shape)).astype(np.float32)
    t = np.array([3, 700])
    with torch.no_grad():
        call = make_call("eager", work, module.eval())
        theirs = call(torch.from_numpy(np.moveaxis(x_t, -1, 1)), torch.from_numpy(t))
    label = None if labels is None else jnp.arange(2)
    out = apply_fn(ours.params, jnp.asarray(x_t), jnp.asarray(t), label=label)
    error = np.abs(np.moveaxis(theirs.numpy(), 1, -1) - out).max() / np.abs(out).max()
    assert error < 2e-5  # measured: at most 2.1e-6


@pytest.mark.slow
def test_every_way_to_read_the_data_is_measured(tmp_path):
    out = tmp_path / "data.json"
    bench_data(DataArgs(batch_size=8, batches=2, rounds=1, images=40, out=out))
    rows = json.loads(out.read_text())["rows"]
    assert len({row["contestant"] for row in rows}) == len(rows) >= 6
    assert all(row["images/s"] > 0 for row in rows)


@pytest.mark.slow
def test_the_peak_of_memory_exceeds_the_state():
    (row,) = bench_memory(MemoryArgs(settings=False, batch_size=2))
    assert 0 < row["state GiB"] < row["peak GiB"] < row["peak without donation GiB"]


@pytest.mark.slow
def test_a_steps_seconds_and_bytes_are_measured_as_work_grows():
    args = GrowthArgs("tiny", (2, 4), (1, 2), (4, 8), (16, 32), rounds=1)
    rows = bench_growth(args)
    assert len({row["what"] for row in rows}) == 5
    assert all(row["value"] > 0 for row in rows)


def test_a_line_goes_through_points_that_lie_on_one():
    assert fit_line({1: 5.0, 2: 8.0, 4: 14.0}) == pytest.approx((3, 2))


@pytest.mark.slow
def test_a_step_is_measured_with_pmap_and_on_a_mesh():
    count = jax.local_device_count()
    args = DevicesArgs("tiny", (count,), batch_size=1, steps=1, rounds=1)
    pmap, mesh = bench_devices(args)
    assert [(row["devices"], row["mode"]) for row in (pmap, mesh)] == [
        (count, "pmap"),
        (count, "mesh"),
    ]
    assert mesh["GFLOP/device"] == pytest.approx(pmap["GFLOP/device"], rel=0.2)
    assert all(value > 0 for name, value in mesh.items() if name.endswith(("/device", "/step")))


COMMAND = """#!/bin/sh
[ "$1" = -c ] && exit 0
[ "$6" = annotated ] || exit 1
mkdir -p "$8" && echo "Run folder: $8" && sleep 0.05 && echo {} > "$8/metrics.jsonl"
"""


def test_a_start_is_timed_until_the_first_row_of_the_log(tmp_path, monkeypatch):
    fake = tmp_path / "python"
    fake.write_text(COMMAND)
    fake.chmod(0o700)
    monkeypatch.setattr(start.sys, "executable", str(fake))
    cold, warm = start.bench_start(start.StartArgs("annotated", rounds=2))
    assert (cold["cache"], warm["cache"]) == ("empty", "full")
    assert cold["s, network and images"] > 0 and cold["s, first step"] >= 0.05
    with pytest.raises(UserError, match="`jax-ddpm train --preset pulfer` took no step"):
        start.bench_start(start.StartArgs("pulfer"))


def test_a_suite_measures_only_what_is_missing_and_writes_a_page(tmp_path, monkeypatch):
    """The page has a line for each file, and a figure beside it."""
    about = {"batch": 8, "against": "diffusers 1.0"}
    ours = {"contestant": "jax_ddpm", "images/s": 3.0, "times eager": 1.5, "of peak": 0.5}
    theirs = [{"contestant": name, "images/s": 2.0} for name in ("eager", "compile")]
    (tmp_path / "ho_step.json").write_text(json.dumps({**about, "rows": [ours, *theirs]}))
    points = [{"what": "s", "over": "images", "at": n, "value": 2.0, "line": 2.0} for n in (1, 2)]
    asked = []

    def run(command, check):
        out = command[-1]
        asked.append(command[4])
        rows = {"growth": points, "start": [{"cache": "empty", "s, first step": 5.0}]}
        if command[4] in rows:
            Path(out).write_text(json.dumps({"rows": rows[command[4]]}))

    monkeypatch.setattr(suite.subprocess, "run", run)
    with pytest.raises(UserError, match=r"ho_sampling_1, ho_sampling_16, devices, data"):
        suite.bench_suite(suite.SuiteArgs(tmp_path, networks=("ho",)))
    assert asked == ["sampling", "sampling", "growth", "devices", "start", "data"]
    text = (tmp_path / "performance.md").read_text()
    assert (
        "| diffusers 1.0 | training step of 8 | 3 | 2 | not measured | 2 | 1.50 | 1.50 | 50% |"
        in text
    )
    assert "| images | 1 | 2 |\n|---|---|---|\n| s | 2 | 2 |" in text
    assert "| empty | 5 |" in text
    assert (tmp_path / "performance.png").stat().st_size > 0
    mine = tmp_path / "mine.md"
    mine.write_text("first\n<!-- tables -->\nold\n<!-- end of tables -->\nlast\n")
    with pytest.raises(UserError, match="ho_sampling_1"):
        suite.bench_suite(suite.SuiteArgs(tmp_path, mine, ("ho",)))
    found = mine.read_text()
    assert found.startswith("first") and found.endswith("last\n") and text in found
    assert "old" not in found
    with pytest.raises(UserError, match=r"no lines <!-- tables -->"):
        suite.bench_suite(suite.SuiteArgs(tmp_path, tmp_path / "none.md", ("ho",)))
    assert page.list_ratios(suite.read_folder(tmp_path)) == {"training step": {"ho": 1.5}}


@pytest.mark.parametrize(
    ("bench", "args", "ours"),
    [
        (bench_step, StepArgs(**SMALL), "make_our_steps"),
        (bench_sampling, SamplingArgs(**SMALL), "make_our_sampling"),
    ],
)
def test_without_diffusers_only_a_peer_is_refused(bench, args, ours, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr(step, ours, lambda args, ours: lambda: None)
    monkeypatch.setattr(step, "build_ours", Mock())
    monkeypatch.setattr(step, "count_operations", lambda *args, **more: 1.0)
    monkeypatch.setattr(step, "measure_peak", lambda dtype: 1.0)
    with pytest.raises(UserError, match=r"--peers eager needs diffusers, .*'jax_ddpm\[parity\]'"):
        bench(args)
    (row,) = bench(replace(args, peers=()))
    assert row["contestant"] == "jax_ddpm"
