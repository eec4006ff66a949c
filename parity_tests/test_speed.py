"""The benchmarks measure what they claim to; these tests do not measure speed."""

import json
import sys
from dataclasses import replace

import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.jobs.bench import step, timing
from jax_ddpm.jobs.bench.data import DataArgs, bench_data
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


SMALL = {"batch_size": 2, "image_size": 4, "channels": (32, 32), "peers": ("eager",), "rounds": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bench", "args"),
    [
        (bench_step, StepArgs(**SMALL, steps=2, steps_per_call=2, dtype="bfloat16")),
        (bench_sampling, SamplingArgs(**SMALL, steps=2)),
    ],
)
def test_both_frameworks_are_measured(bench, args):
    rows = bench(args)
    assert [row["contestant"] for row in rows] == ["jax_ddpm", "eager"]
    assert all(row["images/s"] > 0 for row in rows)


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


@pytest.mark.parametrize(
    ("bench", "args", "ours"),
    [
        (bench_step, StepArgs(**SMALL), "make_our_steps"),
        (bench_sampling, SamplingArgs(**SMALL), "make_our_sampling"),
    ],
)
def test_without_diffusers_only_a_peer_is_refused(bench, args, ours, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr(step, ours, lambda args: lambda: None)
    with pytest.raises(UserError, match=r"--peers eager needs diffusers, .*'jax_ddpm\[parity\]'"):
        bench(args)
    (row,) = bench(replace(args, peers=()))
    assert row["contestant"] == "jax_ddpm"
