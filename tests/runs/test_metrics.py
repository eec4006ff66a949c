import os
import shutil
import signal

import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.jobs.interrupt import StopRequest
from jax_ddpm.runs import metrics
from jax_ddpm.runs.log import Log, Written, count_lines, read_rows

ROWS = [metrics.Row(step, 1 / step, 0.1 + step, 1e-3) for step in (3, 6, 9)]


@pytest.fixture
def path(tmp_path):
    log = Log(tmp_path / "metrics.jsonl")
    for row in ROWS:
        log.append(row)
    return log.path


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
    Log(path).resume(step, None)
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


def write(path, lines):
    path.write_bytes(b"".join(lines))


DAMAGE = {
    "deleted": (lambda path, lines: path.unlink(), "has only 0 of the 3 rows up to step 9"),
    "zeroed": (lambda path, lines: path.write_bytes(bytes(200)), "has only 0 of the 3 rows"),
    "cut": (lambda path, lines: write(path, [*lines[:2], lines[2][:9]]), "has only 2 of the 3"),
    "a line": (
        lambda path, lines: write(path, [*lines[:2], b"x\n", lines[2]]),
        "1 lines that are no",
    ),
    "changed": (
        lambda path, lines: write(path, [lines[0].replace(b"0.3", b"0.4"), *lines[1:]]),
        "no longer holds the rows",
    ),
    "another order": (lambda path, lines: write(path, lines[::-1]), "no longer holds the rows"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_rows_that_are_lost_or_changed_are_said_to_be_and_kept_aside(path, how, capsys):
    damage, message = DAMAGE[how]
    lines = path.read_bytes().splitlines(True)
    written = count_lines(lines)
    Log(path).resume(9, written)
    assert capsys.readouterr().err == ""
    damage(path, lines)
    found = path.read_bytes() if path.exists() else None
    log = Log(path)
    log.resume(9, written)
    assert message in capsys.readouterr().err
    kept = path.with_name("metrics.jsonl.damaged")
    assert (kept.read_bytes() if kept.exists() else None) == found
    assert path.read_bytes() == b"".join(log.lines)
    metrics.read(path)


def test_rows_that_are_removed_while_training_are_written_again(path, capsys):
    log = Log(path)
    log.resume(9, None)
    path.unlink()
    log.append(ROWS[0]._replace(step=12))
    assert [row.step for row in metrics.read(path)] == [3, 6, 9, 12]
    assert "was removed or changed while training: it is written again" in capsys.readouterr().err
    assert log.written == Written(4, count_lines(log.lines).checksum)


def test_a_file_far_larger_than_a_log_is_refused_at_once(path):
    path.touch()
    os.truncate(path, 2**33)
    with pytest.raises(UserError, match=r"has more than 1,073,741,824 bytes.* move it away"):
        Log(path).resume(5, None)


def test_a_changed_number_is_noticed_where_rows_are_read_in_python(trained_run, tmp_path, capsys):
    """By what the newest checkpoint knows of the rows up to its step."""
    newest = tmp_path / "checkpoints" / "12"
    newest.mkdir(parents=True)
    shutil.copy(trained_run / "checkpoints/12/_CHECKPOINT_METADATA", newest)
    path = tmp_path / "metrics.jsonl"
    text = (trained_run / "metrics.jsonl").read_text()
    for later in ("", text.splitlines(True)[-1].replace('"step": 12', '"step": 15')):
        path.write_text(text + later)
        assert len(read_rows(path, tmp_path / "checkpoints")) == 4 + bool(later)
    assert capsys.readouterr().err == ""
    path.write_text(text.replace('"loss": 0', '"loss": 1', 1).replace('"loss": 1', '"loss": 2', 1))
    read_rows(path, tmp_path / "checkpoints")
    assert "no longer holds the rows that were written up to step 12" in capsys.readouterr().err
