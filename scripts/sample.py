"""`jax-ddpm sample` from a source tree: python scripts/sample.py."""

from jax_ddpm.cli import main

if __name__ == "__main__":
    main("sample")
