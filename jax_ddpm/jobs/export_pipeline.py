"""Export a run as the folder of a pipeline that diffusers loads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax_ddpm import runs
from jax_ddpm.config.jobs import EMA, Weights
from jax_ddpm.config.run import Config
from jax_ddpm.config.sample import change_settings
from jax_ddpm.errors import UserError
from jax_ddpm.interop.diffusers_pipeline import (
    WEIGHTS,
    list_call,
    name_pipeline,
    write_card,
    write_index,
    write_network,
    write_scheduler,
)
from jax_ddpm.interop.package import write_folder
from jax_ddpm.interop.process import Process
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.parameters import check_weights, load_params
from jax_ddpm.jobs.translate import make_process, translate


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
    require_pipeline(run.config)
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
    write_folder(out, documents, card, f"unet/{WEIGHTS}", found.state_dict)
    call = ", ".join(f"{name}={value}" for name, value in list_call(process).items())
    print(f"Wrote {out}: {description}, as a pipeline of diffusers")
    print(f"Next: {name_pipeline(process)}.from_pretrained({str(out)!r})({call})")
    return process


def require_pipeline(config: Config) -> None:
    """Raise UserError for a network that no pipeline calls as the run does."""
    timesteps = config.diffusion.num_timesteps
    if config.model.takes_label:
        raise UserError(
            "a pipeline of diffusers gives its network no label: export the network alone with "
            "--to torch"
        )
    if config.diffusion.rescale_timesteps and timesteps != 1000:
        raise UserError(
            f"--diffusion.rescale-timesteps with T = {timesteps}: diffusers gives its networks t, "
            "not t * 1000 / T"
        )
