"""Several processes that work on one job: how they join, agree on values, and exit."""

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_ddpm.errors import Stopped, UserError, flag_name, one_line

HEARTBEAT = 20  # seconds without a heartbeat after which a process counts as dead
AXIS = "devices"
T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """How this process joins the others of one job. It does not change what the job computes."""

    distributed: bool = False
    """Join the other processes of one job. SLURM, Open MPI, Cloud TPUs and Kubernetes are detected;
    elsewhere, also give --coordinator, --num-processes and --process-id."""
    coordinator: str | None = None
    """HOST:PORT of process 0, the same for all processes; the port must be free on that host."""
    num_processes: int | None = None
    """The number of processes."""
    process_id: int | None = None
    """The index of this process, from 0."""
    connect_timeout: int = 300
    """Seconds to wait for the other processes."""


def require_complete(launch: Launch) -> None:
    """Raise UserError for flags that do not fully identify this process."""
    names = ("coordinator", "num_processes", "process_id")
    given = {name: getattr(launch, name) for name in names}
    present = [flag_name(name) for name, value in given.items() if value is not None]
    if not launch.distributed and present:
        raise UserError(f"{present[0]} needs --distributed: add it, or leave out {present[0]}")
    if present and len(present) < len(names):
        missing = [flag_name(name) for name, value in given.items() if value is None]
        raise UserError(
            f"{' and '.join(present)} without {' and '.join(missing)}: --distributed needs "
            "--coordinator HOST:PORT --num-processes N --process-id I, or none of them"
        )
    if not present:
        return
    host, _, port = str(launch.coordinator).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator {launch.coordinator} must be HOST:PORT, such as node0:9876")
    count, number = launch.num_processes or 0, launch.process_id or 0
    if count < 1 or not 0 <= number < count:
        raise UserError(
            f"--process-id {launch.process_id} must be between 0 and N - 1 for --num-processes "
            f"{launch.num_processes}"
        )


def join(launch: Launch) -> None:
    """Join the other processes, if there are any; from then on, only process 0 prints.

    Call this before anything uses a device. Raises UserError for incomplete flags, if no cluster is
    detected, and if the other processes do not join in time.
    """
    require_complete(launch)
    if launch.connect_timeout < 1:
        raise UserError(f"--connect-timeout is {launch.connect_timeout}, but must be at least 1")
    if not launch.distributed:
        return
    # JAX's own handler for SIGTERM would take the signal away from the training loop.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            launch.coordinator,
            launch.num_processes,
            launch.process_id,
            initialization_timeout=launch.connect_timeout,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except ValueError as error:  # nothing detected, and nothing given
        raise UserError(
            "--distributed detected no SLURM, Open MPI, Kubernetes or TPU job: give "
            "--coordinator HOST:PORT --num-processes N --process-id I"
        ) from error
    except (RuntimeError, OSError, KeyError) as error:
        where = launch.coordinator or "the detected coordinator"
        raise UserError(
            f"not all processes reached {where} within {launch.connect_timeout} s: start all of "
            f"them, and check the address and port ({' '.join(str(error).split())[:200]})"
        ) from error
    end_instead_of_aborting()
    if not is_main_process():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends


def end_instead_of_aborting() -> None:
    """Exit with 1 and a sentence where JAX aborts, as it does if the process it reports to is gone.

    JAX aborts from a thread of its own; it has a callback for that, but Python cannot provide it.
    """
    function = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: exit_lost("its report is above"))
    _handlers.append(function)  # or it would be freed
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], None
    library.signal(signal.SIGABRT, ctypes.cast(function, ctypes.c_void_p))


_handlers: list[Any] = []


def exit_lost(why: str) -> NoReturn:
    """Say that another process is gone, and exit."""
    sentence = (
        f"error: process {jax.process_index()} has lost the others ({why}): start all of them "
        "again to continue from the newest checkpoint\n"
    )
    with suppress(OSError):
        os.write(2, sentence.encode())
    os._exit(1)


@contextmanager
def leave_on_exit() -> Iterator[None]:
    """Leave the job, if this process is part of one, when the program ends.

    After success, or if all were stopped, the processes leave together. A process that fails exits
    immediately with code 1, because the others may be waiting for it. They notice the broken
    connection within HEARTBEAT seconds and exit too.
    """
    try:
        yield
    except BaseException as end:
        if not jax.distributed.is_initialized():
            raise
        together = isinstance(end, SystemExit) and not end.code
        if together or isinstance(end.__context__, Stopped):
            with suppress(RuntimeError):  # another process failed, and has reported it
                jax.distributed.shutdown()
            raise
        exit_with_error(end)


def exit_with_error(end: BaseException) -> None:
    """Print the reason and exit immediately, without waiting for the other processes."""
    if isinstance(end, SystemExit):
        message = end.code if isinstance(end.code, str) else "interrupted"
    elif (cause := find_cause(end)) is not None:
        exit_lost(one_line(str(cause))[:200])
    else:
        message = "".join(traceback.format_exception(end)).rstrip()
    number = jax.process_index()
    print(message if number == 0 else f"process {number}: {message}", file=sys.stderr, flush=True)
    if number == 0:
        # Lets others that fail for the same reason report it before the connection breaks.
        time.sleep(1)
    os._exit(1)


def find_cause(error: BaseException | None) -> BaseException | None:
    """Find the error of JAX's run time among the causes of `error`, if there is one."""
    while error is not None and not isinstance(error, jax.errors.JaxRuntimeError):
        error = error.__cause__ or error.__context__
    return error


def get_process() -> tuple[int, int]:
    """Return the index of this process and the number of processes."""
    return jax.process_index(), jax.process_count()


def is_main_process() -> bool:
    """Whether this is process 0, the only one that prints and writes."""
    return jax.process_index() == 0


def is_distributed() -> bool:
    """Whether the job has several processes."""
    return jax.process_count() > 1


def wait_for_all(name: str) -> None:
    """Wait until every process has reached this point; `name` identifies it in errors."""
    if is_distributed():
        multihost_utils.sync_global_devices(name)


def finish_in_turn(tree: T) -> T:
    """Return `tree`, the result of a program; with several processes on CPUs, wait for it first.

    On CPUs, two concurrent programs with collectives can deadlock; other backends serialise them.
    """
    if is_distributed() and jax.default_backend() == "cpu":
        jax.block_until_ready(tree)
    return tree


class Agreement:
    """Share a value between processes: each call returns the largest value of the previous call.

    Answers lag one call behind, so that no process waits for another.
    """

    def __init__(self) -> None:
        self._asked: Any = None

    def __call__(self, value: int) -> int:
        """Return the largest `value` (0 or more) of the previous call; `value` if alone."""
        if not is_distributed():
            return value
        before, self._asked = self._asked, _start_maximum(value)
        return 0 if before is None else int(before)


def max_over_processes(value: int) -> int:
    """Return the largest `value` of all processes. All must call this, and wait for each other."""
    return int(_start_maximum(value)) if is_distributed() else value


def share_from_first(values: Sequence[float]) -> list[float]:
    """Return the values of the first process in every process. All must call this."""
    if not is_distributed():
        return list(values)
    words = np.asarray(values, np.float64).view(np.int32)  # JAX may have no float64
    return np.asarray(multihost_utils.broadcast_one_to_all(words)).view(np.float64).tolist()


def _start_maximum(value: int) -> Any:
    """Start computing the largest value of all processes; the array returned may be pending."""
    mesh = Mesh(sort_devices(), (AXIS,))
    rows = np.full(jax.local_device_count(), value, np.int32)
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return finish_in_turn(_maximum(mesh)(jax.make_array_from_process_local_data(sharding, rows)))


@cache
def _maximum(mesh: Mesh) -> Any:
    return jax.jit(lambda a: a.max(), out_shardings=NamedSharding(mesh, PartitionSpec()))


def sort_devices() -> Any:
    """Return all devices as an array, ordered by process.

    Process i then holds the i-th part of a batch.
    """
    return np.array(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))
