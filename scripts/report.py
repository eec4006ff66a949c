"""`jax-ddpm report` from a source tree: python scripts/report.py."""

from jax_ddpm.cli import main

if __name__ == "__main__":
    main("report")
