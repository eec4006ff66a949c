"""Export a run as the folder of a pipeline that diffusers loads."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jax_ddpm import runs
from jax_ddpm.config.jobs import EMA, Weights
from jax_ddpm.config.run import Config, make_betas
from jax_ddpm.config.sample import (
    SampleConfig,
    change_settings,
    sampling_timesteps,
    visits_timesteps,
)
from jax_ddpm.errors import UserError
from jax_ddpm.interop.diffusers_pipeline import (
    WEIGHTS,
    Process,
    write_card,
    write_index,
    write_network,
    write_scheduler,
)
from jax_ddpm.interop.files import write_weights
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.export import translate
from jax_ddpm.jobs.parameters import check_weights, load_params


def export_pipeline(
    folder: Path, out: Path, weights: Weights = EMA, sampling: Mapping[str, Any] | None = None
) -> Process:
    """Write a folder that diffusers' `DDPMPipeline.from_pretrained` loads, with a model card.

    `sampling` holds the sampler, the number of steps and the spacing, where they are not the run's.
    Prints the call that draws the images of the run. Returns what the pipeline knows of the run.

    Raises UserError for a run that such a pipeline cannot have, and if `out` exists. The folder is
    written completely or not at all.
    """
    if out.exists():
        raise UserError(f"{out} exists: choose another folder with --out")
    run = runs.load(folder)
    check_weights(run.config, weights)
    sample = change_settings(run.config.sample, sampling or {})
    process = make_process(run.config, sample)
    scheduler = write_scheduler(process)
    params, description = load_params(run, build(run.config, run.image_shape), weights)
    found = translate(run, params, "diffusers")
    documents = {
        "model_index.json": write_index(process, scheduler),
        "scheduler/scheduler_config.json": scheduler,
        "unet/config.json": write_network(found.arguments),
    }
    card = write_card(process, folder.resolve().name, run.image_shape)
    _write_folder(out, documents, card, found.state_dict)
    call = ", ".join(f"{name}={value}" for name, value in process.call.items())
    print(f"Wrote {out}: {description}, as a pipeline of diffusers")
    print(f"Next: {process.pipeline}.from_pretrained({str(out)!r})({call})")
    return process


def make_process(config: Config, sample: SampleConfig) -> Process:
    """Collect what a pipeline must know. Raises UserError for what no pipeline has."""
    diffusion, timesteps = config.diffusion, config.diffusion.num_timesteps
    if config.model.takes_label:
        raise UserError(
            "a pipeline of diffusers gives its network no label: export the network alone with "
            "--to torch --source diffusers"
        )
    if diffusion.rescale_timesteps and timesteps != 1000:
        raise UserError(
            f"--diffusion.rescale-timesteps with T = {timesteps}: diffusers gives its networks t, "
            "not t * 1000 / T"
        )
    if not visits_timesteps(sample):
        raise UserError(
            f"{sample.spacing} spacing visits levels between the timesteps: choose another with "
            "--spacing"
        )
    learned = diffusion.variance
    return Process(
        schedule=diffusion.schedule if diffusion.betas is None else None,
        betas=make_betas(replace(diffusion, zero_terminal_snr=False)),
        zero_terminal_snr=diffusion.zero_terminal_snr,
        prediction_type=diffusion.prediction_type,
        learned_variance=None if learned == "fixed" else learned,
        variance=sample.variance,
        sampler=sample.sampler,
        timesteps=sampling_timesteps(sample, timesteps)[:-1],
        clip_x_0=sample.clip_x_0,
        dynamic_threshold=sample.dynamic_threshold,
        eta=sample.eta,
        rederive_eps=sample.rederive_eps,
    )


def _write_folder(out: Path, documents: dict[str, Any], card: str, state_dict: Any) -> None:
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for name, document in documents.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document, indent=2) + "\n")
        (temporary / "README.md").write_text(card)
        write_weights(temporary / "unet" / WEIGHTS, state_dict)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
