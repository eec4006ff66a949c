"""Recognise the implementation that wrote a set of weights, from the names of its tensors."""

import re
from collections.abc import Collection
from typing import NamedTuple

from jax_ddpm.errors import UserError, join_or
from jax_ddpm.interop.source import PIPELINE, Source
from jax_ddpm.interop.tree import flatten

OPENAI = ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight")
ANNOTATED = ("downs.0.2.fn.norm.weight", "final_conv.1.weight")
LAST_BLOCK = "final_res_block.block1.proj.weight"


class Signature(NamedTuple):
    """What only the files of one implementation have, or of a few that share all names."""

    names: tuple[tuple[str, ...], ...]
    """For each of its releases: tensors that all networks have, without their prefix."""
    telling_name: str | None = None
    """A pattern of names that tells it from others with the same `names`."""
    telling_arguments: frozenset[str] = frozenset()
    """Constructor arguments or flags that tell it from others with the same `names`."""

    def find_names(self, ends: Collection[str]) -> tuple[str, ...] | None:
        """The names of the release that wrote tensors whose names end like `ends`."""
        return next((names for names in self.names if set(names) <= set(ends)), None)

    def tells(self, ends: Collection[str], arguments: Collection[str]) -> bool:
        """Whether a name or an argument tells this implementation from others."""
        pattern = self.telling_name
        by_name = pattern is not None and any(re.fullmatch(pattern, end) for end in ends)
        return by_name or not self.telling_arguments.isdisjoint(arguments)


SIGNATURES: dict[str, Signature] = {
    "torch_ref": Signature((("temb.dense.0.weight", "up.0.block.0.shortcut.weight"),)),
    "ho": Signature((("temb/dense0/W", "conv_in/W"),)),
    "pesser": Signature((("temb.dense.0.weight", "up.0.block.0.nin_shortcut.weight"),)),
    "diffusers": Signature((("time_embedding.linear_1.weight", "conv_norm_out.weight"),)),
    "monai": Signature((("conv_in.conv.weight", "middle_block.resnet_1.norm1.weight"),)),
    "guided_diffusion": Signature(
        (OPENAI,),
        r"output_blocks\.\d+\.[12]\.in_layers\.2\.weight",  # resblock_updown
        frozenset({"num_head_channels", "resblock_updown", "use_new_attention_order"}),
    ),
    "improved_diffusion": Signature((OPENAI,), None, frozenset({"sigma_small"})),
    "lucidrains": Signature(
        (
            (LAST_BLOCK, "downs.0.2.mem_kv"),
            (LAST_BLOCK, "downs.0.2.fn.norm.g"),
            ("final_conv.1.weight", "downs.0.2.fn.norm.g"),
        ),
        "sqrt_recipm1_alphas_cumprod",  # of GaussianDiffusion; the Annotated text has no such class
    ),
    "pulfer": Signature((("time_embed.weight", "te_mid.0.weight", "b_mid.0.ln.weight"),)),
    "annotated": Signature((ANNOTATED,)),
    "annotated_layernorm": Signature(
        (("final_conv.1.weight", "downs.0.2.fn.norm.g", "downs.0.2.fn.fn.to_out.1.g"),),
        r"downs\.0\.0\.ds_conv\.weight",
    ),
    "annotated_ws": Signature(((LAST_BLOCK, "downs.0.2.fn.norm.weight"),)),
    "epita": Signature((ANNOTATED,)),
}


def choose_peer(source: Source, stated: str | None = None) -> str:
    """Choose the implementation that wrote `source`: the `stated` one, or the recognised one.

    Raises UserError if none or several are recognised and none is stated, and if other ones are
    recognised than the stated one.
    """
    ends = list_all_ends(source)
    candidates = find_candidates(source, ends)
    if stated is None:
        return _require_one(narrow(candidates, source, ends), source)
    if candidates and stated not in candidates:
        names = SIGNATURES[candidates[0]].find_names(ends)
        example = f"tensors such as {names[-1]}" if names else "the documents"
        raise UserError(f"--source is {stated}, but {example} are those of {join_or(candidates)}")
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
    ends = list_all_ends(source)
    return narrow(find_candidates(source, ends), source, ends)


def find_candidates(source: Source, ends: Collection[str]) -> list[str]:
    """Find the implementations with these names of tensors, or else with these documents."""
    found = [peer for peer, one in SIGNATURES.items() if one.find_names(ends)]
    classes = {document.get("_class_name") for document in source.documents.values()}
    if not found and (PIPELINE in source.documents or "UNet2DModel" in classes):
        return ["diffusers"]
    return found


def narrow(candidates: list[str], source: Source, ends: Collection[str]) -> list[str]:
    """Keep the candidates that a name or an argument tells from the others, if there are any."""
    if len(candidates) < 2:
        return candidates
    arguments = (source.arguments or {}).keys()
    telling = [peer for peer in candidates if SIGNATURES[peer].tells(ends, arguments)]
    return telling or candidates


def list_all_ends(source: Source) -> set[str]:
    """Collect the names of all tensors, without each of their prefixes."""
    return {end for name in flatten(source.tensors) for end in list_ends(name)}


def list_ends(name: str) -> list[str]:
    """List a dotted or slashed name without each of its prefixes."""
    return [name, *(name[match.end() :] for match in re.finditer(r"[./]", name))]
