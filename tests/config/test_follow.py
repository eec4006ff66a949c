"""Dependent settings are adjusted to what the user types, and the result is valid."""

from dataclasses import replace

import pytest

from jax_ddpm.config.epochs import resolve_epochs
from jax_ddpm.config.follow import Followed, follow
from jax_ddpm.config.presets import PRESETS
from jax_ddpm.config.run import validate
from jax_ddpm.errors import UserError


def change(preset, **sections):
    """Change some values of a preset; return it with the flags that change them."""
    config, typed = PRESETS[preset], []
    for section, values in sections.items():
        config = replace(config, **{section: replace(getattr(config, section), **values)})
        typed += [f"--{section}.{name.replace('_', '-')}" for name in values]
    return config, typed


def follow_changes(preset, **sections):
    config, typed = change(preset, **sections)
    return follow(config, PRESETS[preset], typed)


CASES = [
    ("fashion-cpu", {"train": {"num_steps": 40}}, {"--train.warmup-steps": 1}),
    ("ddpm-cifar10", {"train": {"num_steps": 8}}, {"--train.warmup-steps": 0}),
    ("ddpm-cifar10", {"diffusion": {"num_timesteps": 100}}, {"--sample.num-steps": 100}),
    (
        "epita",
        {"diffusion": {"betas": (0.1, 0.2, 0.3)}},
        {"--diffusion.num-timesteps": 3, "--sample.num-steps": 3},
    ),
    ("fashion-cpu", {"diffusion": {"num_timesteps": 20}}, {"--sample.num-steps": 20}),
    (
        "guided-diffusion",
        {"diffusion": {"num_timesteps": 100}},
        {"--sample.respacing": "100"},
    ),
    (
        "pulfer",
        {"diffusion": {"num_timesteps": 2000}},
        {"--model.n-steps": 2000, "--sample.num-steps": 2000},
    ),
    (
        "fashion-cpu",
        {"train": {"log_every": 7}},
        {"--train.checkpoint-every": 203, "--train.sample-every": 602},
    ),
    (
        "fashion-cpu",
        {"train": {"log_every": 500, "num_steps": 900}},
        {"--train.checkpoint-every": 500, "--train.sample-every": 500},
    ),
    ("fashion-cpu", {"train": {"checkpoint_every": 50}}, {"--train.log-every": 25}),
    (
        "fashion-cpu",
        {"train": {"checkpoint_every": 21, "sample_every": 35}},
        {"--train.log-every": 7},
    ),
    (
        "fashion-cpu",
        {"train": {"steps_per_call": 8}},
        {"--train.log-every": 16, "--train.checkpoint-every": 192, "--train.sample-every": 608},
    ),
    ("fashion-cpu", {"train": {"posthoc_ema": (0.05, 0.1)}}, {"--train.snapshot-every": 3400}),
    (
        "fashion-cpu",
        {"train": {"posthoc_ema": (0.05, 0.1), "num_steps": 12}},
        {
            "--train.log-every": 12,
            "--train.snapshot-every": 12,
            "--train.warmup-steps": 0,
            "--train.checkpoint-every": 12,
        },
    ),
    ("fashion-cpu", {"train": {"keep_every": 300}}, {"--train.checkpoint-every": 100}),
    ("improved-diffusion", {"train": {"batch_size": 20}}, {"--train.accumulate": 5}),
]


@pytest.mark.parametrize(("preset", "sections", "expected"), CASES)
def test_a_setting_that_no_longer_works_is_adjusted(preset, sections, expected):
    with pytest.raises(UserError):
        validate(change(preset, **sections)[0])
    config, followed = follow_changes(preset, **sections)
    validate(config)
    assert {found.flag: found.value for found in followed} == expected


def test_the_labels_of_the_embedded_images_are_left_out_for_other_images():
    expected = {"--model.num-classes": None, "--diffusion.label-dropout": 0.0}
    config, followed = follow_changes("fashion-cpu", data={"name": "folder", "path": "pictures"})
    assert {found.flag: found.value for found in followed} == expected
    validate(config)
    assert follow_changes("fashion-cpu", data={"name": "fashion_mnist"})[1] == []
    own = {"data": {"name": "folder"}, "model": {"num_classes": 6}}
    assert follow_changes("fashion-cpu", **own)[1] == []


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_that_still_work_stay(preset):
    assert follow(PRESETS[preset], PRESETS[preset], []) == (PRESETS[preset], [])
    config, typed = change(preset, train={"num_steps": 2 * PRESETS[preset].train.num_steps})
    by_steps = replace(config, train=replace(config.train, num_epochs=None))
    assert follow(config, PRESETS[preset], typed) == (by_steps, [])


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"num_steps": 40, "warmup_steps": 50}},
        {"train": {"log_every": 7, "checkpoint_every": 200, "sample_every": 600}},
        {"train": {"checkpoint_every": 7, "steps_per_call": 2, "sample_every": 600}},
        {"diffusion": {"num_timesteps": 20}, "sample": {"num_steps": 21}},
        {"train": {"num_steps": -5}},
        {"train": {"log_every": 0}},
        {"diffusion": {"num_timesteps": 0}},
    ],
)
def test_a_typed_setting_stays_even_if_it_is_refused(sections):
    config, typed = change("fashion-cpu", **sections)
    found, _ = follow(config, PRESETS["fashion-cpu"], typed)
    for section, values in sections.items():
        for name, value in values.items():
            assert getattr(getattr(found, section), name) == value
    with pytest.raises(UserError):
        validate(found)


def test_an_adjustment_names_the_presets_value():
    _, followed = follow_changes("fashion-cpu", train={"num_steps": 40})
    assert followed == [Followed("--train.warmup-steps", 1, 100)]


def test_typed_steps_turn_epochs_off():
    config, followed = follow_changes("epita", train={"num_steps": 500})
    assert config.train.num_epochs is None
    assert not followed


def test_epochs_become_steps_of_the_images_that_are_there():
    few = resolve_epochs(PRESETS["pulfer"], 10_000)
    assert (few.train.num_steps, few.train.checkpoint_every) == (20 * 79, 79)
    assert (few.train.sample_every, few.train.log_every) == (79, 79)
    assert resolve_epochs(PRESETS["pulfer"], 60_000).train.num_steps == 9380
    assert resolve_epochs(few, 10_000) == few
    by_steps = PRESETS["fashion-cpu"]
    assert resolve_epochs(by_steps, 10_000) == by_steps


def test_a_warmup_longer_than_the_epochs_is_scaled():
    preset = PRESETS["ddpm-cifar10"]
    config = replace(preset, train=replace(preset.train, num_epochs=1, evaluate_every=500))
    train = resolve_epochs(config, 50_000).train
    assert (train.num_steps, train.warmup_steps, train.evaluate_every) == (391, 2, 391)


def test_a_preset_that_samples_in_all_timesteps_goes_on_doing_so():
    for preset, steps in (("ddpm-cifar10", 4000), ("fashion-cpu", 50)):
        config, _ = follow_changes(preset, diffusion={"num_timesteps": 4000})
        assert config.sample.num_steps == steps
