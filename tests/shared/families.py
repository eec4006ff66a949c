"""A small network of each family, and example inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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

FAMILIES = {
    "unet": UNetConfig(
        channels=8,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attn_levels=(1,),
        num_groups=2,
        dropout=0.3,
        in_channels=1,
    ),
    "annotated convnext": AnnotatedConfig(dim=8, dim_mults=(1, 2), channels=1),
    "annotated resnet": AnnotatedConfig(
        dim=8, dim_mults=(1, 2), channels=1, use_convnext=False, norm="layer"
    ),
    "annotated_ws": AnnotatedWSConfig(dim=8, dim_mults=(1, 2), channels=1),
    "lucidrains": LucidrainsConfig(
        dim=8, dim_mults=(1, 2), channels=1, dropout=0.3, attn_heads=2, attn_dim_head=4
    ),
    "lucidrains 1.11": LucidrainsConfig(
        dim=8, dim_mults=(1, 2), channels=1, attn_heads=2, attn_dim_head=4, resnet_block_groups=2
    ),
    "lucidrains_v1": LucidrainsV1Config(
        dim=8, dim_mults=(1, 2), channels=1, downsampling="conv", cosine_attention=True
    ),
    "lucidrains_v0 resnet": LucidrainsV0Config(dim=8, dim_mults=(1, 2), channels=1),
    "lucidrains_v0 convnext": LucidrainsV0Config(
        dim=8, dim_mults=(1, 2), channels=1, blocks="convnext", full_mid_attention=False
    ),
    "pulfer": PulferConfig(n_steps=50),
    "improved_diffusion": ImprovedDiffusionConfig(
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(2,),
        dropout=0.3,
        use_scale_shift_norm=True,
        in_channels=1,
    ),
    "guided_diffusion": GuidedDiffusionConfig(
        model_channels=32,
        channel_mult=(1.0, 2.0),
        num_res_blocks=1,
        attention_resolutions=(2,),
        resblock_updown=True,
        num_classes=5,
        in_channels=1,
    ),
    "unet2d": UNet2DConfig(
        in_channels=1,
        block_out_channels=(8, 16),
        norm_num_groups=2,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        layers_per_block=1,
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        dropout=0.3,
    ),
    "unet2d skip": UNet2DConfig(
        in_channels=3,
        block_out_channels=(32, 32),
        norm_num_groups=None,
        attention_head_dim=None,
        down_block_types=("AttnSkipDownBlock2D", "SkipDownBlock2D"),
        layers_per_block=1,
        up_block_types=("SkipUpBlock2D", "AttnSkipUpBlock2D"),
        time_embedding_type="fourier",
    ),
    "unet2d k": UNet2DConfig(
        in_channels=1,
        block_out_channels=(32, 32),
        norm_num_groups=32,
        attention_head_dim=8,
        down_block_types=("KDownBlock2D", "KDownBlock2D"),
        layers_per_block=1,
        up_block_types=("KUpBlock2D", "KUpBlock2D"),
    ),
}

# Quick tests cover one of each kind of block, slow tests cover all.
QUICK = {"unet"}
EACH = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]


def build_network(config, dtype=jnp.float32):
    """Build the network of `config`."""
    return make_network(config, config.example_shape, dtype=dtype)


def make_example(config, batch_size=2, dtype=jnp.float32):
    """Make noisy images, timesteps, and a label if the network takes one."""
    shape = (batch_size, *config.example_shape)
    x_t = jnp.asarray(np.random.default_rng(1).standard_normal(shape), dtype)
    t = jnp.asarray([7, 31][:batch_size], jnp.int32)
    label = None if config.num_labels is None else jnp.asarray([1, 4][:batch_size], jnp.int32)
    return x_t, t, {} if label is None else {"label": label}


def walk_equations(jaxpr):
    """Walk through every equation of a jaxpr, including nested ones."""
    for eqn in jaxpr.eqns:
        yield eqn
        for param in eqn.params.values():
            for inner in param if isinstance(param, tuple | list) else [param]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from walk_equations(inner)


def list_equations(fn, *args):
    """List all equations of `fn`; nothing is computed."""
    return list(walk_equations(jax.make_jaxpr(fn)(*args).jaxpr))
