"""Make a colour data set: `python scripts/make_emoji_data.py --out emoji.npz`."""

import sys

from jax_ddpm.cli import parsing as cli
from jax_ddpm.jobs.prepare_emoji import EmojiArgs, prepare_emoji


def main() -> None:
    """Parse the command line and write the data set."""
    prepare_emoji(cli.parse(EmojiArgs, sys.argv[1:], prog="make_emoji_data.py"))


if __name__ == "__main__":
    cli.run(main)
