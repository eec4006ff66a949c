"""`jax-ddpm prepare` from a source tree: python scripts/prepare_data.py."""

from jax_ddpm.cli import main

if __name__ == "__main__":
    main("prepare")
