"""`jax-ddpm prepare`: write a data set, of your pictures for TensorFlow Datasets or of emoji."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax_ddpm.cli.ending import suggest
from jax_ddpm.cli.help import Help
from jax_ddpm.cli.parsing import Parsed, parse
from jax_ddpm.config.run import Config, DataConfig, SourceConfig
from jax_ddpm.config.train_effects import require_effects

EXAMPLES = (
    ("jax-ddpm prepare --name mine --data.name folder --data.path DIR", "a folder of pictures"),
    ("jax-ddpm prepare --name mine --data.name arrays --data.path a.npz", "a NumPy file"),
    ("jax-ddpm prepare emoji --out emoji.npz", "32x32 colour emoji, drawn from a font"),
)
HELP = Help(
    usage="jax-ddpm prepare --name NAME [FLAGS]   or   jax-ddpm prepare emoji [FLAGS]",
    summary="Write images as a data set that TensorFlow Datasets and training read quickly "
    "(array_record).",
    examples=EXAMPLES,
    flags=(
        "--name",
        "--out",
        "--data.name",
        "--data.path",
        "--data.image-size",
        "--data.channels",
        "--data.crop",
        "--data.resize",
        "--data.skip-bad",
    ),
    more="jax-ddpm prepare emoji --help shows the flags for emoji.",
)
EMOJI_HELP = Help(
    usage="jax-ddpm prepare emoji [FLAGS]",
    summary="Make a small data set of 32x32 colour images from the emoji in Debian's font.",
    examples=EXAMPLES,
    flags=("--font", "--out"),
)


@dataclass(frozen=True)
class PrepareFlags:
    """The flags of `jax-ddpm prepare`."""

    name: str
    """Name of the new data set: lower-case letters, digits and _."""
    out: Path = Path.home() / "tensorflow_datasets"
    """Folder for prepared data sets; give it to training as --data.path."""
    data: SourceConfig = field(default_factory=SourceConfig)


@dataclass(frozen=True)
class EmojiFlags:
    """The flags of `jax-ddpm prepare emoji`."""

    font: Path = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    """Font file, from Debian's package fonts-noto-color-emoji."""
    out: Path = Path("emoji.npz")
    """NumPy file to write, with images, uint8 [n, 32, 32, 3]."""


def read(args: Sequence[str]) -> Parsed[Any]:
    """Read the flags in `args`: those for emoji if the first word is "emoji"."""
    if args and args[0] == "emoji":
        return parse(EmojiFlags, args[1:], EMOJI_HELP)
    return parse(PrepareFlags, args, HELP)


def run(args: Sequence[str]) -> None:
    """Read the command line, write the data set, and suggest how to train on it."""
    parsed = read(args)
    with parsed.naming_flags_as_typed():
        if isinstance(parsed.flags, EmojiFlags):
            write_emoji(parsed.flags)
        else:
            data = DataConfig(**vars(parsed.flags.data))
            require_effects(Config(data=data), parsed.arguments.given)
            write_dataset(parsed.flags)


def write_dataset(flags: PrepareFlags) -> None:
    """Write pictures as a data set of TensorFlow Datasets."""
    from jax_ddpm.jobs.prepare_data import prepare_dataset

    prepare_dataset(flags.name, flags.out, flags.data)
    suggest("train", "--data.name", flags.name, "--data.path", flags.out)


def write_emoji(flags: EmojiFlags) -> None:
    """Write the emoji as a NumPy file."""
    from jax_ddpm.jobs.prepare_emoji import prepare_emoji

    prepare_emoji(flags.font, flags.out)
    suggest("train", "--data.name", "arrays", "--data.path", flags.out, "--run", "runs/emoji")
