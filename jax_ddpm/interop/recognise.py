"""Recognise the implementation that wrote a set of weights, from the names of its tensors."""

import re
from collections.abc import Collection
from typing import NamedTuple

from jax_ddpm.errors import UserError, join_or
from jax_ddpm.interop.source import PIPELINE, Source
from jax_ddpm.interop.tree import flatten

OPENAI = ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight")
ANNOTATED = ("downs.0.2.fn.norm.weight", "final_conv.1.weight")


class Signature(NamedTuple):
    """What only the files of one implementation have, or of a few that share all names."""

    names: tuple[str, ...]
    """Tensors that all of its networks have, without the prefix."""
    telling_name: str | None = None
    """A pattern of names that tells it from others with the same `names`."""
    telling_arguments: frozenset[str] = frozenset()
    """Constructor arguments or flags that tell it from others with the same `names`."""


SIGNATURES: dict[str, Signature] = {
    "torch_ref": Signature(("temb.dense.0.weight", "up.0.block.0.shortcut.weight")),
    "ho": Signature(("temb/dense0/W", "conv_in/W")),
    "pesser": Signature(("temb.dense.0.weight", "up.0.block.0.nin_shortcut.weight")),
    "diffusers": Signature(("time_embedding.linear_1.weight", "conv_norm_out.weight")),
    "guided_diffusion": Signature(
        OPENAI,
        r"output_blocks\.\d+\.[12]\.in_layers\.2\.weight",  # resblock_updown
        frozenset({"num_head_channels", "resblock_updown", "use_new_attention_order"}),
    ),
    "improved_diffusion": Signature(OPENAI, None, frozenset({"sigma_small"})),
    "lucidrains": Signature(("final_res_block.block1.proj.weight", "downs.0.2.mem_kv")),
    "pulfer": Signature(("time_embed.weight", "te_mid.0.weight", "b_mid.0.ln.weight")),
    "annotated": Signature(ANNOTATED),
    "annotated_layernorm": Signature(
        ("downs.0.2.fn.norm.g", "downs.0.2.fn.fn.to_out.1.g", "final_conv.1.weight")
    ),
    "annotated_ws": Signature(("downs.0.2.fn.norm.weight", "final_res_block.block1.proj.weight")),
    "epita": Signature(ANNOTATED),
}


def choose_peer(source: Source, stated: str | None = None) -> str:
    """Choose the implementation that wrote `source`: the `stated` one, or the recognised one.

    Raises UserError if none or several are recognised and none is stated, and if another one is
    recognised than the stated one.
    """
    candidates = recognise(source)
    if stated is None:
        return _require_one(candidates, source)
    if candidates and stated not in candidates:
        example = SIGNATURES[candidates[0]].names[-1]
        raise UserError(
            f"--source is {stated}, but tensors such as {example} are those of "
            f"{join_or(candidates)}"
        )
    return stated


def _require_one(candidates: list[str], source: Source) -> str:
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise UserError(
            f"--source is missing: the weights are those of {join_or(candidates)}, whose tensors "
            "have the same names"
        )
    names = ", ".join(list(flatten(source.tensors))[:3]) or "nothing"
    raise UserError(
        f"--source is missing: {names}, ... are the names of no implementation that is known here "
        f"({', '.join(SIGNATURES)})"
    )


def recognise(source: Source) -> list[str]:
    """List the implementations that may have written `source`, from its names and documents."""
    names = list(flatten(source.tensors))
    ends = {end for name in names for end in list_ends(name)}
    candidates = [peer for peer, one in SIGNATURES.items() if ends.issuperset(one.names)]
    arguments = (source.arguments or {}).keys()
    if telling := [peer for peer in candidates if _tells(SIGNATURES[peer], ends, arguments)]:
        return telling
    classes = {document.get("_class_name") for document in source.documents.values()}
    if not candidates and (PIPELINE in source.documents or "UNet2DModel" in classes):
        return ["diffusers"]
    return candidates


def list_ends(name: str) -> list[str]:
    """List a dotted or slashed name without each of its prefixes."""
    return [name, *(name[match.end() :] for match in re.finditer(r"[./]", name))]


def _tells(signature: Signature, ends: Collection[str], arguments: Collection[str]) -> bool:
    pattern = signature.telling_name
    by_name = pattern is not None and any(re.fullmatch(pattern, end) for end in ends)
    return by_name or not signature.telling_arguments.isdisjoint(arguments)
