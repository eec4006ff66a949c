"""What Ho et al.'s code and pesser's PyTorch port of it load."""

from typing import Any

from jax_ddpm.interop.package import Package, Translation, show_code
from jax_ddpm.interop.process import Process
from jax_ddpm.models.architecture import ImageShape

SCHEDULES = {  # ours -> theirs
    "linear": "linear",
    "quadratic": "quad",
    "warmup10": "warmup10",
    "warmup50": "warmup50",
    "const": "const",
    "jsd": "jsd",
}
VARIANCES = {"fixed_large": "fixedlarge", "fixed_small": "fixedsmall"}
PORT = (
    "import json",
    "import torch",
    "from pytorch_diffusion.diffusion import Diffusion",
    "",
    'diffusion = Diffusion(json.load(open("diffusion.json")), json.load(open("model.json")))',
    'diffusion.model.load_state_dict(torch.load("model.pt", map_location=diffusion.device))',
    "diffusion.model.eval()",
    "images = diffusion.denoise(16)",
)
ORIGINAL = (
    "import json",
    "import numpy as np",
    "",
    'arguments = json.load(open("model.json"))',
    'values = np.load("model.npz")',
    '# After unet.model(x, t=t, name="model", **arguments) has made the variables:',
    'for variable in tf.global_variables("model"):',
    "    variable.load(values[variable.op.name], session)",
)


def write_port(found: Translation, process: Process, image_shape: ImageShape) -> Package:
    """Write the two configurations of pesser's Diffusion."""
    arguments = dict(found.arguments)
    del arguments["num_classes"]  # which its Model() does not have
    return Package(
        weights="model.pt",
        documents={"model.json": arguments, "diffusion.json": _describe(process)},
        peer="pesser's `pytorch_diffusion`",
        how=show_code(PORT),
        unsaid=tuple(process.list_unsaid(variance=process.variance, clips=True)),
    )


def write_original(found: Translation, process: Process, image_shape: ImageShape) -> Package:
    """Write the arguments of Ho et al.'s model(), and the values of its variables."""
    process_settings = _describe(process) | {
        "model_mean_type": "eps",
        "loss_type": "noisepred",
    }
    return Package(
        weights="model.npz",
        documents={"model.json": found.arguments, "diffusion.json": process_settings},
        peer="Ho et al.'s code",
        how=show_code(ORIGINAL),
        unsaid=tuple(process.list_unsaid(variance=process.variance, clips=True)),
    )


def _describe(process: Process) -> dict[str, Any]:
    """Describe the process in their words. Raises UserError for another one."""
    process.require_prediction("eps")
    process.require_fixed_variance()
    process.require_plain_times()
    ends = process.find_linear_ends()
    name = process.find_schedule(*SCHEDULES)
    if name is None and ends is None:
        raise process.refuse_schedule(", ".join(SCHEDULES))
    if name is None:
        start, end = ends or (0.0, 0.0)
        schedule = {"beta_schedule": "linear", "beta_start": start, "beta_end": end}
    else:
        schedule = {"beta_schedule": SCHEDULES[name], "beta_start": 1e-4, "beta_end": 0.02}
    return schedule | {
        "num_diffusion_timesteps": len(process.betas),
        "model_var_type": VARIANCES[process.variance],
    }
