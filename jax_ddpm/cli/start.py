"""What every long command does first: set up the compilation cache, and join other processes."""

from dataclasses import dataclass, field

from jax_ddpm.cli.flags import Flat
from jax_ddpm.devices import processes
from jax_ddpm.devices.compile_cache import enable_compilation_cache
from jax_ddpm.devices.processes import Launch


@dataclass(frozen=True)
class StartFlags:
    """How this process starts. Does not change the results."""

    compile_cache: str | None = None
    """Folder that keeps compiled programs, so that the next start is quick. off: keep none. None:
    the folder in JAX_COMPILATION_CACHE_DIR, or else a private one in your user cache."""
    launch: Flat[Launch] = field(default_factory=Launch)


def start(flags: StartFlags) -> None:
    """Turn on the compilation cache, and join the other processes if there are any."""
    enable_compilation_cache(flags.compile_cache)
    processes.join(flags.launch)
