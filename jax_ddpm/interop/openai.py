"""The UNetModel of OpenAI's guided-diffusion and improved-diffusion."""

import re
from typing import Any

from jax_ddpm.errors import UserError
from jax_ddpm.interop.openai_facts import describe
from jax_ddpm.interop.peer import Peer, Shapes, WeightLayout
from jax_ddpm.models import GuidedDiffusionConfig, ImprovedDiffusionConfig

NAMES = [
    ("time_embed.0", "temb.dense_0"),
    ("time_embed.2", "temb.dense_1"),
    ("input_blocks.0.0", "conv_in"),
    ("input_blocks.{i}.{j}", "input_{i}_{j}"),
    ("middle_block.{j}", "mid_{j}"),
    ("output_blocks.{i}.{j}", "output_{i}_{j}"),
    ("out.0", "norm_out"),
    ("out.2", "conv_out"),
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "temb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "shortcut"),
    ("op", "downsample"),
    ("conv", "upsample"),
]
LAYOUTS: dict[str, WeightLayout] = {"qkv.weight": "pointwise_1d", "proj_out.weight": "pointwise_1d"}

# Flags of its scripts that repeat what the shapes tell; see clean_arguments.
REPEATING_FLAGS = ("learn_sigma", "class_cond")
HEADS_OF_SCRIPTS = 4  # their default; the constructor's is 1

# These arguments do not change results, or have only one possible value here.
WITHOUT_EFFECT = ("image_size", "use_fp16", "dims", "use_checkpoint")
IMPROVED_ARGUMENTS = (
    "in_channels",
    "model_channels",
    "out_channels",
    "num_res_blocks",
    "attention_resolutions",
    "dropout",
    "channel_mult",
    "conv_resample",
    "dims",
    "num_classes",
    "use_checkpoint",
    "num_heads",
    "num_heads_upsample",
    "use_scale_shift_norm",
    *REPEATING_FLAGS,
)
GUIDED_ARGUMENTS = (
    *IMPROVED_ARGUMENTS,
    "image_size",
    "use_fp16",
    "num_head_channels",
    "resblock_updown",
    "use_new_attention_order",
)


def infer(shapes: Shapes) -> dict[str, Any]:
    """Infer all arguments that have an effect, except the heads and the order of their channels."""
    model_channels = shapes["time_embed.0.weight"][1]
    stages, resampling = infer_stages(shapes)
    blocks = find_numbers(shapes, "output_blocks.{}.0.in_layers.2.weight")
    per_stage = len(blocks) // stages
    features = [shapes[f"output_blocks.{i}.0.in_layers.2.weight"][0] for i in blocks[::-per_stage]]
    attended = find_numbers(shapes, "output_blocks.{}.1.qkv.weight")
    first = shapes["output_blocks.0.0.emb_layers.1.weight"][0]
    return resampling | {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "model_channels": model_channels,
        "channel_mult": tuple(find_factor(f, model_channels) for f in features),
        "num_res_blocks": per_stage - 1,
        "attention_resolutions": tuple(
            2 ** (stages - 1 - i // per_stage) for i in attended[::-per_stage]
        ),
        "num_classes": shapes.get("label_emb.weight", (None,))[0],
        "use_scale_shift_norm": first == 2 * features[-1],
    }


def infer_stages(shapes: Shapes) -> tuple[int, dict[str, bool]]:
    """Infer the number of resolutions from the resampling layers, and the kind of these layers."""
    if convs := find_numbers(shapes, "input_blocks.{}.0.op.weight"):
        return len(convs) + 1, {"conv_resample": True}
    if ups := find_numbers(shapes, r"output_blocks.{}.[12].in_layers.2.weight"):
        return len(ups) + 1, {"resblock_updown": True}
    # Pooling has no parameters, so its number is missing among the input blocks.
    present = {name.split(".")[1] for name in shapes if name.startswith("input_blocks.")}
    gaps = len(find_numbers(shapes, "output_blocks.{}.0.in_layers.2.weight")) - len(present)
    return gaps + 1, {"conv_resample": False} if gaps else {}


def find_numbers(shapes: Shapes, pattern: str) -> list[int]:
    """Find the numbers that stand for {} in names like `pattern`, in ascending order."""
    regex = re.compile(pattern.replace(".", r"\.").replace("{}", r"(\d+)"))
    return sorted(int(match[1]) for name in shapes if (match := regex.fullmatch(name)))


def find_factor(features: int, channels: int) -> float:
    """Find a factor with `int(factor * channels) == features`."""
    if features % channels == 0:
        return features // channels
    factor = features / channels
    return factor if int(factor * channels) == features else (features + 0.5) / channels


def read_flags(given: dict[str, Any]) -> dict[str, Any]:
    """Translate the flags of the scripts, such as num_channels, to the constructor's arguments.

    There, attention_resolutions are sides of feature maps in pixels, as text; channel_mult is text,
    and empty text stands for factors that the shapes determine.
    """
    arguments = dict(given)
    if "num_channels" in arguments:
        channels = arguments.pop("num_channels")
        if arguments.setdefault("model_channels", channels) != channels:
            raise UserError(
                f"num_channels is {channels}, but model_channels is {arguments['model_channels']}"
            )
        arguments.setdefault("num_heads", HEADS_OF_SCRIPTS)
    if isinstance(mult := arguments.get("channel_mult"), str):
        del arguments["channel_mult"]
        if mult:
            arguments["channel_mult"] = _split_numbers("channel_mult", mult)
    if isinstance(sides := arguments.get("attention_resolutions"), str):
        size = arguments.get("image_size")
        if not isinstance(size, int) or size < 1:
            raise UserError(
                f"attention_resolutions is {sides!r}, which are sides in pixels: give image_size, "
                "too, or downsampling rates, such as (4, 8)"
            )
        numbers = _split_numbers("attention_resolutions", sides)
        rates = tuple(int(size // side) for side in numbers if side <= size)
        arguments["attention_resolutions"] = rates
    return arguments


def _split_numbers(name: str, text: str) -> tuple[float, ...]:
    """Split "16,8" into positive numbers, which are integers where possible."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number < 2**31 for number in numbers):
        raise UserError(f"{name} is {text!r}, but it must be numbers, such as '16,8'")
    return tuple(int(number) if number.is_integer() else number for number in numbers)


def make_guided_config(**arguments: Any) -> GuidedDiffusionConfig:
    """Make guided-diffusion's configuration, in which channel multiples need not be integers."""
    arguments = clean_arguments(arguments)
    mult = tuple(float(m) for m in arguments.pop("channel_mult"))
    return GuidedDiffusionConfig(channel_mult=mult, **arguments)


def make_improved_config(**arguments: Any) -> ImprovedDiffusionConfig:
    """Make improved-diffusion's configuration. Raises ValueError for resampling ResNet blocks."""
    if arguments.pop("resblock_updown", False):
        raise ValueError("only guided_diffusion has ResNet blocks that change the resolution")
    return ImprovedDiffusionConfig(**clean_arguments(arguments))


def clean_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Drop the arguments without effect.

    Raises ValueError for data other than images, and for flags that contradict the shapes.
    """
    arguments = dict(arguments)
    learned, conditional = (arguments.pop(name, None) for name in REPEATING_FLAGS)
    inputs, outputs = arguments["in_channels"], arguments["out_channels"]
    if learned is not None and outputs != inputs * (2 if learned else 1):
        raise ValueError(
            f"learn_sigma is {learned}, but the network has {inputs} input and {outputs} output "
            "channels"
        )
    if conditional is not None and bool(conditional) != (arguments["num_classes"] is not None):
        classes = arguments["num_classes"] or "no"
        raise ValueError(f"class_cond is {conditional}, but the network has {classes} classes")
    if arguments.get("dims", 2) != 2:
        raise ValueError(f"dims is {arguments['dims']}, but it must be 2, for images")
    rates = arguments["attention_resolutions"]
    rest = {name: value for name, value in arguments.items() if name not in WITHOUT_EFFECT}
    return rest | {"attention_resolutions": tuple(sorted(rates))}


GUIDED_DIFFUSION = Peer(
    make_config=make_guided_config,
    arguments=GUIDED_ARGUMENTS,
    infer=infer,
    names=NAMES,
    preset="guided-diffusion",
    architecture=GuidedDiffusionConfig,
    layouts=LAYOUTS,
    read_flags=read_flags,
    describe=describe,
    unknowable=("num_heads", "num_head_channels", "num_heads_upsample", "use_new_attention_order"),
)

IMPROVED_DIFFUSION = Peer(
    make_config=make_improved_config,
    arguments=IMPROVED_ARGUMENTS,
    infer=infer,
    names=NAMES,
    preset="improved-diffusion",
    architecture=ImprovedDiffusionConfig,
    layouts=LAYOUTS,
    read_flags=read_flags,
    describe=describe,
    unknowable=("num_heads", "num_heads_upsample"),
)
