"""`jax-ddpm evaluate` from a source tree: python scripts/evaluate.py."""

from jax_ddpm.cli import main

if __name__ == "__main__":
    main("evaluate")
