"""`jax-ddpm train` from a source tree: python scripts/train.py."""

from jax_ddpm.cli import main

if __name__ == "__main__":
    main("train")
