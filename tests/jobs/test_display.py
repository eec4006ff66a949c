"""No error of stdout or stderr reaches a job."""

import io
import os
import pty
import subprocess
import sys
from contextlib import suppress

import pytest

from jax_ddpm.jobs import display
from jax_ddpm.jobs.display import Output, Quiet, is_stopping, write_all
from jax_ddpm.jobs.messages import make_bar, tell

PRINTING = """
import os, sys
from jax_ddpm.jobs.display import open_closed_streams, protect_streams, tell_last
open_closed_streams()
file = open(sys.argv[1], "w")  # it must not get the number of a closed stream
protect_streams(is_the_job={is_the_job})
for i in range(3):
    print("line", i, "\\udcff")
    print("error line", i, file=sys.stderr)
tell_last("the end")
file.write("done")
"""


def run(redirection, out, *, is_the_job=False):
    script = PRINTING.format(is_the_job=is_the_job)
    command = f"{sys.executable} -c '{script}' {out} {redirection}"
    return subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], capture_output=True, check=False
    )


@pytest.mark.parametrize(
    "redirection",
    [
        "2>&1 | true",
        "> /dev/full",
        "2> /dev/full",
        "> /dev/full 2>&1",
        ">&-",
        "2>&-",
        ">&- 2>&- <&-",
    ],
)
def test_work_goes_on_whatever_becomes_of_the_output(tmp_path, redirection):
    found = run(redirection, tmp_path / "out")
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "out").read_text() == "done"
    assert b"Traceback" not in found.stdout + found.stderr
    said = b"cannot be written (No space left on device): the command goes on without it"
    assert (found.stdout + found.stderr).count(said) == (
        redirection in ("> /dev/full", "2> /dev/full")
    )


def test_the_last_sentence_goes_to_the_terminal_if_nobody_reads_the_output(tmp_path):
    command = f"{sys.executable} -c '{PRINTING.format(is_the_job=False)}' {tmp_path / 'out'}"
    number, terminal = pty.fork()
    if number == 0:
        os.execvp("bash", ["bash", "-c", f"{command} 2>&1 | true"])
    seen = b""
    with suppress(OSError):  # how the end of a terminal looks
        while data := os.read(terminal, 1000):
            seen += data
    os.waitpid(number, 0)
    os.close(terminal)
    assert seen == b"the end\r\n"
    assert (tmp_path / "out").read_text() == "done"


@pytest.mark.parametrize("redirection", ["| true", "> /dev/full"])
def test_output_that_is_the_job_ends_it(tmp_path, redirection):
    found = run(redirection, tmp_path / "out", is_the_job=True)
    assert found.returncode == 1 and b"line" not in found.stdout
    assert (tmp_path / "out").read_text() == ""


def test_a_reader_that_is_stuck_delays_nothing_once_the_command_stops():
    read, write = os.pipe()
    is_stopping.set()
    try:
        write_all(write, bytes(10**6))  # more than a pipe holds
    finally:
        is_stopping.clear()
        os.close(read)
        os.close(write)


def test_an_output_that_may_be_written_later_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(display, "_broken", set())
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(display, "NAMES", {full: "a test"})
    monkeypatch.setattr(display, "write_all", lambda d, data: os.write(d, data) if d == full else 0)
    output = Output(full)
    assert output.write(b"lost") == 4
    file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    os.dup2(file, full)
    assert output.write(b"kept") == 4
    assert (tmp_path / "file").read_bytes() == b"kept"
    os.close(file)
    os.close(full)


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError

    def flush(self):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stream", [Broken(), None])
def test_messages_and_bars_of_a_job_outlive_the_streams_of_any_program(monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    with make_bar(3, "step") as bar:
        tell("a message")
        bar.update()
    assert Quiet(stream) == stream
