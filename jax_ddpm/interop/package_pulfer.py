"""What BrianPulfer's script loads: MyDDPM with its constructor's arguments."""

from jax_ddpm.errors import UserError
from jax_ddpm.interop.package import Package, Translation, show_code
from jax_ddpm.interop.process import Process
from jax_ddpm.interop.pulfer import PULFER
from jax_ddpm.models.architecture import ImageShape

CODE = (
    "import json",
    "import torch",
    "from models import MyDDPM, MyUNet",
    "",
    'network = MyUNet(**json.load(open("model.json")))',
    'ddpm = MyDDPM(network, **json.load(open("ddpm.json")), device="cpu")',
    'ddpm.load_state_dict(torch.load("model.pt", map_location="cpu"))',
)


def write_pulfer(found: Translation, process: Process, image_shape: ImageShape) -> Package:
    """Write the arguments of MyUNet and MyDDPM. Raises UserError for another process."""
    process.require_prediction("eps")
    process.require_fixed_variance()
    process.require_plain_times()
    ends = process.find_linear_ends()
    if ends is None:
        raise process.refuse_schedule("linear")
    timesteps, rows = len(process.betas), found.arguments["n_steps"]
    if timesteps > rows:
        raise UserError(f"the run has {timesteps} timesteps, but its network only {rows} times")
    height, width, channels = image_shape
    ddpm = {
        "n_steps": timesteps,
        "min_beta": ends[0],
        "max_beta": ends[1],
        "image_chw": [channels, height, width],
    }
    return Package(
        weights="model.pt",
        documents={"model.json": found.arguments, "ddpm.json": ddpm},
        peer="B. Pulfer's `MyDDPM`",
        how=show_code(CODE),
        unsaid=tuple(process.list_unsaid(variance="fixed_large", clips=False)),
        prefix=PULFER.wrapper,
    )
