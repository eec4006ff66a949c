"""Kill a small training run at random moments until it is finished, and compare it with one that
was never killed.

    python tests/kill_harness.py --kills 100 --seed 0 -- --train.parallel pmap

What follows the last `--` goes to the run's command line. The processes that are killed are forks
of one that has imported the libraries, so a start takes a fraction of a second.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

EVERY = 6  # steps between two checkpoints
FLAGS = f"""
--data.name fashion_mnist --model.channels 4 --model.channel-mult 1 --model.num-res-blocks 1
--model.attn-levels --model.num-groups 2 --diffusion.num-timesteps 8 --train.num-steps 48
--train.batch-size 8 --train.learning-rate 1e-2 --train.warmup-steps 4 --train.log-every 2
--train.sample-every 24 --train.checkpoint-every {EVERY} --train.keep-checkpoints 2
--train.keep-best --train.posthoc-ema 0.05 0.1 --train.snapshot-every 12
--sample.sampler ddim --sample.num-steps 4
""".split()
GIVE_UP = 1800  # seconds after which an attempt that nobody kills counts as hung


class Figures(NamedTuple):
    """Kills by what they interrupted, finished runs, the most steps lost by a kill, and seconds."""

    kills: Counter[str]
    runs: int
    most_steps_lost: int
    seconds: float


def make_data(folder: Path) -> None:
    """Write forty smooth 8x8 images in MNIST's format."""
    import numpy as np

    from jax_ddpm.data.idx import write_idx

    rows, columns = np.mgrid[:8, :8]
    phase = np.arange(40)[:, None, None]
    images = 127.5 * (1 + np.sin(phase + rows / 3) * np.cos(phase / 7 + columns / 2))
    folder.mkdir()
    for prefix in ("train", "t10k"):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images.astype(np.uint8))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", (np.arange(40) % 10).astype(np.uint8))


def run_in_fork(work: Callable[[], None], log: Path) -> int:
    """Do `work` in a fork of this process that writes to `log`; return its id."""
    sys.stdout.flush()
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work()
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def train(flags: Sequence[str]) -> None:
    """Run the training command."""
    from jax_ddpm.cli import train
    from jax_ddpm.cli.ending import exit_after

    exit_after(lambda: train.run(flags))


def wait_for_end(number: int, seconds: float) -> int | None:
    """Return the exit status of process `number` if it ends within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return status
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.002)


def finish(number: int, log: Path) -> None:
    """Wait for process `number`. Raises AssertionError unless it succeeds."""
    status = wait_for_end(number, GIVE_UP)
    if status is None:
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
    assert status == 0, f"status {status}: {log.read_text()[-3000:]}"


def find_interrupted(run: Path, since: float) -> str:
    """Find what a kill interrupted, from the files that it left."""

    def fresh(pattern: str) -> bool:
        return any(path.stat().st_ctime >= since for path in run.glob(pattern))

    if not (run / "config.json").exists():
        return "before the run folder was there"
    if fresh("checkpoints/*.orbax-checkpoint-tmp"):
        return "while a checkpoint was written"
    if fresh("checkpoints/*.removed"):
        return "while a checkpoint was removed"
    if fresh("**/.*.tmp"):
        return "while another file was written"
    steps = fresh("metrics.jsonl") and find_logged_step(run)
    return "between these, while training" if steps else "between these, before the first row"


def find_logged_step(run: Path) -> int:
    """Find the last step in metrics.jsonl."""
    from jax_ddpm.runs import metrics

    return max((row.step for row in metrics.read(run / "metrics.jsonl")), default=0)


def find_saved_step(run: Path) -> int:
    """Find the step of the newest checkpoint."""
    names = [path.name for path in run.glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def compare(run: Path, expected: Path) -> None:
    """Raise AssertionError unless both runs have the same checkpoint, log and pictures."""
    from tests.shared.compared_runs import assert_same_run

    assert_same_run(run, expected)
    for name in ("samples", "ema"):
        found, wanted = (
            {path.name: path.read_bytes() for path in (folder / name).iterdir()}
            for folder in (run, expected)
        )
        assert found == wanted, (name, found.keys() ^ wanted.keys())


def harass(folder: Path, kills: int, seed: int, flags: Sequence[str]) -> Figures:
    """Run and kill in `folder` until `kills` kills are done and the last run is finished.

    Raises AssertionError if any run differs from the one that was never killed.
    """
    numbers, done, runs, lost = random.Random(seed), Counter[str](), 0, 0
    make_data(folder / "data")
    flags = [*FLAGS, "--data.path", str(folder / "data"), *flags]
    begin = time.monotonic()
    log = folder / "log"
    finish(run_in_fork(lambda: train(["--run", str(folder / "expected"), *flags]), log), log)
    start = time.monotonic()  # once more, now that the programs are compiled
    finish(run_in_fork(lambda: train(["--run", str(folder / "again"), *flags]), log), log)
    longest = time.monotonic() - start
    while done.total() < kills or runs == 0:
        run = folder / f"run{runs}"
        while True:
            since = time.time()
            number = run_in_fork(lambda run=run: train(["--run", str(run), *flags]), log)
            wait = numbers.uniform(0, 0.7 * longest) if done.total() < kills else GIVE_UP
            status = wait_for_end(number, wait)
            if status is not None:
                assert status == 0, log.read_text()[-3000:]
                break
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
            assert done.total() < kills, f"it hangs: {log.read_text()[-3000:]}"
            done[find_interrupted(run, since)] += 1
            lost = max(lost, find_logged_step(run) - find_saved_step(run))
        finish(run_in_fork(lambda run=run: compare(run, folder / "expected"), log), log)
        shutil.rmtree(run)
        runs += 1
    return Figures(done, runs, lost, time.monotonic() - begin)


def main() -> None:
    """Read the command line, kill the run, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devices", type=int, default=1, help="simulated devices")
    parser.add_argument("flags", nargs="*", help="flags of train.py")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        prepare(args.devices, Path(name) / "compiled")
        figures = harass(Path(name), args.kills, args.seed, args.flags)
    for what, count in sorted(figures.kills.items()):
        print(f"{count:5} kills {what}")
    print(
        f"{figures.kills.total():5} kills in all, in {figures.runs} runs and "
        f"{figures.seconds:.0f} s; every run ended with the same bits as the one never killed"
    )
    print(
        f"{figures.most_steps_lost:5} steps lost by a kill at most, with a checkpoint every {EVERY}"
    )


def prepare(devices: int, cache: Path) -> None:
    """Import the libraries without touching a device, because a fork would not survive that."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
        "JAX_COMPILATION_CACHE_DIR", str(cache)
    )
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    import tests.shared.compared_runs as compared_runs  # noqa: F401, I001
    import jax_ddpm.jobs.train  # noqa: F401


if __name__ == "__main__":
    main()
