"""Export a run as a checkpoint that the Trainer of lucidrains' package loads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_ddpm import runs
from jax_ddpm.config.jobs import EMA, Weights
from jax_ddpm.config.run import Config, make_betas
from jax_ddpm.config.sample import change_settings
from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, to_state_dict
from jax_ddpm.interop.lucidrains_export import Training, write_trainer
from jax_ddpm.interop.package import Package, write_folder, write_readme
from jax_ddpm.interop.process import list_settings
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.parameters import check_weights, choose_params, load_state
from jax_ddpm.jobs.translate import make_process, translate
from jax_ddpm.process.schedules import make_schedule
from jax_ddpm.process.weighting import loss_weight

SOURCE = "lucidrains"


def export_trainer(
    folder: Path, out: Path, weights: Weights = EMA, sampling: Mapping[str, Any] | None = None
) -> Package:
    """Write a folder with what Trainer.load reads, the arguments of the classes, and a README.

    The file holds both the average that `weights` chooses and the raw parameters. `sampling` holds
    the sampler, the number of steps and the spacing, where they are not the run's.

    Raises UserError for a run that these classes cannot have, and if `out` exists. The folder is
    written completely or not at all.
    """
    if out.exists():
        raise UserError(f"{out} exists: choose another folder with --out")
    run = runs.load(folder)
    check_weights(run.config, weights)
    process = make_process(run.config, change_settings(run.config.sample, sampling or {}))
    state = load_state(run, build(run.config, run.image_shape), weights.checkpoint)
    params, description = choose_params(run, state, weights)
    found = translate(run, params, SOURCE)
    release = PEERS[SOURCE].of(run.config.model)
    raw = to_state_dict(jax.tree.map(np.asarray, state.params), release)
    training = describe_training(run.config, int(state.step), raw)
    try:
        package, checkpoint = write_trainer(found, process, training, run.image_shape)
    except UserError as error:
        raise UserError(f"{SOURCE} cannot have the run {folder}: {error}") from error
    settings = list_settings(process, run.image_shape)
    readme = write_readme(package, folder.resolve().name, settings)
    write_folder(out, package.documents, readme, package.weights, checkpoint)
    print(f"Wrote {out}: {description}, for {SOURCE}; README.md there says how to load it")
    for line in package.unsaid:
        print(f"Not said: {line}")
    return package


def describe_training(config: Config, step: int, raw: Mapping[str, np.ndarray]) -> Training:
    """Collect what a Trainer's checkpoint holds of the training of `config`."""
    diffusion, train = config.diffusion, config.train
    weight = loss_weight(
        make_schedule(make_betas(diffusion)),
        diffusion.weighting,
        diffusion.prediction_type,
        diffusion.min_snr_gamma,
        p2_gamma=diffusion.p2_gamma,
        p2_k=diffusion.p2_k,
    )
    vb_weight = diffusion.vb_weight
    return Training(
        step=step,
        raw=raw,
        learning_rate=train.learning_rate,
        betas=(float(train.betas[0]), float(train.betas[1])),
        loss_weight=np.asarray(weight),
        weighting=diffusion.weighting,
        min_snr_gamma=diffusion.min_snr_gamma,
        vb_weight=diffusion.num_timesteps / 1000 if vb_weight is None else vb_weight,
        loss_type=diffusion.loss_type,
        offset_noise=diffusion.offset_noise,
    )
