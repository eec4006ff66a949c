"""`jax-ddpm convert`: import another implementation's weights as a run, or export a run's."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from jax_ddpm.cli.arguments import find_value
from jax_ddpm.cli.ending import suggest
from jax_ddpm.cli.flags import Flat
from jax_ddpm.cli.help import Help
from jax_ddpm.cli.parsing import Parsed, parse
from jax_ddpm.config.jobs import Weights
from jax_ddpm.config.presets import PRESETS
from jax_ddpm.config.run import Config
from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, PeerName, WeightsName
from jax_ddpm.interop.recognise import choose_peer
from jax_ddpm.interop.source import read_source
from jax_ddpm.jobs.export import EXPORTS, Order
from jax_ddpm.process.grids import GridName
from jax_ddpm.samplers import SamplerName

if TYPE_CHECKING:
    ExportName = str
else:
    ExportName = Literal[tuple(EXPORTS)]

MODEL_FLAGS = "--model."
EXAMPLES = (
    (
        "jax-ddpm convert model.pt --out runs/a",
        "import PyTorch weights as a run",
    ),
    ("jax-ddpm convert ddpm-cifar10-32 --out runs/b", "import a pipeline that diffusers saved"),
    ("jax-ddpm convert runs/a --to torch", "export a run's weights for PyTorch"),
    (
        "jax-ddpm convert runs/a --to diffusers --out pipeline",
        "export it as a pipeline of diffusers",
    ),
)
IMPORT_HELP = Help(
    usage="jax-ddpm convert FILE --out RUN [FLAGS]   (the other way: RUN --to torch)",
    summary="Make a run folder from a weight file, or from a folder that diffusers saved. You can "
    "sample it, evaluate it and train it further. A table shows each setting and its origin: what "
    "the files say, what you give, or else the implementation's preset.",
    examples=EXAMPLES,
    flags=(
        "--source",
        "--out",
        "--config",
        "--weights",
        "--prefix",
        "--data.image-size",
        "--schedule",
        "--num-timesteps",
        "--prediction-type",
    ),
    more="jax-ddpm convert RUN --to torch --help shows the flags for exporting.",
)
EXPORT_HELP = Help(
    usage="jax-ddpm convert RUN --to NAME [FLAGS]",
    summary="Write a run's weights to a file for a PyTorch implementation, with a JSON file beside "
    "it that holds the constructor arguments of the network; or write the folder of a pipeline "
    "that diffusers loads; or a folder with what another implementation's own code loads.",
    examples=EXAMPLES,
    flags=(
        "--to",
        "--source",
        "--out",
        "--sampler",
        "--steps",
        "--weights",
        "--posthoc-ema",
        "--posthoc-step",
        "--checkpoint",
    ),
)


@dataclass(frozen=True)
class ImportFlags:
    """The flags for importing."""

    file: tyro.conf.Positional[Path]
    """Weight file (.safetensors, .npz, or with PyTorch installed .pt, .pth, .bin, .ckpt), a folder
    with one, the index of a sharded one, or the folder of a pipeline that diffusers saved."""
    out: Path
    """Folder of the new run."""
    source: PeerName | None = None
    """The implementation that wrote it; None: the one that the names of the tensors tell."""
    config: Path | None = None
    """JSON file with the constructor arguments of its network that the weights do not reveal. None:
    the file of the same name beside the weights, or diffusers' config.json."""
    weights: WeightsName | None = None
    """Which weights to take from a trainer's file. None: the average if there is one."""
    prefix: str | None = None
    """Where the weights are in the file, if several sets fit, such as ema.model."""
    settings: Flat[Config] = field(default_factory=Config)


@dataclass(frozen=True)
class ExportFlags:
    """The flags for exporting."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    to: ExportName
    """torch: a weight file with the names and layouts of a PyTorch state dict. diffusers: the
    folder of a pipeline, which DDPMPipeline.from_pretrained loads. Others: a folder with what that
    code loads, its configuration, and a README with the lines that load it."""
    source: PeerName | None = None
    """The implementation that will load the weights; None: the one that the run's network is
    from."""
    out: Path | None = None
    """torch: file to write: .safetensors, .npz, or .pt if PyTorch is installed; None:
    SOURCE.safetensors in the run folder. Others: folder to write, which must be given."""
    sampler: SamplerName | None = None
    """diffusers, lucidrains, openai: the sampler that is written; None: the run's."""
    steps: int | None = None
    """diffusers, lucidrains, openai: its number of steps; None: the run's."""
    spacing: GridName | None = None
    """diffusers, lucidrains, openai: the spacing of its timesteps; None: the sampler's own, or else
    the run's."""
    weights: Flat[Weights] = field(default_factory=Weights)


def read_import(args: Sequence[str]) -> Parsed[ImportFlags]:
    """Read the flags in `args`; all others keep the values of the implementation's preset."""
    source = find_value("--source", args)
    preset = PRESETS[PEERS[source].preset] if source in PEERS else Config()
    default = ImportFlags(tyro.MISSING, tyro.MISSING, settings=preset)
    return parse(ImportFlags, args, IMPORT_HELP, default=default)


def read_first(args: Sequence[str]) -> Parsed[ImportFlags]:
    """Read all flags but the network's, as long as its implementation is not known."""
    kept, skips = [], False
    for arg in args:
        skips = arg.startswith(MODEL_FLAGS) or (skips and not arg.startswith("--"))
        if not skips:
            kept.append(arg)
    return read_import(kept)


def read_export(args: Sequence[str]) -> Parsed[ExportFlags]:
    """Read the flags in `args`."""
    return parse(ExportFlags, args, EXPORT_HELP)


def read(args: Sequence[str]) -> Parsed[Any]:
    """Read the flags in `args`: for exporting if --to is among them, else for importing."""
    if any(arg.partition("=")[0] == "--to" for arg in args):
        return read_export(args)
    return read_first(args) if find_value("--source", args) is None else read_import(args)


def run(args: Sequence[str]) -> None:
    """Read the command line and convert."""
    parsed = read(args)
    if isinstance(parsed.flags, ExportFlags):
        export_from(parsed)
    else:
        import_from(parsed, args)


def import_from(parsed: Parsed[ImportFlags], args: Sequence[str]) -> None:
    """Make a run folder and suggest the next command."""
    from jax_ddpm.jobs.convert import import_weights

    flags = parsed.flags
    with parsed.naming_flags_as_typed():
        _require_effects(parsed)
        source = read_source(flags.file, flags.config, flags.weights or "average")
        peer = choose_peer(source, flags.source)
    if flags.source is None:  # all other settings come from the peer's preset
        parsed = read_import([*args, "--source", peer])
    flags, given = parsed.flags, parsed.arguments.given
    typed = {to_setting(name): name for name in given if "." in name}
    with parsed.naming_flags_as_typed():
        import_weights(
            source,
            peer,
            flags.out,
            flags.settings,
            typed,
            weights=flags.weights,
            prefix=flags.prefix,
        )
    suggest("sample", flags.out)


def _require_effects(parsed: Parsed[ImportFlags]) -> None:
    """Raise UserError for flags of training that would change nothing."""
    reasons = {"--run": "--out names the new run", "--preset": "--source chooses the preset"}
    for flag, reason in reasons.items():
        if flag in parsed.arguments.given:
            raise UserError(f"{flag} has no effect here: {reason}")


def to_setting(flag: str) -> str:
    """The dotted name of a setting from its flag: "--data.image-size" is "data.image_size"."""
    return flag.removeprefix("--").replace("-", "_")


def export_from(parsed: Parsed[ExportFlags]) -> None:
    """Write what another implementation loads, and suggest how to check a weight file."""
    flags = parsed.flags
    given = {name: getattr(flags, name) for name in ("sampler", "steps", "spacing")}
    sampling = {name: value for name, value in given.items() if value is not None}
    with parsed.naming_flags_as_typed():
        order = Order(flags.run, flags.out, flags.source, flags.weights, sampling)
        found = EXPORTS[flags.to](order)
    if flags.to == "torch":
        suggest("parity", "--weights", found.file, "--source", found.source)
