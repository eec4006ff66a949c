"""Several processes that work as one: how they meet, agree, and part."""

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_ddpm.errors import Stopped, UserError, flag_name

HEARTBEAT = 20  # seconds without a sign of life after which a process counts as dead
AXIS = "devices"
T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """Where this process stands among those of one job; not part of what the job computes."""

    distributed: bool = False
    """This is one of several processes of one job. On SLURM, under Open MPI, on Cloud TPUs and in
    Kubernetes the rest is found out; elsewhere it is said by the three flags below."""
    coordinator: str | None = None
    """HOST:PORT of process 0, the same for all processes; the port must be free there."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """The number of this one, from 0."""
    connect_timeout: int = 300
    """Seconds to wait for the other processes."""


def require_complete(launch: Launch) -> None:
    """Raise UserError, in one sentence, for flags that do not say where this process stands."""
    names = ("coordinator", "num_processes", "process_id")
    given = {name: getattr(launch, name) for name in names}
    present = [flag_name(name) for name, value in given.items() if value is not None]
    if not launch.distributed and present:
        raise UserError(f"{present[0]} is given without --distributed: add it, or leave all out")
    if present and len(present) < len(names):
        missing = [flag_name(name) for name, value in given.items() if value is None]
        raise UserError(
            f"{' and '.join(present)} without {' and '.join(missing)}: by hand, --distributed "
            "takes --coordinator HOST:PORT --num-processes N --process-id I"
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
    """Meet the other processes, if there are any; from then on only process 0 prints.

    To be called before anything touches a device. Raises UserError for incomplete flags, where no
    cluster is found, and if the others do not come in time.
    """
    require_complete(launch)
    if launch.connect_timeout < 1:
        raise UserError(f"--connect-timeout is {launch.connect_timeout}, but must be at least 1")
    if not launch.distributed:
        return
    # JAX's own handler of SIGTERM would take the signal from the loop's.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            launch.coordinator, launch.num_processes, launch.process_id,
            initialization_timeout=launch.connect_timeout,
            heartbeat_timeout_seconds=HEARTBEAT,
        )  # fmt: skip
    except ValueError as error:  # nothing found out, and nothing said
        raise UserError(
            "--distributed found no SLURM, Open MPI, Kubernetes or TPU job around it: say "
            "--coordinator HOST:PORT --num-processes N --process-id I"
        ) from error
    except (RuntimeError, OSError, KeyError) as error:
        where = launch.coordinator or "the coordinator that was found"
        raise UserError(
            f"{where} did not bring all processes together within {launch.connect_timeout} s: "
            f"start all of them, and check address and port ({' '.join(str(error).split())[:200]})"
        ) from error
    if not is_main_process():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the end of the process


@contextmanager
def leave_on_exit() -> Iterator[None]:
    """End this process's part in the job, if it has one, as the program ends.

    With the others if all went well or all stopped; else at once and with exit code 1, for one that
    fails cannot wait for others that wait for it. They learn of it by the broken connection, or
    after HEARTBEAT seconds at the latest, and then end too.
    """
    try:
        yield
    except BaseException as end:
        if not jax.distributed.is_initialized():
            raise
        together = isinstance(end, SystemExit) and not end.code
        if together or isinstance(end.__context__, Stopped):
            with suppress(RuntimeError):  # another has failed, which it has said itself
                jax.distributed.shutdown()
            raise
        fail(end)


def fail(end: BaseException) -> None:
    """Say why and exit, whatever the other processes do."""
    if isinstance(end, SystemExit):
        said = end.code if isinstance(end.code, str) else "interrupted"
    elif isinstance(end, jax.errors.JaxRuntimeError):
        said = f"error: lost touch with the other processes ({str(end).splitlines()[0][:200]})"
    else:
        said = "".join(traceback.format_exception(end)).rstrip()
    number = jax.process_index()
    print(said if number == 0 else f"process {number}: {said}", file=sys.stderr, flush=True)
    if number == 0:
        time.sleep(1)  # those that fail for the same reason can say so before the line is cut
    os._exit(1)


def get_process() -> tuple[int, int]:
    """Return the index of this process and the number of processes."""
    return jax.process_index(), jax.process_count()


def is_main_process() -> bool:
    """Whether this is the one that prints and writes: process 0."""
    return jax.process_index() == 0


def is_distributed() -> bool:
    """Whether there are others."""
    return jax.process_count() > 1


def wait_for_all(name: str) -> None:
    """Return when every process has come to this place, which `name` tells from others."""
    if is_distributed():
        multihost_utils.sync_global_devices(name)


def finish_in_turn(tree: T) -> T:
    """`tree`, the result of a program; on CPUs of several processes once the program has ended.

    There programs that send messages and run at the same time can wait for each other for ever;
    other devices run them one by one.
    """
    if is_distributed() and jax.default_backend() == "cpu":
        jax.block_until_ready(tree)
    return tree


class Agreement:
    """What is asked for on any process is known on all of them at the same call, one call later.

    Later, for so nobody waits: the answer to the question of the call before is long there.
    """

    def __init__(self) -> None:
        """Nothing has been asked."""
        self._asked: Any = None

    def __call__(self, value: int) -> int:
        """The largest `value` (0 or more) of the call before; of one process, of this call."""
        if not is_distributed():
            return value
        before, self._asked = self._asked, _start_maximum(value)
        return 0 if before is None else int(before)


def max_over_processes(value: int) -> int:
    """The largest `value` of all processes, each of which must ask for it and waits for it."""
    return int(_start_maximum(value)) if is_distributed() else value


def _start_maximum(value: int) -> Any:
    """The largest value of all processes, as an array that need not be there yet."""
    mesh = Mesh(sort_devices(), (AXIS,))
    rows = np.full(jax.local_device_count(), value, np.int32)
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return finish_in_turn(_maximum(mesh)(jax.make_array_from_process_local_data(sharding, rows)))


@cache
def _maximum(mesh: Mesh) -> Any:
    return jax.jit(lambda a: a.max(), out_shardings=NamedSharding(mesh, PartitionSpec()))


def sort_devices() -> Any:
    """All devices as an array, those of process 0 first, then those of process 1, and so on.

    So the rows of a batch that process i holds are the i-th part of it.
    """
    return np.array(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))
