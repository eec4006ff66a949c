"""Import weights of other implementations as runs."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jax_ddpm import runs
from jax_ddpm.config.run import Config, DataConfig, validate
from jax_ddpm.config.sample import describe_low_start
from jax_ddpm.config.train_effects import require_effects
from jax_ddpm.errors import UserError, flag_name
from jax_ddpm.files.atomic import write_folder_atomically
from jax_ddpm.interop import PEERS, Network, PeerName, WeightsName
from jax_ddpm.interop.facts import ASSUMED, Fact, Missing, Question, merge, show_value
from jax_ddpm.interop.network import read_network
from jax_ddpm.interop.source import Source, choose_inside
from jax_ddpm.interop.unwrap import holds_average
from jax_ddpm.jobs.build import build, open_data
from jax_ddpm.runs.checkpoint import open_checkpoints, save

# What determines the images of a run; the table names the assumed ones too.
SHOWN = (
    "data.image_size",
    "diffusion.num_timesteps",
    "diffusion.schedule",
    "diffusion.prediction_type",
    "diffusion.variance",
    "diffusion.rescale_timesteps",
    "sample.sampler",
    "sample.variance",
    "sample.clip_x_0",
)
# The settings that belong to the weights; all others may be chosen otherwise.
OF_THE_WEIGHTS = (
    "diffusion.schedule",
    "diffusion.betas",
    "diffusion.num_timesteps",
    "diffusion.zero_terminal_snr",
    "diffusion.prediction_type",
    "diffusion.variance",
    "diffusion.rescale_timesteps",
)
CHANNELS: dict[int | None, Literal[1, 3]] = {1: 1, 3: 3}  # that data can have
MODEL_SETTINGS = ("compute_dtype", "dropout")  # the only ones that leave the network the same


class Described(NamedTuple):
    """The configuration of a run, the size of its images if known, and where settings are from."""

    config: Config
    size: tuple[int, int] | None
    facts: list[Fact]


def import_weights(
    given: Source,
    source: PeerName,
    out: Path,
    settings: Config,
    typed: Mapping[str, str] | None = None,
    *,
    weights: WeightsName | None = None,
    prefix: str | None = None,
) -> runs.Run:
    """Make a run folder from what another program saved, ready to be sampled or trained further.

    `given` comes from `read_source`. `settings` provides what it does not say; use the preset of
    `source`, for example. `typed` holds the settings that the user has chosen, such as
    "data.image_size", with the flags that chose them. `weights` and `prefix` choose among several
    sets of weights, see `from_torch`. Prints where each setting comes from.

    Raises UserError if the weights do not fit the network, for settings that a run cannot have or
    that contradict each other, and if `out` exists. The folder is written completely or not at all.
    """
    if out.exists():
        raise UserError(f"{out} exists: choose another folder with --out")
    typed = typed or {}
    asked = Question(given, {what: find_setting(settings, what) for what in typed})
    facts = merge(PEERS[source].describe(asked))
    weights = choose_inside(given.path, weights)
    network = read_network(given, source, weights=weights, prefix=prefix)
    _require_choice(given, weights)
    described = apply_facts(add_network(settings, network, typed), facts, typed)
    shape = choose_image_shape(described, network)
    run = runs.Run(out, described.config, shape, imported_from=source)
    validate(described.config)
    require_effects(described.config, {flag_name(name) for name in typed})
    write_run(run, network)
    print_table(described, shape)
    count = sum(leaf.size for leaf in jax.tree.leaves(network.params))
    size = "x".join(map(str, shape))
    what = f"{count:,} parameters of {source} ({network.origin})"
    print(f"Wrote {out}: {what}, for images of {size}")
    sample = described.config.sample
    if low := describe_low_start(sample, described.config.diffusion.num_timesteps):
        print(f"As its files say, {low}")
    return run


def _require_choice(given: Source, weights: WeightsName | None) -> None:
    """Raise UserError for --weights raw if nothing else is there."""
    if weights == "raw" and not holds_average(given.tensors):
        raise UserError(
            f"--weights raw has no effect: {given.path or 'the source'} holds one set of weights, "
            "without an average"
        )


def add_network(settings: Config, network: Network, typed: Mapping[str, str]) -> Config:
    """Put the network into `settings`. Raises UserError if the user has chosen another network."""
    model, data = network.config, settings.data
    for what, flag in typed.items():
        section, _, name = what.partition(".")
        settable = name in PEERS[network.source].settable and hasattr(model, name)
        if section == "model" and name not in MODEL_SETTINGS and not settable:
            raise UserError(f"{flag} is not possible here: the network is the one of the weights")
        if section == "model" and not hasattr(model, name):
            raise UserError(
                f"{flag} is not possible here: the network of the weights has no {name}"
            )
        if section == "model":
            model = replace(model, **{name: find_setting(settings, what)})
    channels = model.image_channels
    if data.channels is not None and "data.channels" not in typed:
        data = replace(data, channels=CHANNELS.get(channels, data.channels))
    diffusion = settings.diffusion
    if model.num_labels is None and "diffusion.label_dropout" not in typed:
        diffusion = replace(diffusion, label_dropout=0.0)
    return replace(settings, model=model, data=data, diffusion=diffusion, run=None)


def apply_facts(settings: Config, facts: Mapping[str, Fact], typed: Mapping[str, str]) -> Described:
    """Change `settings` to what the facts say, where the user has not chosen otherwise.

    Raises UserError for a choice that contradicts the weights, and for a setting that we do not
    have unless the user has chosen another.
    """
    chosen, size = [], None
    _require_one_schedule(facts, typed)
    for what, fact in facts.items():
        section, _, name = what.partition(".")
        if what in typed:
            _require_agreement(settings, fact, typed[what])
            continue
        if isinstance(fact.value, Missing):
            flag = flag_name(name, f"--{section}.")
            hint = "" if section == "model" else f"; choose another with {flag}"
            raise UserError(f"{fact.origin}: {fact.value.reason}{hint}")
        chosen.append(fact)
        value = fact.value
        if what == "data.image_size":
            size = value if isinstance(value, tuple) else (value, value)
            value = None if isinstance(value, tuple) else value
        part = replace(getattr(settings, section), **{name: value})
        settings = replace(settings, **{section: part})
    settings = _limit_num_steps(settings, typed)
    return Described(settings, size, [*chosen, *list_others(settings, facts, typed)])


def _require_one_schedule(facts: Mapping[str, Fact], typed: Mapping[str, str]) -> None:
    """Raise UserError if the user has chosen a schedule and the file has betas, or vice versa."""
    for what, other in (("schedule", "betas"), ("betas", "schedule")):
        flag, fact = typed.get(f"diffusion.{what}"), facts.get(f"diffusion.{other}")
        if flag and fact:
            raise UserError(
                f"{flag} contradicts {fact.origin}, which has the {other} {show_value(fact.value)}"
            )


def _require_agreement(settings: Config, fact: Fact, flag: str) -> None:
    value = find_setting(settings, fact.what)
    if isinstance(fact.value, Missing):
        return
    if fact.what in OF_THE_WEIGHTS and fact.origin != ASSUMED and value != fact.value:
        raise UserError(
            f"{flag} is {show_value(value)}, but {fact.origin} says {show_value(fact.value)}: "
            "leave the flag out"
        )


def _limit_num_steps(settings: Config, typed: Mapping[str, str]) -> Config:
    """Lower the number of sampling steps to T, unless the user has chosen it."""
    sample, most = settings.sample, settings.diffusion.num_timesteps
    if "sample.num_steps" in typed or sample.num_steps <= most:
        return settings
    return replace(settings, sample=replace(sample, num_steps=most))


def list_others(
    settings: Config, facts: Mapping[str, Fact], typed: Mapping[str, str]
) -> Iterator[Fact]:
    """List the settings that the user has chosen, and those that no fact determines."""
    for what, flag in typed.items():
        if what in facts or what in SHOWN:
            yield Fact(what, find_setting(settings, what), flag)
    for what in SHOWN:
        named = what == "diffusion.schedule" and settings.diffusion.betas is not None
        if what not in facts and what not in typed and not named:
            yield Fact(what, find_setting(settings, what), f"{ASSUMED}, as in {settings.preset}")


def find_setting(settings: Config, what: str) -> Any:
    """Find a setting by its dotted name."""
    value: Any = settings
    for name in what.split("."):
        value = getattr(value, name)
    return value


def choose_image_shape(described: Described, network: Network) -> tuple[int, int, int]:
    """Choose the shape of the images: from the source, the settings, the data or the network."""
    height, width, channels = network.config.example_shape
    data: DataConfig = described.config.data
    if described.size is not None:
        return *described.size, channels
    if data.image_size is not None:
        return data.image_size, data.image_size, channels
    of_data = open_data(data).image_shape
    return of_data if of_data[-1] == channels else (height, width, channels)


def print_table(described: Described, shape: tuple[int, int, int]) -> None:
    """Print what was found, its value, and where it comes from."""
    rows = [("setting", "value", "from")]
    for what, value, origin in sorted(described.facts):
        shown = "x".join(map(str, shape[:2])) if what == "data.image_size" else show_value(value)
        rows.append((what, shown, origin))
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    for what, shown, origin in rows:
        print(f"{what:{widths[0]}}  {shown:{widths[1]}}  {origin}")


def write_run(run: runs.Run, network: Network) -> None:
    """Write a run folder at step 0, with the parameters of `network` as all averages too."""
    with write_folder_atomically(run.folder) as temporary:
        draft = replace(run, folder=temporary)
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), network.params)
        start = jax.jit(build(run.config, run.image_shape).start_state)  # one program, not hundreds
        with open_checkpoints(draft.checkpoints) as checkpoints:
            save(checkpoints, start(params), runs.describe(run))
        runs.write_config(draft)
