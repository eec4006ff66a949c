"""Most of a test is the compilation of programs that run once: leave out most of LLVM's passes.

At level 1 products and sums are fused as for users, which comparisons bit by bit need.
XLA_FLAGS=--xla_backend_optimization_level=3 brings all passes back. To be imported before JAX finds
its devices.
"""

import os

LEVEL = "--xla_backend_optimization_level"

if LEVEL not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {LEVEL}=1"
