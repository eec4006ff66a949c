"""Skip most of LLVM's passes, because tests mostly compile programs that run once.

Level 1 still fuses products and sums as for users, which bit-by-bit comparisons need.
XLA_FLAGS=--xla_backend_optimization_level=3 brings all passes back. Import this before JAX finds
its devices.
"""

import os

LEVEL = "--xla_backend_optimization_level"
QUICK = f"{LEVEL}=1 --xla_cpu_use_fusion_emitters=false"

if LEVEL not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"
