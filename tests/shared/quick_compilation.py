"""Most of a test is the compilation of programs that run once: leave out most of LLVM's passes.

At level 1 products and sums are fused as for users, which comparisons bit by bit need.
XLA_FLAGS=--xla_backend_optimization_level=3 brings all passes back.
"""

import os

LEVEL = "--xla_backend_optimization_level"


def set_flags() -> None:
    """To be called before JAX finds its devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    if LEVEL not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {LEVEL}=1"
