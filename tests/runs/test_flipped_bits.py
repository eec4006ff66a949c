"""A flipped bit in a file of a run gives the right content, that of the checkpoint before, or a
sentence. FLIPS=10000 flips so many.

Every read restores all arrays of a checkpoint. The run has a small network of its own, so that this
takes milliseconds; its files are the same ones as those of any other run, with fewer arrays.
"""

import io
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ddpm as jd
from jax_ddpm import runs
from jax_ddpm.errors import UserError
from jax_ddpm.runs import checkpoint
from jax_ddpm.runs.log import count_lines, describe_loss, read_lines, read_rows, written_from_json
from jax_ddpm.runs.recovery import warn_once
from jax_ddpm.runs.snapshots import list_snapshots, read_snapshot
from jax_ddpm.runs.stored import name_leaves
from tests.shared.attacks import MAX_BYTES, read_status, reset_peak
from tests.shared.mutations import limit_time, require_clear

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of loading what is damaged
FLIPS = int(os.environ.get("FLIPS", 20))
HANGS = 600  # seconds after which a read counts as hung, on a machine that is busy otherwise


def init(key):
    return {"weights": jax.random.normal(key, (64, 64)), "bias": jnp.zeros((1, 64))}


def apply_fn(params, x_t, t):
    flat = x_t.reshape(len(x_t), -1)
    return (flat @ params["weights"] + params["bias"] * t[:, None]).reshape(x_t.shape)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with all files that are read again: two checkpoints, a log and snapshots."""
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), np.uint8)
    return jd.fit(
        images,
        network=(init, apply_fn),
        run=tmp_path_factory.mktemp("flipped") / "run",
        steps=12,
        batch_size=8,
        checkpoint_every=6,
        log_every=2,
        posthoc_ema=(0.05, 0.1),
        snapshot_every=6,
        sample_images=1,
        num_timesteps=8,
    )


class Content(NamedTuple):
    """What is read of a run."""

    about: tuple[Any, ...]
    """Its settings and what it knows of its images."""
    step: int
    state: dict[str, tuple[str, bytes]]
    """The dtype and bits of each array of a checkpoint, by name."""
    lines: tuple[bytes, ...]
    """The rows up to its step with which a run continues."""
    rows: list[Any] | None
    """All rows, as a plot or Python reads them; None if they are refused."""
    snapshots: dict[str, dict[str, tuple[str, bytes]] | None]


def to_bits(tree):
    return {name: (str(a.dtype), np.asarray(a).tobytes()) for name, a in name_leaves(tree).items()}


def read_or_say(read: Callable[[], Any]) -> Any:
    """Return what `read` does; if it refuses, print its sentence and return None."""
    try:
        return read()
    except UserError as error:
        require_clear(error)
        print(error, file=sys.stderr)
        return None


def read(folder: Path, like: Any) -> Content:
    """Read a run as training, sampling and Python do. Prints what differs from what was written."""
    run = runs.load(folder)
    with checkpoint.open_checkpoints(run.checkpoints) as checkpoints:

        def read_one(step):
            about = checkpoint.describe(checkpoints, step)
            return checkpoint.restore(checkpoints, like, step=step), about

        state, about = checkpoint.read_newest(checkpoints, read_one)
        runs.require_own_checkpoint(run, int(state.step), about)
    step = int(state.step)
    found, written = read_lines(run.metrics, step), written_from_json(about["metrics"])
    if loss := describe_loss(run.metrics, found, step, written):
        warn_once(loss)
    return Content(
        (run.config, run.image_shape, run.imported_from, run.images),
        step,
        to_bits(state),
        found.lines,
        read_or_say(lambda: read_rows(run.metrics, run.checkpoints)),
        {
            path.name: read_or_say(lambda path=path: to_bits(read_snapshot(path, like.params)))
            for _, _, path in list_snapshots(run.snapshots)
        },
    )


def list_damaged_files(folder: Path) -> list[Path]:
    """The files that are read again: not pictures, TensorBoard's, and the lock."""
    files = [folder / "config.json", folder / "metrics.jsonl"]
    files += [*(folder / "checkpoints").rglob("*"), *(folder / "ema").iterdir()]
    return sorted(file for file in files if file.is_file() and file.stat().st_size)


def link_and_flip(folder: Path, copy: Path, name: Path, bit: int) -> None:
    """Make a folder of hard links to the files of `folder`, but with one bit flipped in `name`."""
    shutil.copytree(folder, copy, copy_function=os.link, ignore=ignore_unread)
    data = bytearray((folder / name).read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    (copy / name).unlink()
    (copy / name).write_bytes(data)


def ignore_unread(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name in ("tensorboard", "samples", "lock")]


def is_silent(found: Content, printed: str, whole: dict[int, Content]) -> bool:
    """Whether something differs from what was written, and nothing says so."""
    newest = whole[max(whole)]
    expected = whole.get(found.step)
    if expected is None or found.about != expected.about or found.state != expected.state:
        return True
    if found.step != newest.step and "is used instead" not in printed:
        return True
    rows_differ = repr((found.lines, found.rows)) != repr((expected.lines, newest.rows))
    if rows_differ and "metrics.jsonl" not in printed:
        return True
    return any(
        bits != expected.snapshots[name] and (bits is not None or name not in printed)
        for name, bits in found.snapshots.items()
    )


def judge(copy: Path, like: Any, whole: dict[int, Content]) -> str:
    """Read a damaged run; name the result."""
    warn_once.cache_clear()
    with redirect_stderr(io.StringIO()) as printed, limit_time(HANGS):
        try:
            found = read(copy, like)
        except UserError as error:
            require_clear(error)
            return "nothing but a sentence"
    said = printed.getvalue()
    if is_silent(found, said, whole) or found.snapshots.keys() != whole[12].snapshots.keys():
        return f"silent: {said}"
    return "the rest, and a sentence" if said else "all, as it was written"


@pytest.fixture(scope="module")
def like(run):
    with jax.enable_x64(False):
        return jax.eval_shape(run.parts.init_state, jax.random.key(0))


@pytest.fixture(scope="module")
def whole(run, like, tmp_path_factory):
    """What the run holds, as of each of its checkpoints."""
    older = shutil.copytree(run.folder, tmp_path_factory.mktemp("older") / "run")
    shutil.rmtree(older / "checkpoints" / "12")
    newest, before = read(run.folder, like), read(older, like)
    assert (newest.step, before.step, len(newest.snapshots)) == (12, 6, 4)
    assert count_lines(newest.lines).rows == len(newest.rows) == 6
    return {12: newest, 6: before}


@pytest.mark.usefixtures("unchecked_types")  # checking types takes as long as reading
def test_no_flipped_bit_changes_what_is_read_of_a_run(run, like, whole, tmp_path):
    files, numbers = list_damaged_files(run.folder), np.random.default_rng(FLIPS)
    before, start, results = reset_peak(), time.monotonic(), Counter[str]()
    silent = []
    for i in range(FLIPS):
        name = files[i % len(files)].relative_to(run.folder)
        bit = int(numbers.integers(8 * (run.folder / name).stat().st_size))
        copy = tmp_path / str(i)  # another name each time, in case a library remembers files
        link_and_flip(run.folder, copy, name, bit)
        result = judge(copy, like, whole)
        if result.startswith("silent"):
            silent.append((str(name), bit, result))
        results[result.split(":")[0]] += 1
        shutil.rmtree(copy)
        if i % 500 == 499:
            print(f"{i + 1} flips: {dict(results)}", flush=True)
    seconds, grown = time.monotonic() - start, read_status("VmHWM") - before
    print(
        f"{FLIPS} flips in {len(files)} files, {seconds:.0f} s, {grown / 2**20:.0f} MiB: ", end=""
    )
    print(dict(results))
    assert not silent, silent[:20]
    assert grown < MAX_BYTES
