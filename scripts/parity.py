"""`jax-ddpm parity` from a source tree: python scripts/parity.py."""

from jax_ddpm.cli import main

if __name__ == "__main__":
    main("parity")
