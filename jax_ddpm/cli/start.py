"""What every long command does first: meet the other processes of its job."""

from dataclasses import dataclass, field

from jax_ddpm.cli.flags import Flat
from jax_ddpm.devices import processes
from jax_ddpm.devices.processes import Launch


@dataclass(frozen=True)
class StartFlags:
    """How this process starts; not part of what it computes."""

    launch: Flat[Launch] = field(default_factory=Launch)


def start(flags: StartFlags) -> None:
    """Join the other processes, if there are any."""
    processes.join(flags.launch)
