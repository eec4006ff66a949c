import signal

import pytest

from jax_ddpm.jobs.interrupt import StopRequest
from jax_ddpm.runs import metrics

ROWS = [metrics.Row(step, 1 / step, 0.1 + step, 1e-3) for step in (3, 6, 9)]


@pytest.fixture
def path(tmp_path):
    for row in ROWS:
        metrics.append(tmp_path / "metrics.jsonl", row)
    return tmp_path / "metrics.jsonl"


def test_rows_are_read_with_every_digit(path):
    assert metrics.read(path) == ROWS


def test_there_are_no_rows_before_the_first():
    from pathlib import Path

    assert metrics.read(Path("does-not-exist.jsonl")) == []


def test_a_half_written_last_line_is_ignored(path):
    path.write_text(path.read_text()[:-5])
    assert metrics.read(path) == ROWS[:2]


@pytest.mark.parametrize(("step", "count"), [(0, 0), (5, 1), (6, 2), (100, 3)])
def test_rows_after_the_checkpoint_are_dropped_and_the_others_keep_their_bytes(path, step, count):
    before = path.read_text().splitlines(True)
    metrics.drop_rows_after(path, step)
    assert path.read_text().splitlines(True) == before[:count]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request_and_the_second_interrupts(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signum is None
        signal.raise_signal(number)
        assert stop.signum == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    "line", ["", "[]", "{}", '{"step": "x"}', "[" * 9000, "1" * 20_000, '{"step": 1, "loss": {}}']
)
def test_a_line_that_is_not_a_row_is_named(path, line):
    from jax_ddpm.errors import UserError

    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"line 4 of .*metrics.jsonl is not a row of metrics"):
        metrics.read(path)
