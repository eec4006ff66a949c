"""`jax-ddpm prepare emoji` from a source tree: python scripts/make_emoji_data.py."""

from jax_ddpm.cli import main

if __name__ == "__main__":
    main("prepare", "emoji")
