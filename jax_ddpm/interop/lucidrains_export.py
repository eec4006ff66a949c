"""What the Trainer of lucidrains' package loads: a checkpoint, and the arguments of its classes."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jax_ddpm.errors import UserError
from jax_ddpm.interop.package import Package, Translation, show_code
from jax_ddpm.interop.process import Process
from jax_ddpm.models.architecture import ImageShape
from jax_ddpm.process.grids import timestep_grid
from jax_ddpm.process.schedules import Schedule, make_schedule

WEIGHTS = "model-1.pt"  # what Trainer.load(1) reads
OBJECTIVES = {"eps": "pred_noise", "x_0": "pred_x0", "v": "pred_v"}
SCHEDULES = {"linear_rescaled": "linear", "cosine": "cosine", "sigmoid_cumprod": "sigmoid"}
FIRST = "1.5.8"  # the first release with loss_weight, whose network differs
GROUP_NORMS = "1.11.1"
LATEST = "2.3.4"
OURS = ("downsampling", "cosine_attention", "full_mid_attention", "with_time_emb")


class Training(NamedTuple):
    """What a Trainer's checkpoint holds of a run's training."""

    step: int
    raw: Mapping[str, np.ndarray]
    """The weights without averaging, under the names of the package."""
    learning_rate: float
    betas: tuple[float, float]
    """The decays of Adam."""
    loss_weight: np.ndarray
    """The weight of each timestep."""
    weighting: str
    min_snr_gamma: float
    vb_weight: float
    loss_type: str
    offset_noise: float


def write_trainer(
    found: Translation, process: Process, training: Training, image_shape: ImageShape
) -> tuple[Package, dict[str, Any]]:
    """Write the arguments of Unet and GaussianDiffusion, and the checkpoint.

    Raises UserError for a run that these classes cannot have.
    """
    release = choose_release(found.arguments)
    _require_process(process, found.arguments)
    learned = process.learned_variance is not None
    documents = {
        "unet.json": write_unet(found.arguments, release),
        "diffusion.json": write_diffusion(process, training, image_shape, release),
    }
    tensors = write_buffers(process, training)
    tensors |= {f"model.{name}": array for name, array in found.state_dict.items()}
    raw = tensors | {f"model.{name}": array for name, array in training.raw.items()}
    kind = "LearnedGaussianDiffusion" if learned else "GaussianDiffusion"
    package = Package(
        weights=WEIGHTS,
        documents=documents,
        peer=f"`{kind}` and `Trainer` of denoising_diffusion_pytorch, release {release}",
        how=_say_how(kind, release, training, process),
        unsaid=tuple(_list_unsaid(process)),
    )
    return package, write_checkpoint(raw, tensors, training, release)


def choose_release(arguments: Mapping[str, Any]) -> str:
    """Choose the release that has the network. Raises UserError if its Trainer reads other files.

    Before 1.5, the objective was no part of the file.
    """
    if "full_mid_attention" in arguments or arguments.get("downsampling") == "conv":
        raise UserError(
            "the network is one of releases before 0.32, whose files do not hold the objective: "
            "export the network alone with --to torch"
        )
    if "downsampling" in arguments:
        if arguments["cosine_attention"]:
            raise UserError("no release has cosine_attention without convolutions that downsample")
        return FIRST
    return LATEST if arguments["resnet_block_groups"] is None else GROUP_NORMS


def _require_process(process: Process, arguments: Mapping[str, Any]) -> None:
    process.require_plain_times()
    if arguments["learned_sinusoidal_cond"] or arguments["random_fourier_features"]:
        raise UserError("its GaussianDiffusion takes no network with learned frequencies")
    if process.final_betas[-1] == 1:
        raise UserError("its code divides by the signal, which is 0 at the run's last timestep")
    if process.learned_variance == "learned":
        raise UserError("its code has learned variances between the two fixed ones only")
    if process.learned_variance is not None:
        process.require_prediction("eps")
        if arguments["self_condition"]:
            raise UserError("its LearnedGaussianDiffusion takes no self-conditioned network")


def write_unet(arguments: Mapping[str, Any], release: str) -> dict[str, Any]:
    """Write the arguments of Unet; a JSON list stands for a tuple."""
    later = ("dropout",) if release != LATEST else ("resnet_block_groups",)
    return {name: a for name, a in arguments.items() if name not in (*OURS, *later)}


def write_diffusion(
    process: Process, training: Training, image_shape: ImageShape, release: str
) -> dict[str, Any]:
    """Write the arguments of GaussianDiffusion."""
    height, width, _ = image_shape
    if release == FIRST and height != width:
        raise UserError(f"release {FIRST} makes square images only, not {height}x{width}")
    capped = training.weighting == "min_snr"
    named = process.find_schedule(*SCHEDULES)
    arguments = {
        "image_size": height if height == width else [height, width],
        "timesteps": len(process.betas),
        "sampling_timesteps": len(process.timesteps) if process.sampler == "ddim" else None,
        "objective": OBJECTIVES[process.prediction_type],
        "beta_schedule": "cosine" if named is None else SCHEDULES[named],
        "ddim_sampling_eta": process.eta,
        "min_snr_loss_weight": capped,
        "min_snr_gamma": training.min_snr_gamma,
    }
    if process.learned_variance is not None:
        arguments["sampling_timesteps"] = None  # it has no DDIM
        arguments["vb_loss_weight"] = training.vb_weight
    if release == FIRST:
        return arguments | {"loss_type": "l1" if training.loss_type == "l1" else "l2"}
    return arguments | {"offset_noise_strength": training.offset_noise}


def write_buffers(process: Process, training: Training) -> dict[str, np.ndarray]:
    """Write the buffers of GaussianDiffusion, which take the place of those it computes."""
    tables = make_schedule(process.final_betas, clipped_log_variance="floor", dtype=jnp.float32)
    names = [field.name for field in fields(Schedule)]
    buffers = {name: np.asarray(getattr(tables, name), np.float32) for name in names}
    return buffers | {"loss_weight": np.asarray(training.loss_weight, np.float32)}


def write_checkpoint(
    raw: Mapping[str, np.ndarray],
    average: Mapping[str, np.ndarray],
    training: Training,
    release: str,
) -> dict[str, Any]:
    """Write what Trainer.save does; the optimiser starts anew, with the run's learning rate."""
    numbers = {
        "initted": np.array([True]),  # a vector, as ema_pytorch once had it; scalars load it, too
        "step": np.array([training.step]),
    }
    ema = {f"online_model.{name}": array for name, array in raw.items()}
    ema |= {f"ema_model.{name}": array for name, array in average.items()}
    group = {
        "lr": training.learning_rate,
        "betas": training.betas,
        "eps": 1e-8,
        "weight_decay": 0,
        "amsgrad": False,
        "maximize": False,
        "params": list(range(sum(name.startswith("model.") for name in raw))),
    }
    return {
        "step": training.step,
        "model": dict(raw),
        "opt": {"state": {}, "param_groups": [group]},
        "ema": numbers | ema,
        "scaler": None,
        "version": release,
    }


def _list_unsaid(process: Process) -> list[str]:
    """How the images of the run differ from those of `sample`."""
    total, steps = len(process.betas), len(process.timesteps)
    if process.sampler != "ddim" or process.learned_variance is not None:
        return list(process.list_unsaid(variance="fixed_small", clips=True))
    unsaid = list(process.list_clipping(clips=True))
    if steps == total and process.eta != 1:
        unsaid.append(f"ddim in {steps} steps; its code then has ancestral sampling")
    elif not np.array_equal(timestep_grid(total, steps, "lucidrains")[:-1], process.timesteps):
        unsaid.append("other timesteps; its code takes equal steps from T - 1 to -1")
    if not process.rederive_eps:
        unsaid.append("the network's own eps; its code derives it again from the clipped image")
    return unsaid


def _say_how(kind: str, release: str, training: Training, process: Process) -> str:
    code = show_code(
        (
            "import json",
            "import torch",
            f"from denoising_diffusion_pytorch import {kind}, Trainer, Unet",
            "",
            "def read(name):  # a list in JSON is a tuple there",
            "    values = json.load(open(name))",
            "    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}",
            "",
            f'diffusion = {kind}(Unet(**read("unet.json")), **read("diffusion.json"))',
            'average = torch.load("model-1.pt", map_location="cpu", weights_only=True)["ema"]',
            'start = "ema_model."',
            "diffusion.load_state_dict(",
            "    {n[len(start):]: a for n, a in average.items() if n.startswith(start)}",
            ")",
            "images = diffusion.sample(batch_size=4)",
            "",
            "# or train on:",
            'trainer = Trainer(diffusion, "path/to/images", results_folder=".")',
            "trainer.load(1)",
            "trainer.train()",
        )
    )
    lines = [f"Install `denoising_diffusion_pytorch=={release}`.", code]
    if process.find_schedule(*SCHEDULES) is None:
        lines.append(
            "The package has no name for the run's schedule. `beta_schedule` only fills a place: "
            "loading puts the run's tables there."
        )
    lines.append(
        f"The optimiser starts anew at step {training.step}. The run was trained with the loss "
        f"{training.loss_type} and the weighting {training.weighting}, whose weights are in "
        "`loss_weight`."
    )
    return "\n\n".join(lines)
