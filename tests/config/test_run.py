from dataclasses import replace

import numpy as np
import pytest

from jax_ddpm.config.presets import PRESETS
from jax_ddpm.config.run import Config, DiffusionConfig, SampleConfig, make_betas, validate
from jax_ddpm.errors import UserError


def test_the_cifar10_preset_is_the_published_configuration():
    config = PRESETS["ddpm-cifar10"]
    assert (config.diffusion.schedule, config.diffusion.num_timesteps) == ("linear", 1000)
    assert (config.model.channels, config.model.channel_mult) == (128, (1, 2, 2, 2))
    assert (config.model.dropout, config.data.random_flip) == (0.1, True)
    assert (config.train.learning_rate, config.train.batch_size) == (2e-4, 128)
    assert (config.train.ema_decay, config.train.warmup_steps) == (0.9999, 5000)
    assert (config.train.num_steps, config.train.max_grad_norm) == (800_000, 1.0)
    assert (config.sample.sampler, config.sample.variance) == ("ddpm", "fixed_large")


BAD = [
    ("diffusion", {"num_timesteps": 0}, "--diffusion.num-timesteps 0 .* at least 1"),
    ("diffusion", {"num_timesteps": -1}, "--diffusion.num-timesteps -1 .* at least 1"),
    (
        "diffusion",
        {"schedule": "linear_rescaled", "num_timesteps": 20},
        "needs more than 20 timesteps",
    ),
    ("diffusion", {"num_timesteps": 500}, "between 1 and T = 500, got 1000"),
    ("diffusion", {"p2_gamma": -1.0}, "--diffusion.p2-gamma is -1.0, .* 0 or more"),
    ("diffusion", {"p2_k": 0.0}, "--diffusion.p2-k is 0.0, .* positive"),
    ("diffusion", {"log_normal_std": 0.0}, "--diffusion.log-normal-std is 0.0, .* positive"),
    ("diffusion", {"zero_terminal_snr": True}, "--diffusion.prediction-type is eps, .* x_0 or v"),
    ("diffusion", {"betas": (0.1, 0.2)}, "--diffusion.num-timesteps is 1000, .* be 2, the number"),
    ("diffusion", {"betas": (), "num_timesteps": 0}, "diffusion.betas .0.: betas must be"),
    ("diffusion", {"betas": (0.1, 1.2), "num_timesteps": 2}, "every beta must lie in"),
    ("diffusion", {"betas": (0.1, 1.0), "num_timesteps": 2}, "zero-terminal-snr is False, .* True"),
    ("diffusion", {"schedule": "jsd"}, "x_0 or v with --diffusion.schedule jsd, which ends in pu"),
    (
        "diffusion",
        {"zero_terminal_snr": True, "prediction_type": "v", "timestep_sampling": "log_normal"},
        "--diffusion.timestep-sampling is log_normal, .* never draws the last t",
    ),
    (
        "diffusion",
        {"zero_terminal_snr": True, "prediction_type": "v", "num_timesteps": 1},
        "--diffusion.num-timesteps 1 .* one timestep cannot be rescaled",
    ),
    ("diffusion", {"label_dropout": 1.0}, "--diffusion.label-dropout is 1.0, .* in .0, 1."),
    ("diffusion", {"label_dropout": 0.1}, "--diffusion.label-dropout is 0.1, .* with 0 labels"),
    ("model", {"num_classes": 0}, "--model.num-classes is 0, .* at least 1"),
    ("data", {"image_size": 0}, "--data.image-size is 0, .* between 1 and"),
    ("sample", {"num_steps": 0}, "between 1 and T = 1000, got 0"),
    ("sample", {"num_steps": -5}, "between 1 and T = 1000, got -5"),
    ("sample", {"num_steps": 1001}, "between 1 and T = 1000, got 1001"),
    ("sample", {"num_steps": 500, "spacing": "quad"}, "'quad' spacing"),
    ("sample", {"eta": -0.1}, "eta is -0.1"),
    ("sample", {"eta": 1.5}, "eta is 1.5"),
    ("model", {"num_groups": 7}, "--model.num-groups is 7, .* a divisor of 128 channels"),
    ("model", {"num_groups": 0}, "--model.num-groups is 0"),
    ("model", {"attn_levels": (4,)}, "--model.attn-levels is 4, .* between 0 and 3"),
    ("model", {"attn_levels": (0, -1)}, "--model.attn-levels is -1"),
    ("model", {"channels": 2}, "--model.channels is 2"),
    ("model", {"channel_mult": ()}, "--model.channel-mult"),
    ("model", {"channel_mult": (1, 0)}, "--model.channel-mult"),
    ("model", {"num_res_blocks": 0}, "--model.num-res-blocks is 0"),
    ("model", {"dropout": 1.0}, "--model.dropout is 1.0"),
    ("model", {"dropout": -0.1}, "--model.dropout is -0.1"),
    ("train", {"batch_size": 0}, "--train.batch-size is 0, .* at least 1"),
    ("train", {"num_steps": 0}, "--train.num-steps is 0"),
    ("train", {"log_every": 0}, "--train.log-every is 0"),
    ("train", {"sample_every": -1}, "--train.sample-every is -1"),
    ("train", {"checkpoint_every": 0}, "--train.checkpoint-every is 0"),
    ("train", {"keep_checkpoints": 0}, "--train.keep-checkpoints is 0"),
    (
        "train",
        {"checkpoint_every": 150},
        "--train.checkpoint-every is 150, .* --train.log-every 100",
    ),
    ("train", {"sample_every": 150}, "--train.sample-every is 150, .* --train.log-every 100"),
    ("train", {"learning_rate": 0.0}, "--train.learning-rate is 0.0"),
    ("train", {"learning_rate": -1e-4}, "--train.learning-rate is -0.0001, .* positive"),
    ("train", {"learning_rate": float("nan")}, "--train.learning-rate is nan"),
    ("train", {"warmup_steps": -1}, "--train.warmup-steps is -1"),
    ("train", {"warmup_steps": 10**9}, "--train.warmup-steps is 1000000000"),
    ("train", {"ema_decay": 1.0}, "--train.ema-decay is 1.0"),
    ("train", {"ema_inv_gamma": 0.0}, "--train.ema-inv-gamma is 0.0, .* positive"),
    ("train", {"ema_half_life": 0}, "--train.ema-half-life is 0, .* at least 1"),
    ("train", {"ema_rampup": 0.0}, "--train.ema-rampup is 0.0, .* positive, or None"),
    ("train", {"ema_form": "half_life", "ema_every": 2}, "--train.ema-every is 2, .* 1 with"),
    ("train", {"ema_form": "half_life", "ema_decays": (0.9,)}, "--train.ema-decays is .* no decay"),
    ("train", {"ema_decays": (0.9, 1.0)}, "--train.ema-decays is .* different decays in"),
    ("train", {"ema_decays": (0.9, 0.9)}, "--train.ema-decays is .* different decays in"),
    ("train", {"ema_decays": (0.9999,)}, "--train.ema-decays is .* than --train.ema-decay 0.9999"),
    ("train", {"posthoc_ema": (0.1,)}, "--train.posthoc-ema is .* two or more different"),
    ("train", {"posthoc_ema": (0.1, 0.1)}, "--train.posthoc-ema is .* two or more different"),
    ("train", {"posthoc_ema": (0.1, 0.3)}, "--train.posthoc-ema is .* between 0 and 0.2887"),
    ("train", {"snapshot_every": 0}, "--train.snapshot-every is 0, .* at least 1"),
    (
        "train",
        {"posthoc_ema": (0.05, 0.1), "snapshot_every": 150},
        "--train.snapshot-every is 150, .* --train.log-every 100",
    ),
    (
        "train",
        {"posthoc_ema": (0.05, 0.1), "num_steps": 9000},
        "--train.snapshot-every is 10000, .* at most 9000 steps",
    ),
    ("train", {"betas": (0.9, 1.0)}, "--train.betas"),
    ("train", {"weight_decay": -0.1, "optimizer": "adamw"}, "--train.weight-decay is -0.1"),
    ("train", {"weight_decay": 0.1}, "0 with --train.optimizer adam: only adamw has it"),
    (
        "train",
        {"weight_decay": 0.1, "optimizer": "muon"},
        "--train.weight-decay is 0.1, .* 0 with --train.optimizer muon: only adamw",
    ),
    ("train", {"optimizer": "adan"}, "--train.optimizer is 'adan', .*: did you mean 'adam'"),
    ("data", {"crop": "centre"}, "--data.crop is 'centre', .*: did you mean 'center'"),
    ("data", {"channels": 2}, "--data.channels is 2, but it must be 1 or 3"),
    ("sample", {"sampler": "dimm"}, "--sample.sampler is 'dimm', .*: did you mean 'ddim'"),
    ("train", {"max_grad_norm": 0.0}, "--train.max-grad-norm is 0.0"),
]


@pytest.mark.parametrize(
    ("section", "values", "message"), BAD, ids=[f"{s}-{v}".replace(" ", "") for s, v, _ in BAD]
)
def test_a_value_that_cannot_work_is_refused_in_one_sentence(section, values, message):
    config = Config()
    config = replace(config, **{section: replace(getattr(config, section), **values)})
    with pytest.raises(UserError, match=message) as caught:
        validate(config)
    assert "\n" not in str(caught.value)


def test_label_dropout_needs_a_class_to_leave_out_and_one_to_keep():
    def labels(num_classes):
        config = replace(Config(), model=replace(Config().model, num_classes=num_classes))
        return replace(config, diffusion=replace(config.diffusion, label_dropout=0.1))

    validate(labels(2))
    with pytest.raises(UserError, match=r"with 1 labels: label dropout needs one label more"):
        validate(labels(1))


def test_data_on_the_device_cannot_be_cropped_at_random():
    moving = replace(Config(), data=replace(Config().data, crop="random"))
    validate(moving)
    always = replace(moving, train=replace(moving.train, data_on_device="always"))
    with pytest.raises(UserError, match=r"--data.crop is random, .* --train.data-on-device always"):
        validate(always)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64])
def test_a_seed_outside_32_bits_is_refused(seed):
    with pytest.raises(UserError, match=f"--seed is {seed}"):
        validate(replace(Config(), seed=seed))


def test_a_run_without_a_folder_is_named_after_its_preset():
    assert str(Config(preset="ddpm-256").folder) == "runs/ddpm-256"


@pytest.mark.parametrize(
    ("name", "given", "ours"),
    [
        ("prediction_type", "epsilon", "eps"),
        ("prediction_type", "v_prediction", "v"),
        ("prediction_type", "x_0", "x_0"),
        ("schedule", "squaredcos_cap_v2", "cosine"),
        ("schedule", "scaled_linear", "quadratic"),
    ],
)
def test_other_names_from_the_field_become_ours(name, given, ours):
    assert getattr(DiffusionConfig(**{name: given}), name) == ours


def test_a_schedule_without_a_name_is_given_by_its_betas():
    diffusion = DiffusionConfig(betas=(0.1, 0.2, 0.4), num_timesteps=3, prediction_type="v")
    validate(Config(diffusion=diffusion, sample=SampleConfig(num_steps=3)))
    np.testing.assert_array_equal(make_betas(diffusion), [0.1, 0.2, 0.4])
    rescaled = make_betas(replace(diffusion, zero_terminal_snr=True))
    assert (rescaled[0], rescaled[-1]) == (pytest.approx(0.1), 1)
    again = replace(diffusion, betas=tuple(map(float, rescaled)), zero_terminal_snr=True)
    np.testing.assert_allclose(make_betas(again), rescaled, rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosine", "beta_end": 0.1}, "beta-end is 0.1, .* left out with .* cosine: "),
        ({"cosine_s": 0.1}, "cosine-s is 0.1, .*schedule linear: it is for cosine, "),
        ({"beta_start": 0.0}, "beta-start is 0.0, but it must be above 0 and below 1"),
        ({"beta_end": 1.0}, "beta-end is 1.0, but it must be above 0 and below 1"),
        ({"schedule": "cosine", "cosine_s": -0.1}, "cosine-s is -0.1, but it must be 0 or more"),
        (
            {"betas": (0.1, 0.2), "num_timesteps": 2, "beta_end": 0.1},
            "beta-end is 0.1, but it must be left out with --diffusion.betas",
        ),
    ],
)
def test_numbers_of_another_schedule_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        validate(Config(diffusion=DiffusionConfig(**settings)))


def test_the_numbers_of_a_schedule_reach_its_betas():
    betas = make_betas(DiffusionConfig(beta_start=0.002, beta_end=0.1, num_timesteps=50))
    np.testing.assert_array_equal(betas, np.linspace(0.002, 0.1, 50))
    assert not DiffusionConfig().has_own_betas
    assert DiffusionConfig(beta_end=0.1).has_own_betas
