"""What the tests share: eight simulated devices, float64, tiny images and a tiny trained run."""

import fcntl
import os

import tests.shared.quick_compilation  # noqa: F401 - it sets XLA_FLAGS
from tests.shared.type_checks import unchecked_types  # noqa: F401 - a fixture; before jax_ddpm

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
# By default XLA has as many threads as devices. Two collectives that do not depend on each other
# can then wait for each other for ever: each blocks threads that the other one needs.
os.environ.setdefault("PJRT_NPROC", "32")

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jax_ddpm.config.run import Config, DataConfig, DiffusionConfig, SampleConfig, TrainConfig
from jax_ddpm.data.idx import write_idx
from jax_ddpm.models import UNetConfig

jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module", autouse=True)
def no_silent_rank_promotion() -> Iterator[None]:
    """Implicitly broadcasting arrays of different rank is an error in every test of this folder."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Compile equal programs once, over all test processes and the processes that they start."""
    folder = make_once(tmp_path_factory, "compiled", Path.mkdir)
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))  # for the commands, here and in processes
        yield folder
    for name, value in before.items():
        jax.config.update(name, value)


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Let one of the test processes fill a folder with `make`, while the others wait for it."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / name, shared / f"{name}.done"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a machine with one device: jobs that choose for themselves use only the first."""
    for name in ("device_count", "local_device_count"):
        monkeypatch.setattr(jax, name, lambda: 1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty smooth 8x8 images in MNIST's format."""

    def make(folder: Path) -> None:
        folder.mkdir()
        rows, columns = np.mgrid[:8, :8]
        phase = np.arange(40)[:, None, None]
        images = 127.5 * (1 + np.sin(phase + rows / 3) * np.cos(phase / 7 + columns / 2))
        labels = (np.arange(40) % 10).astype(np.uint8)
        for prefix in ("train", "t10k"):
            write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images.astype(np.uint8))
            write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)

    return make_once(tmp_path_factory, "tiny_data", make)


@pytest.fixture(scope="session")
def make_config(tiny_folder: Path) -> Callable[..., Config]:
    """`make_config(run, train=dict(...), ...)`: a run of twelve steps that takes a CPU no time."""

    def make(run: Path, **changes: Any) -> Config:
        sections = {
            "data": DataConfig("fashion_mnist", tiny_folder, random_flip=True),
            "model": UNetConfig(
                channels=4, channel_mult=(1,), num_res_blocks=1, attn_levels=(), num_groups=2
            ),
            "diffusion": DiffusionConfig(num_timesteps=8),
            "train": TrainConfig(
                num_steps=12,
                batch_size=8,
                learning_rate=1e-2,
                warmup_steps=4,
                decay="cosine",
                ema_decay=0.9,
                log_every=3,
                sample_every=6,
                checkpoint_every=6,
                parallel="jit",
            ),
            "sample": SampleConfig(sampler="ddim", num_steps=4),
        }
        for name, fields in changes.items():
            if name in sections:
                sections[name] = replace(sections[name], **fields)
        rest = {name: value for name, value in changes.items() if name not in sections}
        return Config(run=run, **sections, **rest)

    return make


@pytest.fixture(scope="session")
def trained_run(
    make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a finished run of `make_config`. Tests must only read it."""
    from jax_ddpm.jobs.train import train

    def make(folder: Path) -> None:
        with jax.numpy_rank_promotion(
            "raise"
        ):  # a session fixture is set up before module fixtures
            train(make_config(folder))

    return make_once(tmp_path_factory, "finished_run", make)
