"""The PRESETS table: named configurations."""

from dataclasses import replace

from jax_ddpm.config.run import Config, DataConfig, DiffusionConfig, SampleConfig, TrainConfig
from jax_ddpm.errors import check_choice
from jax_ddpm.models import (
    AnnotatedConfig,
    AnnotatedWSConfig,
    GuidedDiffusionConfig,
    ImprovedDiffusionConfig,
    LucidrainsConfig,
    PulferConfig,
    UNet2DConfig,
    UNetConfig,
)
from jax_ddpm.models.unet2d import DownBlock, UpBlock

# Plain Adam, without warm-up, clipping or averaging. Five epochs; the last published version of the
# text has six. The steps, which count where epochs are turned off, are those of 60,000 images.
ANNOTATED_TRAINING = TrainConfig(
    num_steps=2345,
    num_epochs=5,
    learning_rate=1e-3,
    warmup_steps=0,
    max_grad_norm=None,
    ema_decay=0.0,
    sample_every=1000,
    checkpoint_every=1000,
)
# 100 epochs of CIFAR-10; the average's decay is 1 - (1 + step)^-0.75.
DIFFUSERS_TRAINING = TrainConfig(
    num_steps=312_500,
    batch_size=16,
    learning_rate=1e-4,
    warmup_steps=500,
    decay="cosine",
    optimizer="adamw",
    betas=(0.95, 0.999),
    weight_decay=1e-6,
    clip_eps=1e-6,
    ema_form="power",
    ema_power=3 / 4,
)


CIFAR_10 = DataConfig("cifar10", image_size=32, channels=3)


def ddpm_256(preset: str, name: str, *, num_steps: int, random_flip: bool = True) -> Config:
    """Make the preset for Ho et al.'s training on 256x256 images from the data set `name`."""
    return Config(
        preset=preset,
        data=DataConfig(name, image_size=256, channels=3, random_flip=random_flip),
        model=UNetConfig(channel_mult=(1, 1, 2, 2, 4, 4), attn_levels=(4,), dropout=0.0),
        train=TrainConfig(num_steps=num_steps, batch_size=64, learning_rate=2e-5),
        sample=SampleConfig(variance="fixed_small"),
    )


def diffusers_ddpm(channels: tuple[int, ...], attention: int) -> UNet2DConfig:
    """Make a published network of diffusers: single-head attention at one level, `attention`."""
    down: list[DownBlock] = ["DownBlock2D"] * len(channels)
    up: list[UpBlock] = ["UpBlock2D"] * len(channels)
    down[attention], up[-1 - attention] = "AttnDownBlock2D", "AttnUpBlock2D"
    return UNet2DConfig(
        block_out_channels=channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        freq_shift=1,
        flip_sin_to_cos=False,
        downsample_padding=0,
        attention_head_dim=None,
        norm_eps=1e-6,
    )


PRESETS: dict[str, Config] = {
    # 10,000 Fashion-MNIST images on two CPU cores in seven minutes. The network is narrow where
    # images are large, so that many steps with small batches fit. Labels help most: without them,
    # the distance of the images at the same number of steps is several times as large. No flips:
    # every shoe in the data points the same way. docs/evaluation.md says what was tried.
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
            num_classes=11,
        ),
        diffusion=DiffusionConfig(
            schedule="cosine",
            prediction_type="v",
            timestep_sampling="stratified",
            label_dropout=0.1,
        ),
        train=TrainConfig(
            num_steps=3400,
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
    "ddpm-cifar10": Config(preset="ddpm-cifar10", data=CIFAR_10),
    # Ho et al. 2020, 256x256 images: 114M parameters. Bedrooms are not mirrored.
    "ddpm-256": ddpm_256("ddpm-256", "celeb_a_hq/256", num_steps=500_000),
    "ddpm-lsun-bedroom": ddpm_256(
        "ddpm-lsun-bedroom", "lsun/bedroom", num_steps=2_400_000, random_flip=False
    ),
    "ddpm-lsun-church": ddpm_256("ddpm-lsun-church", "lsun/church_outdoor", num_steps=1_200_000),
    # Song et al. 2021 (DDIM), CelebA. They crop 140x140 pixels from the centre of 178x218.
    "ddim-celeba64": Config(
        preset="ddim-celeba64",
        data=DataConfig("celeb_a", image_size=64, channels=3),
        model=UNetConfig(channel_mult=(1, 2, 2, 2, 4), attn_levels=(2,)),
        train=TrainConfig(num_steps=500_000),
    ),
    # From here on: systems that people learn from and use, each with its own conventions.
    # EPITA's practical: resnet_block_groups is 1 for ResNet blocks, 8 for ConvNeXt blocks. The
    # weight decay of 0.01 is the default of PyTorch's AdamW. Samples are never clipped.
    "epita": Config(
        preset="epita",
        model=AnnotatedConfig(use_convnext=False, resnet_block_groups=1),
        diffusion=DiffusionConfig(num_timesteps=600, loss_type="huber"),
        train=TrainConfig(
            num_steps=9380,
            num_epochs=20,
            learning_rate=1e-3,
            warmup_steps=0,
            optimizer="adamw",
            weight_decay=0.01,
            max_grad_norm=None,
            ema_decay=0.0,
            sample_every=1000,
            checkpoint_every=1000,
        ),
        sample=SampleConfig(num_steps=600, variance="fixed_small", clip_x_0=False),
    ),
    # The Annotated Diffusion Model as last published: weight standardisation, T = 300.
    "annotated": Config(
        preset="annotated",
        model=AnnotatedWSConfig(),
        diffusion=DiffusionConfig(num_timesteps=300, loss_type="huber"),
        train=replace(ANNOTATED_TRAINING, num_steps=2814, num_epochs=6),
        sample=SampleConfig(num_steps=300, variance="fixed_small", clip_x_0=False),
    ),
    # The Annotated Diffusion Model as first published, in June 2022: ConvNeXt blocks, T = 200.
    "annotated-convnext": Config(
        preset="annotated-convnext",
        model=AnnotatedConfig(),
        diffusion=DiffusionConfig(num_timesteps=200, loss_type="huber"),
        train=ANNOTATED_TRAINING,
        sample=SampleConfig(num_steps=200, variance="fixed_small", clip_x_0=False),
    ),
    # B. Pulfer's MyDDPM: 20 epochs of 469 steps on 60,000 images. It keeps the weights with the
    # lowest training loss instead of an average. The GIFs have 100 frames in full contrast.
    "pulfer": Config(
        preset="pulfer",
        data=DataConfig(random_flip=False),
        model=PulferConfig(),
        train=TrainConfig(
            num_steps=9380,
            num_epochs=20,
            learning_rate=1e-3,
            warmup_steps=0,
            max_grad_norm=None,
            ema_decay=0.0,
            log_every=67,
            sample_every=2345,
            checkpoint_every=469,
            keep_best=True,
        ),
        sample=SampleConfig(clip_x_0=False, frames=100, stretch=True),
    ),
    # P. Wang's package, trained as in its README: v prediction on the sigmoid schedule, weighted
    # like the error of eps, and sampled with DDIM.
    "denoising-diffusion-pytorch": Config(
        preset="denoising-diffusion-pytorch",
        data=DataConfig(image_size=32, channels=3),
        model=LucidrainsConfig(),
        diffusion=DiffusionConfig(
            schedule="sigmoid_cumprod",
            prediction_type="v",
            weighting="snr",
            clipped_log_variance="floor",
        ),
        train=TrainConfig(
            num_steps=700_000,
            batch_size=64,
            accumulate=2,
            learning_rate=8e-5,
            warmup_steps=0,
            betas=(0.9, 0.99),
            clip_eps=1e-6,
            ema_decay=0.995,
            ema_form="power",
            ema_every=10,
            ema_update_after=100,
            sample_every=1000,
            checkpoint_every=1000,
        ),
        sample=SampleConfig(
            sampler="ddim", num_steps=250, spacing="lucidrains", variance="fixed_small"
        ),
    ),
    # The networks of google/ddpm-cifar10-32 and of the 256x256 models, trained like diffusers'
    # unconditional training example.
    "diffusers-ddpm": Config(
        preset="diffusers-ddpm",
        data=replace(CIFAR_10, random_flip=False),
        model=diffusers_ddpm((128, 256, 256, 256), attention=1),
        diffusion=DiffusionConfig(clipped_log_variance="floor"),
        train=DIFFUSERS_TRAINING,
    ),
    "diffusers-ddpm-256": Config(
        preset="diffusers-ddpm-256",
        data=DataConfig("celeb_a_hq/256", image_size=256, channels=3, random_flip=False),
        model=diffusers_ddpm((128, 128, 256, 256, 512, 512), attention=4),
        diffusion=DiffusionConfig(clipped_log_variance="floor"),
        train=DIFFUSERS_TRAINING,
        sample=SampleConfig(variance="fixed_small"),
    ),
    # Nichol & Dhariwal 2021, CIFAR-10: learned variance, hybrid loss, T = 4000. The network sees
    # timesteps on a scale of 1000. Gradients are not clipped, images not mirrored.
    "improved-diffusion": Config(
        preset="improved-diffusion",
        data=replace(CIFAR_10, random_flip=False),
        model=ImprovedDiffusionConfig(
            channel_mult=(1, 2, 2, 2),
            num_res_blocks=3,
            attention_resolutions=(2, 4),
            dropout=0.3,
            num_heads=4,
            use_scale_shift_norm=True,
        ),
        diffusion=DiffusionConfig(
            schedule="cosine",
            num_timesteps=4000,
            objective="hybrid",
            variance="learned_range",
            rescale_timesteps=True,
        ),
        train=TrainConfig(
            num_steps=500_000,
            accumulate=8,
            learning_rate=1e-4,
            warmup_steps=0,
            optimizer="adamw",
            max_grad_norm=None,
        ),
        sample=SampleConfig(respacing="250"),
    ),
    # Dhariwal & Nichol 2021, ImageNet 64x64 with classes.
    "guided-diffusion": Config(
        preset="guided-diffusion",
        data=DataConfig("imagenet_resized/64x64", image_size=64, channels=3),
        model=GuidedDiffusionConfig(
            model_channels=192,
            channel_mult=(1, 2, 3, 4),
            num_res_blocks=3,
            attention_resolutions=(2, 4, 8),
            dropout=0.1,
            num_classes=1000,
            num_head_channels=64,
            use_scale_shift_norm=True,
            resblock_updown=True,
            use_new_attention_order=True,
        ),
        diffusion=DiffusionConfig(schedule="cosine", objective="hybrid", variance="learned_range"),
        train=TrainConfig(
            num_steps=540_000,
            batch_size=2048,
            accumulate=128,
            learning_rate=3e-4,
            warmup_steps=0,
            optimizer="adamw",
            max_grad_norm=None,
        ),
        sample=SampleConfig(respacing="250"),
    ),
}

# A text about the same package trains on 128x128 images, in mixed precision, with batches of 32.
# It keeps every checkpoint, and measures the distance with each.
_package = PRESETS["denoising-diffusion-pytorch"]
PRESETS["denoising-diffusion-pytorch-128"] = replace(
    _package,
    preset="denoising-diffusion-pytorch-128",
    data=DataConfig("folder", image_size=128, channels=3),
    model=LucidrainsConfig(compute_dtype="bfloat16"),
    train=replace(
        _package.train, batch_size=32, accumulate=1, keep_every=1000, evaluate_every=1000
    ),
)


def find_preset(name: str) -> Config:
    """Look up a preset by name. Raises UserError if there is none, naming the nearest.

    Examples:
        >>> import jax_ddpm as jd
        >>> jd.find_preset("ddpm-cifar10").diffusion.schedule
        'linear'
    """
    return PRESETS[check_choice("--preset", name, PRESETS)]
