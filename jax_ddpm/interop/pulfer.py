"""The MyUNet of BrianPulfer's DDPM tutorial."""

from typing import Any

from jax_ddpm.interop.facts import Fact, Question
from jax_ddpm.interop.peer import Peer, Shapes
from jax_ddpm.interop.tree import find_tensor
from jax_ddpm.models import PulferConfig

# Suffixes of its stage names, such as b1 and te1 -> our names of the stages.
STAGES = {
    "1": "down_0",
    "2": "down_1",
    "3": "down_2",
    "_mid": "mid",
    "4": "up_2",
    "5": "up_1",
    "_out": "up_0",
}


def infer(shapes: Shapes) -> dict[str, Any]:
    """Infer both arguments from the shape of the time embedding."""
    n_steps, time_emb_dim = shapes["time_embed.weight"]
    return {"n_steps": n_steps, "time_emb_dim": time_emb_dim}


def describe(question: Question) -> list[Fact]:
    """Describe the chain: its length is the number of rows of the table of times."""
    table = find_tensor(question.source.tensors, "time_embed.weight")
    rows = () if table is None else table.shape[:1]
    return [Fact("diffusion.num_timesteps", n, "shape of time_embed.weight") for n in rows]


PULFER = Peer(
    make_config=PulferConfig,
    arguments=("n_steps", "time_emb_dim"),
    infer=infer,
    preset="pulfer",
    architecture=PulferConfig,
    describe=describe,
    wrapper="network.",  # of MyDDPM
    names=[
        *((f"te{end}", f"{stage}.temb") for end, stage in STAGES.items()),
        *((f"b{end}.{{j}}", f"{stage}.block_{{j}}") for end, stage in STAGES.items()),
        ("0", "dense_0"),
        ("2", "dense_1"),
        ("ln", "norm"),
        ("down1", "down_0.downsample"),
        ("down2", "down_1.downsample"),
        ("down3.0", "down_2.downsample_0"),
        ("down3.2", "down_2.downsample_1"),
        ("up1.0", "mid.upsample_0"),
        ("up1.2", "mid.upsample_1"),
        ("up2", "up_2.upsample"),
        ("up3", "up_1.upsample"),
    ],
)
