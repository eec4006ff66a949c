"""`jax-ddpm convert`: weights of another implementation become a run, or a run's weights a file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from jax_ddpm.cli.arguments import find_value
from jax_ddpm.cli.ending import suggest
from jax_ddpm.cli.flags import Flat
from jax_ddpm.cli.help import Help
from jax_ddpm.cli.parsing import Parsed, parse
from jax_ddpm.config.jobs import Weights
from jax_ddpm.config.presets import PRESETS
from jax_ddpm.config.run import Config
from jax_ddpm.interop import PEERS, PeerName

EXAMPLES = (
    (
        "jax-ddpm convert model.pt --source lucidrains --out runs/a",
        "PyTorch's weights become a run",
    ),
    ("jax-ddpm convert runs/a --to torch", "a run's weights become a file for PyTorch"),
    (
        "jax-ddpm convert runs/a --to torch --source diffusers --out b.safetensors",
        "for that library",
    ),
)
IMPORT_HELP = Help(
    usage="jax-ddpm convert FILE --source NAME --out RUN [FLAGS]   (the other way: RUN --to torch)",
    summary="Make a run folder of a weight file. It can be sampled, evaluated and trained further. "
    "Settings that are not given come from the preset of the implementation.",
    examples=EXAMPLES,
    flags=(
        "--source",
        "--out",
        "--config",
        "--data.image-size",
        "--schedule",
        "--num-timesteps",
        "--prediction-type",
    ),
    more="jax-ddpm convert RUN --to torch --help shows the flags of the other direction.",
)
EXPORT_HELP = Help(
    usage="jax-ddpm convert RUN --to torch [FLAGS]",
    summary="Write the weights of a run as a file for a PyTorch implementation, and the "
    "constructor arguments of its network as JSON beside it.",
    examples=EXAMPLES,
    flags=("--source", "--out", "--weights", "--posthoc-ema", "--posthoc-step", "--checkpoint"),
)


@dataclass(frozen=True)
class ImportFlags:
    """Everything that importing takes."""

    file: tyro.conf.Positional[Path]
    """Weight file: .safetensors, .pt, .pth, .bin, .ckpt or .npz."""
    source: PeerName
    """The implementation that wrote it."""
    out: Path
    """Folder of the new run."""
    config: Path | None = None
    """JSON file with the constructor arguments of its network, if the weights do not tell them.
    None: the file of the same name beside the weights, or diffusers' config.json."""
    settings: Flat[Config] = field(default_factory=Config)


@dataclass(frozen=True)
class ExportFlags:
    """Everything that exporting takes."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    to: Literal["torch"]
    """torch: the names and layouts of a PyTorch state dict."""
    source: PeerName | None = None
    """The implementation that shall load the file; None: that of the run's network."""
    out: Path | None = None
    """File to write: .safetensors, .pt or .npz. None: SOURCE.safetensors in the run folder."""
    weights: Flat[Weights] = field(default_factory=Weights)


def read_import(args: Sequence[str]) -> Parsed[ImportFlags]:
    """The flags that `args` give; the others are those of the implementation's preset."""
    source = find_value("--source", args)
    preset = PRESETS[PEERS[source].preset] if source in PEERS else Config()
    default = ImportFlags(tyro.MISSING, tyro.MISSING, tyro.MISSING, settings=preset)
    return parse(ImportFlags, args, IMPORT_HELP, default=default)


def read_export(args: Sequence[str]) -> Parsed[ExportFlags]:
    """The flags that `args` give."""
    return parse(ExportFlags, args, EXPORT_HELP)


def read(args: Sequence[str]) -> Parsed[Any]:
    """The flags that `args` give, of the direction that they ask for."""
    exports = any(arg.partition("=")[0] == "--to" for arg in args)
    return read_export(args) if exports else read_import(args)


def run(args: Sequence[str]) -> None:
    """Read the command line and convert."""
    parsed = read(args)
    if isinstance(parsed.flags, ExportFlags):
        export_from(parsed)
    else:
        import_from(parsed)


def import_from(parsed: Parsed[ImportFlags]) -> None:
    """Make a run folder and say what can be done with it."""
    from jax_ddpm.jobs.convert import import_weights

    flags = parsed.flags
    with parsed.naming_flags_as_typed():
        import_weights(flags.file, flags.source, flags.out, flags.settings, flags.config)
    suggest("sample", flags.out)


def export_from(parsed: Parsed[ExportFlags]) -> None:
    """Write a weight file and say how to check it."""
    from jax_ddpm.jobs.convert import export_weights

    flags = parsed.flags
    with parsed.naming_flags_as_typed():
        found = export_weights(flags.run, flags.out, flags.source, flags.weights)
    suggest("parity", "--weights", found.file, "--source", found.source)
