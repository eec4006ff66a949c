"""Stop a small training run by signals at random moments, under pipes, full and closed outputs,
until it is finished, and compare it with one that was never stopped.

    python tests/signal_harness.py --moments 200 --seed 0

Every attempt is a command of its own, so moments also fall into imports and, as every third attempt
has no compiled programs, into compilation. A signal must lose no step, end the command within
--grace seconds with the documented exit code, and leave no traceback.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.kill_harness import FLAGS, compare, find_logged_step, find_saved_step, make_data  # noqa: E402

GIVE_UP = 1800
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OUTPUTS = ("tee", "head", "full", "closed", "log")


class Job(NamedTuple):
    """What is run, and where."""

    folder: Path
    steps: int
    grace: float
    """Seconds that a stop may take: a step or a compilation, on a busy machine."""


class Attempt(NamedTuple):
    """A running command, where it writes, and what reads it."""

    process: subprocess.Popen
    output: str
    log: Path
    reader: subprocess.Popen | None


class Figures(NamedTuple):
    """Signals by what they interrupted, finished runs, the longest stop, and seconds."""

    moments: Counter[str]
    runs: int
    longest_stop: float
    seconds: float


def begin(job: Job, run: Path, output: str, *, is_compiled: bool) -> Attempt:
    """Start the training command in a process group of its own; `output` is one of OUTPUTS."""
    flags = [
        str(job.steps) if before == "--train.num-steps" else flag
        for before, flag in zip(["", *FLAGS], FLAGS, strict=False)
    ]
    command = [sys.executable, "-m", "jax_ddpm", "train", "--run", str(run), *flags]
    command += ["--data.path", str(job.folder / "data")]
    if output == "closed":
        command = ["bash", "-c", 'exec "$@" >&- 2>&-', "bash", *command]
    cache = job.folder / "compiled" if is_compiled else Path(tempfile.mkdtemp(dir=job.folder))
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
    }
    log = job.folder / "log"
    log.write_bytes(b"")
    piped = output in ("tee", "head")
    with open("/dev/full" if output == "full" else log, "ab") as file:
        target = subprocess.PIPE if piped else file
        process = subprocess.Popen(
            command, stdout=target, stderr=subprocess.STDOUT, env=environment, process_group=0
        )
    reader = None
    if piped:
        reading = ["tee", log] if output == "tee" else ["head", "-1"]
        reader = subprocess.Popen(
            reading, stdin=process.stdout, stdout=subprocess.DEVNULL, process_group=process.pid
        )
        process.stdout.close()
    return Attempt(process, output, log, reader)


def answers_signals(number: int) -> bool:
    """Whether process `number` has come as far as to install its handlers."""
    for line in Path(f"/proc/{number}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGHUP - 1) & 1)
    return False


def stop(attempt: Attempt, number: signal.Signals, grace: float) -> str:
    """Send the signal; return what it interrupted. Raises AssertionError for a bad end."""
    process, output = attempt.process, attempt.output
    answers = answers_signals(process.pid)
    if output == "tee":
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    try:
        code = process.wait(grace)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"{number.name} under {output}: no end: {tail(attempt)}") from None
    if not answers:
        return "before Python had started"
    expected = 130 if number == signal.SIGINT else 0
    said = tail(attempt)
    assert code == expected, f"{number.name} under {output}: code {code}: {said}"
    assert "Traceback" not in said, said
    if output == "log":
        assert "Stopped" in said or "Finished" in said, said
    return said


def tail(attempt: Attempt) -> str:
    """The end of what an attempt printed, if anything kept it."""
    return attempt.log.read_text(errors="replace")[-3000:]


def finish(attempt: Attempt) -> None:
    """Wait for the end of an attempt that nobody stops."""
    code = attempt.process.wait(GIVE_UP)
    assert code == 0, f"code {code}: {tail(attempt)}"


def measure(job: Job, run: Path) -> tuple[float, float]:
    """Run once more, now that the programs are compiled: seconds to the first row, and to the end."""
    start = time.monotonic()
    attempt = begin(job, run, "log", is_compiled=True)
    while attempt.process.poll() is None and not find_logged_step(run):
        time.sleep(0.05)
    first_row = time.monotonic() - start
    finish(attempt)
    return first_row, time.monotonic() - start


def find_interrupted(run: Path, before: int, steps: int, said: str) -> str:
    """Find what a signal interrupted."""
    if said == "before Python had started":
        return said
    if find_saved_step(run) == before:
        return "before the first step" if before < steps else "while drawing the final pictures"
    return "while training" if find_saved_step(run) < steps else "at the end of training"


def harass(job: Job, moments: int, seed: int) -> Figures:
    """Run and stop `job` until `moments` signals are sent and the last run is finished."""
    numbers, done, runs, longest = random.Random(seed), Counter[str](), 0, 0.0
    folder = job.folder
    make_data(folder / "data")
    start = time.monotonic()
    finish(begin(job, folder / "expected", "log", is_compiled=True))
    first_row, duration = measure(job, folder / "again")
    while done.total() < moments or runs == 0:
        run = folder / f"run{runs}"
        while True:
            ends = done.total() >= moments
            is_compiled = ends or numbers.random() < 2 / 3
            before = find_saved_step(run)
            attempt = begin(job, run, numbers.choice(OUTPUTS), is_compiled=is_compiled)
            if ends:
                finish(attempt)
                break
            try:
                moment = numbers.choice(((0, first_row), (first_row, duration)))
                attempt.process.wait(numbers.uniform(*moment))
            except subprocess.TimeoutExpired:
                sent = time.monotonic()
                number = numbers.choice(SIGNALS)
                said = stop(attempt, number, job.grace)
                took = time.monotonic() - sent
                longest = max(longest, took)
                lost = find_logged_step(run) - find_saved_step(run)
                assert lost <= 0, f"{lost} steps lost: {tail(attempt)}"
                what = find_interrupted(run, before, job.steps, said)
                done[what] += 1
                tell = f"{done.total():4} {number.name} {what}, output {attempt.output}"
                print(f"{tell}: {took:.1f} s", flush=True)
            else:
                finish(attempt)
                break
        compare(run, folder / "expected")
        shutil.rmtree(run)
        runs += 1
    return Figures(done, runs, longest, time.monotonic() - start)


def main() -> None:
    """Read the command line, stop the run, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--steps", type=int, default=96, help="steps of the run")
    parser.add_argument("--grace", type=float, default=60, help="seconds that a stop may take")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for number in SIGNALS:  # which a script in the background may ignore, and its children too
        signal.signal(number, signal.default_int_handler)
    os.environ["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as name:
        figures = harass(Job(Path(name), args.steps, args.grace), args.moments, args.seed)
    for what, count in sorted(figures.moments.items()):
        print(f"{count:5} signals {what}")
    print(
        f"{figures.moments.total():5} signals in all, in {figures.runs} runs and "
        f"{figures.seconds:.0f} s; no step was lost, the longest stop took "
        f"{figures.longest_stop:.1f} s, and every run ended with the same bits as the one never "
        "stopped"
    )


if __name__ == "__main__":
    main()
