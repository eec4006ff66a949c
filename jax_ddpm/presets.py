"""The PRESETS table: named configurations."""

from jax_ddpm.config import (
    Config,
    DataConfig,
    DiffusionConfig,
    SampleConfig,
    TrainConfig,
)
from jax_ddpm.errors import UserError
from jax_ddpm.models import UNetConfig

PRESETS: dict[str, Config] = {
    # 10,000 Fashion-MNIST images on two CPU cores in eight minutes. Narrow where images are large,
    # so that small batches and many steps fit; x_0 prediction spends the loss on shapes, not on
    # traces of noise; no flips, because every shoe of the data points the same way.
    "fashion-cpu": Config(
        preset="fashion-cpu",
        data=DataConfig(random_flip=False),
        model=UNetConfig(
            channels=16,
            channel_mult=(1, 2, 4),
            num_res_blocks=1,
            attn_levels=(2,),
            dropout=0.0,
            num_groups=8,
        ),
        diffusion=DiffusionConfig(schedule="cosine", prediction_type="x_0"),
        train=TrainConfig(
            num_steps=2600,
            batch_size=16,
            learning_rate=5e-3,
            warmup_steps=100,
            decay="cosine",
            optimizer="muon",
            betas=(0.9, 0.99),
            ema_decay=0.99,
            log_every=20,
            sample_every=600,
            checkpoint_every=200,
        ),
        sample=SampleConfig(sampler="ddim", num_steps=50, spacing="trailing"),
    ),
    # Ho et al. 2020, CIFAR-10: 35.7M parameters, 800,000 steps.
    "ddpm-cifar10": Config(preset="ddpm-cifar10"),
    # Ho et al. 2020, 256x256 images (CelebA-HQ, LSUN): 114M parameters.
    "ddpm-256": Config(
        preset="ddpm-256",
        model=UNetConfig(channel_mult=(1, 1, 2, 2, 4, 4), attn_levels=(4,), dropout=0.0),
        train=TrainConfig(num_steps=500_000, batch_size=64, learning_rate=2e-5),
        sample=SampleConfig(variance="fixed_small"),
    ),
}


def find_preset(name: str) -> Config:
    """The preset called `name`. Raises UserError if there is none."""
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}, choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
