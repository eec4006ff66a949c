"""`jax-ddpm plot` from a source tree: python scripts/plot.py."""

from jax_ddpm.cli import main

if __name__ == "__main__":
    main("plot")
