"""`jax-ddpm train`: train a model in a run folder."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jax_ddpm.cli.arguments import expand, find_value
from jax_ddpm.cli.ending import suggest
from jax_ddpm.cli.flags import Flat
from jax_ddpm.cli.help import Help
from jax_ddpm.cli.parsing import Parsed, parse
from jax_ddpm.cli.start import StartFlags, start
from jax_ddpm.config.follow import Followed, follow
from jax_ddpm.config.presets import PRESETS, find_preset
from jax_ddpm.config.run import Config
from jax_ddpm.config.train_effects import require_effects
from jax_ddpm.errors import UserError

HELP = Help(
    usage="jax-ddpm train [FLAGS]",
    summary="Train a diffusion model. Everything goes into one run folder; run the same command "
    "again to resume.",
    examples=(
        ("jax-ddpm train", "10,000 Fashion-MNIST images, seven minutes on two CPU cores"),
        ("jax-ddpm train --run runs/short --steps 500 --seed 1", "the same, shorter"),
        ("jax-ddpm train --data.name folder --data.path DIR --data.image-size 64", "your pictures"),
    ),
    flags=(
        "--preset",
        "--run",
        "--data.name",
        "--data.path",
        "--data.image-size",
        "--steps",
        "--batch-size",
        "--seed",
        "--bf16",
        "--dry-run",
    ),
    more=f"presets: {', '.join(PRESETS)}. You can leave out the section of a flag if no other flag "
    "ends the same way: --schedule is --diffusion.schedule.",
)
SHORT = {
    "--steps": ("--train.num-steps",),
    "--bf16": ("--model.compute-dtype", "bfloat16"),
}


@dataclass(frozen=True)
class TrainFlags:
    """The flags of `jax-ddpm train`."""

    config: Flat[Config] = field(default_factory=Config)
    betas_file: Path | None = None
    """A file with the betas for --diffusion.betas: .npy, or text with one number after the other.
    """
    dry_run: bool = False
    """Print the settings, and what would be computed and written, without doing it."""
    start: Flat[StartFlags] = field(default_factory=StartFlags)


def read(args: Sequence[str]) -> tuple[Parsed[TrainFlags], list[Followed]]:
    """Read the flags in `args`. Also returns the settings that were adjusted to them.

    All other settings come from the preset in --preset. If --preset is missing and --run names an
    existing run, they come from that run.
    """
    words, _ = expand(args, SHORT)
    name, folder = find_value("--preset", words), find_value("--run", words)
    if name is None and folder is not None and holds_run(Path(folder)):
        from jax_ddpm import runs

        stored = TrainFlags(runs.load(Path(folder)).config)
        help_ = HELP._replace(defaults=f"those of {folder}")
        parsed = parse(TrainFlags, args, help_, default=stored, short=SHORT)
        return put_betas(parsed), []
    preset = find_preset(name or Config.preset)
    help_ = HELP._replace(defaults=f"preset {preset.preset}")
    parsed = put_betas(parse(TrainFlags, args, help_, default=TrainFlags(preset), short=SHORT))
    config, followed = follow(parsed.flags.config, preset, parsed.arguments.given)
    from jax_ddpm import runs

    adopted = runs.adopt(config, parsed.arguments.given)
    if adopted != config:
        config, followed = adopted, []
    return parsed._replace(flags=replace(parsed.flags, config=config)), followed


def put_betas(parsed: Parsed[TrainFlags]) -> Parsed[TrainFlags]:
    """Put the numbers in --betas-file in place of --diffusion.betas, as if they had been typed."""
    flags, given = parsed.flags, parsed.arguments.given
    if flags.betas_file is None:
        return parsed
    if "--diffusion.betas" in given:
        raise UserError("--betas-file and --diffusion.betas both give the betas: give one of them")
    from jax_ddpm.files.numbers import read_numbers

    betas = read_numbers(flags.betas_file)
    diffusion = replace(flags.config.diffusion, betas=betas)
    flags = replace(flags, config=replace(flags.config, diffusion=diffusion))
    given = {**given, "--diffusion.betas": "--betas-file"}
    return Parsed(flags, parsed.arguments._replace(given=given))


def holds_run(folder: Path) -> bool:
    """Whether `folder` is a run, also if its configuration must be restored."""
    from jax_ddpm import runs

    return runs.holds_run(folder)


def run(args: Sequence[str]) -> None:
    """Read the command line, join the other processes, and train."""
    parsed, followed = read(args)
    flags = parsed.flags
    with parsed.naming_flags_as_typed():
        if not holds_run(flags.config.folder):  # an older run may have been begun with such flags
            require_effects(flags.config, parsed.arguments.given)
        if not flags.dry_run:
            start(flags.start)
        if followed:
            found = ", ".join(f"{flag} {value} (was {was})" for flag, value, was in followed)
            print(f"Adjusted to fit: {found}", flush=True)
        if flags.dry_run:
            from jax_ddpm.jobs.describe import describe_run

            print(describe_run(flags.config))
        else:
            from jax_ddpm.jobs.report.ending import list_next
            from jax_ddpm.jobs.train import train

            run = train(flags.config)
            for each in list_next(run, run.config.train.num_steps):
                suggest(*each.words, why=each.why)
