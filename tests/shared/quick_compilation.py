"""Skip most of LLVM's passes, because tests mostly compile programs that run once.

Level 1 still fuses products and sums as for users, which bit-by-bit comparisons need.
XLA_FLAGS=--xla_backend_optimization_level=3 brings all passes back. Import this before JAX finds
its devices.
"""

import os
from importlib import metadata

LEVEL = "--xla_backend_optimization_level"
# Compiles in three quarters of the time. XLA ends the process for a flag that it does not know,
# as newer versions do for this one.
OLD = tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11)
QUICK = f"{LEVEL}=1" + " --xla_cpu_use_fusion_emitters=false" * OLD

if LEVEL not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"
