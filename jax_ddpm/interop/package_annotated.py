"""What the Annotated Diffusion Model and EPITA's practical load: a state dict of their Unet."""

from jax_ddpm.interop.package import Package, Translation, show_code
from jax_ddpm.interop.process import Process
from jax_ddpm.models.architecture import ImageShape

# Our schedule -> the function that makes it, by the version of the text.
SCHEDULES = {
    "linear": "linear_beta_schedule",
    "cosine_clipped": "cosine_beta_schedule",
    "sigmoid": "sigmoid_beta_schedule",
}
MORE = {
    "annotated": {"quadratic": "quadratic_beta_schedule"},
    "annotated_layernorm": {"quadratic_slip": "quadratic_beta_schedule"},
    "annotated_ws": {"quadratic": "quadratic_beta_schedule"},
    "epita": {"cosine_epita": "cosine_beta_schedule"},
}
NAMES = {
    "annotated": "the notebook of the Annotated Diffusion Model, June 2022",
    "annotated_layernorm": "the Annotated Diffusion Model as first published",
    "annotated_ws": "the Annotated Diffusion Model",
    "epita": "EPITA's practical",
}


def write_annotated(found: Translation, process: Process, image_shape: ImageShape) -> Package:
    """Write the arguments of Unet. Raises UserError for a process that the text does not have."""
    process.require_prediction("eps")
    process.require_fixed_variance()
    process.require_plain_times()
    known = SCHEDULES | MORE.get(found.source, {})
    schedule = process.find_schedule(*known)
    if schedule is None:
        raise process.refuse_schedule(", ".join(known))
    arguments = dict(found.arguments)
    standardised = arguments.pop("weight_standardization", None)
    how = [
        "import json",
        "import torch",
        "",
        'model = Unet(**json.load(open("model.json")))',
        'model.load_state_dict(torch.load("model.pt", map_location="cpu"))',
        f"timesteps = {len(process.betas)}",
        f"betas = {known[schedule]}(timesteps=timesteps)",
        f"samples = sample(model, image_size={image_shape[0]}, batch_size=64, "
        f"channels={image_shape[2]})",
    ]
    note = ""
    if standardised is not None:
        between = "from" if standardised == "divide" else "not from"
        note = (
            f"\nTake a version of the text that is {between} October 2023 to November 2024, when "
            "kernels were divided by their inverse deviation.\n"
        )
    return Package(
        weights="model.pt",
        documents={"model.json": arguments},
        peer=NAMES[found.source],
        how=f"{show_code(how)}\n{note}".rstrip(),
        unsaid=tuple(process.list_unsaid(variance="fixed_small", clips=False)),
    )
