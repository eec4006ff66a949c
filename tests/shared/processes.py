"""Real processes on this machine that work together over gloo."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax_ddpm
from tests.shared.quick_compilation import LEVEL

# Compiled without optimisation: it changes numbers only by rounding.
QUICK = f"{LEVEL}=0 --xla_llvm_disable_expensive_passes=true"

WORKER = """
import json, sys
from jax_ddpm.cli import evaluate, sample, train
from jax_ddpm.cli.ending import exit_after
from jax_ddpm.cli.help import Help
from jax_ddpm.cli.parsing import parse
from jax_ddpm.cli.start import StartFlags, start
from jax_ddpm.devices import processes as distributed
from jax_ddpm.errors import Stopped
from jax_ddpm.jobs.interrupt import answer_signals
from jax_ddpm.runs import stored

def spoil(process, step):
    # damage the checkpoint of that step, for that process only
    load = stored.ocp.load

    def spoilt(path, *args):
        found = load(path, *args)
        if path.name == str(step):
            raise ValueError("a hole")
        return found

    if distributed.get_process()[0] == process:
        stored.ocp.load = spoilt

def do(kind, *args):
    if kind == "spoil":
        return spoil(*args)
    {"train": train, "sample": sample, "evaluate": evaluate}[kind].run(args)

def main():
    *flags, jobs = sys.argv[1:]
    start(parse(StartFlags, flags, Help("", "", (), ())).flags)
    for job in json.loads(jobs):
        try:
            do(*job)
        except Stopped as stop:
            if stop.signum:
                raise
            print(stop, flush=True)

answer_signals(saves=True)
exit_after(main)
"""


def make_flags(config):
    """Make the command line that gives `config`."""
    flags = ["--run", str(config.run), "--data.name", config.data.name]
    flags += ["--data.path", str(config.data.path)]
    flags += ["--data.random-flip"] if config.data.random_flip else []
    flags += ["--data.holdout", str(config.data.holdout)]
    for section in ("model", "diffusion", "train", "sample"):
        for name, value in vars(getattr(config, section)).items():
            flag = f"--{section}.{name.replace('_', '-')}"
            if isinstance(value, bool):
                flags.append(flag if value else flag.replace(".", ".no-", 1))
            elif isinstance(value, tuple):
                flags += [flag, *map(str, value)]
            else:
                flags += [flag, str(value)]
    return flags


def start(jobs, count, cache, *, devices=1):
    """Start `count` processes, each with `devices` simulated devices, that do `jobs` together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(Path(jax_ddpm.__file__).parents[1]),
    }

    def launch(i):
        where = ["--distributed", "--coordinator", f"127.0.0.1:{port}"]
        where += ["--num-processes", str(count), "--process-id", str(i)]
        command = [sys.executable, "-c", WORKER, *(where if count > 1 else []), json.dumps(jobs)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=environment, **pipes)

    return [launch(i) for i in range(count)]


def wait_for_ends(processes, timeout):
    """Wait for (exit code, stdout, stderr) of each process; kill those that take longer."""
    found = []
    try:
        for process in processes:
            out, error = process.communicate(timeout=timeout)
            found.append((process.returncode, out, error))
    finally:
        for process in processes:
            process.kill()
    return found


def is_from_gloo(line):
    """Whether it is a report of Gloo, or a piece of one: its threads print over each other."""
    return "[Gloo]" in line or " peer ranks" in line or re.fullmatch(r"[\d :]+", line)


def run_together(jobs, count, cache, *, devices=1, timeout=280):
    """Run `jobs` with `count` processes; none may fail. Return what process 0 prints."""
    found = wait_for_ends(start(jobs, count, cache, devices=devices), timeout)
    assert [code for code, _, _ in found] == [0] * count, found
    lines = [line for _, out, _ in found[1:] for line in out.splitlines()]
    printed = [line for line in lines if line and not is_from_gloo(line)]
    assert printed == [], found
    return found[0][1]
