from dataclasses import replace
from pathlib import Path

import pytest

from jax_ddpm import runs
from jax_ddpm.cli import sample, train
from jax_ddpm.config.jobs import SampleJob
from jax_ddpm.config.presets import PRESETS
from jax_ddpm.errors import UserError


def read(*args):
    return train.read(args)[0].flags.config


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_every_value(name):
    assert read("--preset", name) == PRESETS[name]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--preset ddpm-256 --preset epita", "--preset is given twice, first ddpm-256 and then"),
        ("--run a --run b", "--run is given twice, first a and then b: give it once"),
        ("--preset --run a", "--preset needs a value"),
    ],
)
def test_two_presets_or_runs_are_not_mixed(args, message):
    with pytest.raises(UserError, match=message):
        train.read(args.split())


def test_without_flags_the_small_preset_is_used():
    assert read() == PRESETS["fashion-cpu"]


def test_flags_change_the_preset_wherever_they_stand():
    args = "--seed 3 --preset ddpm-256 --train.num-steps 70000 --run a/b --model.channel-mult 1 2"
    preset = PRESETS["ddpm-256"]
    assert read(*args.split(), "--data.name", "fashion_mnist") == replace(
        preset,
        seed=3,
        run=Path("a/b"),
        train=replace(preset.train, num_steps=70_000),
        model=replace(preset.model, channel_mult=(1, 2)),
        data=replace(preset.data, name="fashion_mnist"),
    )


def test_short_flags_and_other_names_are_understood():
    config = read(
        "--steps", "300", "--bf16", "--batch-size", "4", "--schedule", "squaredcos_cap_v2"
    )
    assert (config.train.num_steps, config.train.batch_size) == (300, 4)
    assert (config.model.compute_dtype, config.diffusion.schedule) == ("bfloat16", "cosine")


def test_a_run_folder_is_resumed_with_its_own_settings(trained_run):
    stored = runs.load(trained_run).config
    assert read("--run", str(trained_run)) == replace(stored, run=trained_run)
    assert read(f"--run={trained_run}", "--seed", "9").seed == 9


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--preset cifar", "--preset is 'cifar', .*: did you mean 'ddpm-cifar10'"),
        ("--train.batchsize 5", "unknown flag --train.batchsize: did you mean --train.batch-size"),
        ("--train.lr 3", r"unknown flag --train.lr \(--help-all"),
        ("--num-steps 3", "could be --train.num-steps or --sample.num-steps"),
        ("--data.batch-size 3", "did you mean --train.batch-size"),
    ],
)
def test_a_mistyped_command_line_gets_one_sentence(args, message):
    with pytest.raises(UserError, match=message):
        read(*args.split())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--steps -5", r"^--steps is -5, but it must be at least 1$"),
        ("--warmup-steps 5000", r"^--warmup-steps is 5000, .* and --train.num-steps 3400$"),
        ("--steps 40 --warmup-steps 50", r"^--warmup-steps is 50, .* and --steps 40$"),
        ("--label-dropout 2", r"^--label-dropout is 2.0, .* in \[0, 1\)$"),
    ],
)
def test_a_setting_that_cannot_work_is_named_as_it_was_typed(tmp_path, args, message):
    with pytest.raises(UserError, match=message):
        train.run(["--run", str(tmp_path / "run"), *args.split()])
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_would_happen_and_touches_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = "--dry-run --steps 40 --data.image-size 14 --seed 3 --model.channel-mult 1 --attn-levels"
    train.run(args.split())
    out = capsys.readouterr().out
    for line in (
        "Adjusted to fit: --train.warmup-steps 1 (was 100)",
        "10,000 of 14x14x1",
        "unet, 41,857 parameters",
        "40 steps of 16 images, which is 0.064 epochs of 625 steps",
        "runs/fashion-cpu, a new run",
        "preset fashion-cpu, seed 3",
        "warmup_steps 1",
        "sampler ddim",
    ):
        assert " ".join(line.split()) in " ".join(out.split()), line
    assert list(tmp_path.iterdir()) == []


def test_the_sampling_flags_that_other_programs_rely_on_exist():
    args = "runs/a --num 5 --sampler ddim --steps 7 --seed 3 --out a.npz"
    parsed = sample.read(args.split())
    assert parsed.flags.run == Path("runs/a")
    assert parsed.flags.job == SampleJob(num=5, seed=3, out=Path("a.npz"))
    assert parsed.changes("settings") == {"sampler": "ddim", "num_steps": 7}
