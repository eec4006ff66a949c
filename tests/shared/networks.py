"""Random tiny networks of every architecture, by the implementation that has them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st

from jax_ddpm import runs
from jax_ddpm.config.run import Config, DiffusionConfig
from jax_ddpm.interop.monai import make_config as make_monai_config
from jax_ddpm.models import (
    AnnotatedConfig,
    AnnotatedWSConfig,
    GuidedDiffusionConfig,
    ImprovedDiffusionConfig,
    LucidrainsConfig,
    LucidrainsV0Config,
    LucidrainsV1Config,
    PulferConfig,
    UNet2DConfig,
    UNetConfig,
    make_network,
)

rates = st.sampled_from([0.0, 0.1, 0.25])
levels = st.integers(1, 3)
flags = st.booleans()
classes = st.none() | st.integers(1, 5)


@st.composite
def draw_unet(draw, width=4, groups=(1, 2, 4), classes=classes):
    num = draw(levels)
    return UNetConfig(
        channels=width,
        channel_mult=tuple(draw(st.lists(st.integers(1, 2), min_size=num, max_size=num))),
        num_res_blocks=draw(st.integers(1, 2)),
        attn_levels=tuple(sorted(draw(st.sets(st.integers(0, num - 1))))),
        dropout=draw(rates),
        num_groups=draw(st.sampled_from(groups)),
        num_classes=draw(classes),
        resamp_with_conv=num == 1 or draw(flags),
    )


def draw_ho():
    return draw_unet(32, (32,), st.none())


@st.composite
def draw_unet2d(draw):
    num = draw(levels)
    attends = draw(st.lists(flags, min_size=num, max_size=num))
    return UNet2DConfig(
        block_out_channels=tuple(
            4 * n for n in draw(st.lists(st.integers(1, 2), min_size=num, max_size=num))
        ),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        layers_per_block=draw(st.integers(1, 2)),
        norm_num_groups=draw(st.sampled_from((1, 2, 4))),
        attention_head_dim=draw(st.sampled_from((None, 1, 2, 4))),
        norm_eps=draw(st.sampled_from((1e-5, 1e-6))),
        flip_sin_to_cos=draw(flags),
        freq_shift=draw(st.integers(0, 1)),
        downsample_padding=draw(st.integers(0, 1)),
        act_fn=draw(st.sampled_from(("silu", "mish", "gelu"))),
        center_input_sample=draw(flags),
        dropout=draw(rates),
        add_attention=draw(flags),
        mid_block_type=draw(st.sampled_from((None, "UNetMidBlock2D"))),
        time_embedding_dim=draw(st.sampled_from((None, 16))),
        num_class_embeds=draw(classes),
        resnet_time_scale_shift=draw(st.sampled_from(("default", "scale_shift"))),
    )


@st.composite
def draw_monai(draw):
    """The arguments of MONAI's network; type checks draw random numbers when it is made of them."""
    num = draw(levels)
    return dict(
        channels=tuple(
            4 * n for n in draw(st.lists(st.integers(1, 2), min_size=num, max_size=num))
        ),
        attention_levels=tuple(draw(st.lists(flags, min_size=num, max_size=num))),
        num_res_blocks=draw(st.integers(1, 2)),
        num_head_channels=draw(st.sampled_from((1, 2))),
        resblock_updown=num > 1 and draw(flags),
        norm_num_groups=draw(st.sampled_from((1, 2, 4))),
        norm_eps=draw(st.sampled_from((1e-5, 1e-6))),
        num_class_embeds=draw(classes),
    )


@st.composite
def draw_openai(draw, make):
    num, guided = draw(levels), make is GuidedDiffusionConfig
    more = {}
    if guided:
        more = {
            "num_head_channels": draw(st.sampled_from((-1, 8, 16))),
            "resblock_updown": num > 1 and draw(flags),
            "use_new_attention_order": draw(flags),
        }
    mult = [1, *draw(st.lists(st.integers(1, 2), min_size=num - 1, max_size=num - 1))]
    return make(
        model_channels=32,
        channel_mult=tuple(map(float, mult)) if guided else tuple(mult),
        num_res_blocks=draw(st.integers(1, 2)),
        attention_resolutions=tuple(2**i for i in sorted(draw(st.sets(st.integers(0, num - 1))))),
        dropout=draw(rates),
        num_classes=draw(classes),
        num_heads=draw(st.sampled_from((1, 2, 4))),
        num_heads_upsample=draw(st.sampled_from((-1, 1, 2))),
        use_scale_shift_norm=draw(flags),
        **more,
    )


@st.composite
def draw_annotated(draw, norm="group"):
    dim, num = draw(st.sampled_from((6, 8, 12))), draw(st.integers(0, 2))
    convnext = draw(flags)
    groups = st.sampled_from((1, 2)) if not convnext else st.just(8)
    return AnnotatedConfig(
        dim=dim,
        init_dim=draw(st.none() | st.just(dim)) if not convnext else None,
        dim_mults=(1, *draw(st.lists(st.integers(1, 2), min_size=num, max_size=num))),
        resnet_block_groups=draw(groups),
        use_convnext=convnext,
        convnext_mult=draw(st.integers(1, 3)) if convnext else 2,
        norm=norm,
    )


@st.composite
def draw_annotated_ws(draw):
    num = draw(levels)
    return AnnotatedWSConfig(
        dim=draw(st.sampled_from((4, 8))),
        dim_mults=tuple(draw(st.lists(st.integers(1, 2), min_size=num, max_size=num))),
        self_condition=draw(flags),
        resnet_block_groups=draw(st.sampled_from((1, 2, 4))),
        weight_standardization=draw(st.sampled_from(("multiply", "divide"))),
    )


@st.composite
def draw_lucidrains(draw):
    num = draw(levels)
    return LucidrainsConfig(
        dim=draw(st.sampled_from((8, 16))),
        dim_mults=tuple(draw(st.lists(st.integers(1, 2), min_size=num, max_size=num))),
        self_condition=draw(flags),
        dropout=draw(rates),
    )


@st.composite
def draw_group_norms(draw):
    return replace(draw(draw_lucidrains()), resnet_block_groups=draw(st.sampled_from((1, 4))))


@st.composite
def draw_lucidrains_v1(draw):
    num = draw(levels)
    return LucidrainsV1Config(
        dim=draw(st.sampled_from((8, 16))),
        dim_mults=tuple(draw(st.lists(st.integers(1, 2), min_size=num, max_size=num))),
        self_condition=draw(flags),
        resnet_block_groups=draw(st.sampled_from((1, 4))),
        downsampling=draw(st.sampled_from(("unshuffle", "conv"))),
        cosine_attention=draw(flags),
    )


@st.composite
def draw_lucidrains_v0(draw):
    num, convnext = draw(st.integers(0, 2)), draw(flags)
    return LucidrainsV0Config(
        dim=8,
        init_dim=None if convnext else draw(st.sampled_from((None, 5))),
        dim_mults=(1, *draw(st.lists(st.integers(1, 2), min_size=num, max_size=num))),
        blocks="convnext" if convnext else "resnet",
        resnet_block_groups=draw(st.sampled_from((1, 4))),
        with_time_emb=not convnext or draw(flags),
        full_mid_attention=not convnext or draw(flags),
    )


@st.composite
def draw_pulfer(draw):
    return PulferConfig(n_steps=draw(st.integers(2, 30)), time_emb_dim=draw(st.integers(1, 12)))


NETWORKS = {
    "torch_ref": draw_unet(),
    "ho": draw_ho(),
    "pesser": draw_ho(),
    "diffusers": draw_unet2d(),
    "monai": draw_monai(),
    "guided_diffusion": draw_openai(GuidedDiffusionConfig),
    "improved_diffusion": draw_openai(ImprovedDiffusionConfig),
    "annotated": draw_annotated(),
    "annotated_layernorm": draw_annotated("layer"),
    "annotated_ws": draw_annotated_ws(),
    "lucidrains": draw_lucidrains(),
    "pulfer": draw_pulfer(),
}
# Networks of older releases, after the name of their implementation.
OLDER = {
    "lucidrains 1.11": draw_group_norms(),
    "lucidrains v1": draw_lucidrains_v1(),
    "lucidrains v0": draw_lucidrains_v0(),
}


def make_run(source, config, scale, seed):
    """Make a run, which is nowhere on the disk, of a network that `source` has: (run, network,
    parameters)."""
    config = make_monai_config(**config) if isinstance(config, dict) else config
    shape = (28, 28, 1) if source == "pulfer" else (16, 16, 3)
    run = runs.Run(Path("a-run"), Config(model=config, diffusion=DiffusionConfig()), shape)
    network = make_network(config, shape, out_channels=shape[-1])
    numbers = np.random.default_rng(seed)

    def draw(leaf: Any) -> np.ndarray:
        return numbers.normal(0, scale, leaf.shape).astype(np.float32)

    return run, network, jax.tree.map(draw, jax.eval_shape(network.init, jax.random.key(0)))
