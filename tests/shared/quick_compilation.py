"""Most of a test is the compilation of programs that run once: leave out LLVM's optimisations.

XLA_FLAGS=--xla_backend_optimization_level=3 brings them back.
"""

import os

LEVEL = "--xla_backend_optimization_level"


def set_flags() -> None:
    """To be called before JAX finds its devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    if LEVEL not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {LEVEL}=0"
