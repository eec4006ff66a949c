"""`jax-ddpm bench` from a source tree: python scripts/bench.py."""

from jax_ddpm.cli import main

if __name__ == "__main__":
    main("bench")
