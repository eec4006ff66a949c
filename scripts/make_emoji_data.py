"""Make a colour data set: `python scripts/make_emoji_data.py --out emoji.npz`."""

import sys

from jax_ddpm.cli import parsing as cli
from jax_ddpm.data import emoji


def main() -> None:
    """Parse the command line and write the data set."""
    emoji.run(cli.parse(emoji.EmojiArgs, sys.argv[1:], prog="make_emoji_data.py"))


if __name__ == "__main__":
    cli.run(main)
