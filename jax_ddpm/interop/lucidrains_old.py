"""The networks of `denoising_diffusion_pytorch` before 1.9: names, and what their shapes reveal."""

from typing import Any

from jax_ddpm.errors import UserError
from jax_ddpm.interop.annotated import LAYER_NORMS, NAMES, WS_NAMES, find_widths
from jax_ddpm.interop.peer import Shapes

DEFAULT_GROUPS = 8  # of group norms, which no shape reveals

V1_NAMES = [("time_mlp.0.weights", "temb.frequencies"), *LAYER_NORMS, *WS_NAMES]
RESNET_NAMES = [*LAYER_NORMS, *NAMES]
CONVNEXT_NAMES = [("fn.to_out", "proj_out"), ("net.3", "project"), *LAYER_NORMS, *NAMES]


def is_v1(shapes: Shapes) -> bool:
    """Whether the names are those of 0.19 to 1.8."""
    return "final_res_block.block1.proj.weight" in shapes and any(".2.fn.fn." in n for n in shapes)


def is_v0(shapes: Shapes) -> bool:
    """Whether the names are those of releases before 0.19."""
    return "final_conv.1.weight" in shapes


def infer_v1(shapes: Shapes) -> dict[str, Any]:
    """Infer the arguments of 0.27.3 to 1.7.0. Downsampling by a convolution is taken for 0.27's."""
    if "downs.0.2.fn.norm.b" in shapes:
        raise UserError("these are from release 0.19 to 0.26, which had another network")
    dim = shapes["time_mlp.1.weight"][0] // 4
    convolves = shapes.get("downs.0.3.weight", ())[2:] == (4, 4)
    found = {
        "family": "v1",
        "dim": dim,
        "init_dim": shapes["init_conv.weight"][0],
        "dim_mults": find_widths(shapes, r"downs\.(\d+)\.3(?:\.1)?\.weight", dim),
        "resnet_block_groups": DEFAULT_GROUPS,
        "downsampling": "conv" if convolves else "unshuffle",
        "cosine_attention": convolves,
        "input_channels": shapes["init_conv.weight"][1],
        "output_channels": shapes["final_conv.weight"][0],
    }
    if frequencies := shapes.get("time_mlp.0.weights"):
        found |= {"learned_sinusoidal_cond": True, "learned_sinusoidal_dim": 2 * frequencies[0]}
    return found


def infer_v0(shapes: Shapes) -> dict[str, Any]:
    """Infer the arguments of 0.7 to 0.9 and of 0.16 to 0.18."""
    out_dim, dim = shapes["final_conv.1.weight"][:2]
    convnext = "final_conv.0.ds_conv.weight" in shapes
    if convnext and "init_conv.weight" in shapes:
        raise UserError("these are from release 0.10 or 0.11, which had another network")
    end = "to_out" if convnext else r"to_out\.0"
    first = shapes["downs.0.0.ds_conv.weight" if convnext else "init_conv.weight"]
    channels = first[0] if convnext else first[1]
    if not convnext:
        _require_scale_and_shift(shapes, dim)
    return {
        "family": "v0",
        "dim": dim,
        "init_dim": None if convnext else first[0],
        "out_dim": None if out_dim == channels else out_dim,
        "dim_mults": find_widths(shapes, rf"downs\.(\d+)\.2\.fn\.fn\.{end}\.weight", dim),
        "channels": channels,
        "blocks": "convnext" if convnext else "resnet",
        "resnet_block_groups": DEFAULT_GROUPS,
        "with_time_emb": "time_mlp.1.weight" in shapes,
        "full_mid_attention": not convnext,
    }


def _require_scale_and_shift(shapes: Shapes, dim: int) -> None:
    if shapes["time_mlp.1.weight"][1] != dim:
        raise UserError(
            "their network embeds a noise level, not the timestep: it belongs to "
            "ContinuousTimeGaussianDiffusion, which cannot be converted"
        )
    if shapes["downs.0.0.mlp.1.weight"][0] == shapes["downs.0.0.block1.proj.weight"][0]:
        raise UserError(
            "these are from release 0.12 to 0.15, whose network is the one of annotated_layernorm: "
            "use --source annotated_layernorm"
        )
