"""`jax-ddpm convert` from a source tree: python scripts/convert.py."""

from jax_ddpm.cli import main

if __name__ == "__main__":
    main("convert")
