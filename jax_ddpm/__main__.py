"""`python -m jax_ddpm` is `jax-ddpm`."""

from jax_ddpm.cli import main

if __name__ == "__main__":
    main()
