"""Say a run in the words of another implementation: its tensors, arguments and process."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from jax_ddpm import runs
from jax_ddpm.config.run import Config, make_betas
from jax_ddpm.config.sample import SampleConfig, sampling_timesteps, visits_timesteps
from jax_ddpm.errors import UserError, join_or
from jax_ddpm.interop import PEERS, PeerName, from_torch, to_state_dict
from jax_ddpm.interop.package import Translation
from jax_ddpm.interop.process import Process
from jax_ddpm.models import ARCHITECTURES, Architecture


def find_translation(
    run: runs.Run, params: Any, sources: Sequence[PeerName] | None = None
) -> Translation:
    """Translate the weights for one of `sources`: the one that the run was imported from, if it is
    among them, or else the first that has its network. None: any implementation.

    Raises UserError if none has the run's network.
    """
    known = list(PEERS) if sources is None else list(sources)
    wanted = [run.imported_from] if run.imported_from in known else known
    reason = ""
    for name in wanted:
        try:
            return translate(run, params, name)
        except UserError as error:
            reason = f": {error}" if sources or len(wanted) == 1 else ""
    raise UserError(f"{join_or(wanted)} does not have the network of {run.folder}{reason}")


def translate(run: runs.Run, params: Any, source: PeerName) -> Translation:
    """Translate `params` for `source`. Raises UserError if it does not have this network.

    As a check, reads the result back: it must give the same configuration.
    """
    peer = PEERS[source]
    config = peer.express(fill_channels(run), run.image_shape)
    release = peer.of(config)
    if not isinstance(config, release.architecture):
        theirs, ours = (name_architecture(kind) for kind in (release.architecture, type(config)))
        raise UserError(f"its network is {theirs}, and the run's is {ours}")
    state_dict = to_state_dict(params, release)
    arguments = peer.list_arguments(config, run.image_shape)
    back = from_torch(state_dict, source, json.loads(json.dumps(arguments)))
    for name, value in asdict(back.config).items():
        expected = getattr(config, name, None)
        kept = name in peer.arguments or name not in ("compute_dtype", "dropout")
        if type(back.config) is not type(config) or (kept and value != expected):
            raise UserError(f"{name} would be {value}, not {expected}")
    return Translation(source, state_dict, arguments)


def name_architecture(kind: type[Architecture]) -> str:
    """The name of an architecture, as --model has it."""
    return next(name for name, known in ARCHITECTURES.items() if known is kind)


def fill_channels(run: runs.Run) -> Architecture:
    """The configuration of a run's network, with the channels that None leaves to the data."""
    config, channels = run.config.model, run.image_shape[-1]
    outputs = channels if run.config.diffusion.variance == "fixed" else 2 * channels
    learns = getattr(config, "learned_variance", False)
    known: dict[str, Any] = {
        "in_channels": channels,
        "channels": channels,
        "out_channels": outputs,
        "out_dim": None if outputs == channels or learns else outputs,
    }
    given = asdict(config)
    missing: dict[str, Any] = {
        name: value for name, value in known.items() if given.get(name, 0) is None
    }
    return replace(config, **missing)


def make_process(config: Config, sample: SampleConfig) -> Process:
    """Collect what other code must know. Raises UserError for levels between the timesteps."""
    diffusion = config.diffusion
    if not visits_timesteps(sample):
        raise UserError(
            f"{sample.spacing} spacing visits levels between the timesteps: choose another with "
            "--spacing"
        )
    return Process(
        schedule=None if diffusion.has_own_betas else diffusion.schedule,
        betas=make_betas(replace(diffusion, zero_terminal_snr=False)),
        zero_terminal_snr=diffusion.zero_terminal_snr,
        prediction_type=diffusion.prediction_type,
        learned_variance=None if diffusion.variance == "fixed" else diffusion.variance,
        variance=sample.variance,
        sampler=sample.sampler,
        timesteps=sampling_timesteps(sample, diffusion.num_timesteps)[:-1],
        clip_x_0=sample.clip_x_0,
        dynamic_threshold=sample.dynamic_threshold,
        eta=sample.eta,
        rederive_eps=sample.rederive_eps,
        rescale_timesteps=diffusion.rescale_timesteps,
    )
