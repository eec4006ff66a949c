"""`fit` trains on arrays as the command does, with a preset's network or your own."""

import gc
import json
import signal
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ddpm as jd
from jax_ddpm.api.arrays import make_source
from jax_ddpm.api.fit import change_config, choose_network
from jax_ddpm.jobs.train import train
from tests.api.test_plug_in import make_equinox, make_nnx
from tests.shared.docstrings import run_examples

pytestmark = pytest.mark.usefixtures("one_device")

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8)
LABELS = np.arange(24) % 3


def init_plain(key):
    return {"scale": 0.1 * jax.random.normal(key, (1, 1, 1, 1)), "bias": jnp.zeros((1, 1, 1, 1))}


def apply_plain(params, x_t, t):
    return params["scale"] * x_t + params["bias"]


OWN = (init_plain, apply_plain)


@pytest.fixture
def config(make_config, tmp_path):
    """`config(train=..., ...)`: the tiny configuration, without a folder."""
    return lambda **changes: replace(make_config(tmp_path, **changes), run=None)


def are_equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: (np.asarray(x) == np.asarray(y)).all(), a, b))


@pytest.mark.slow
@pytest.mark.guard
def test_it_trains_the_same_run_as_the_command(config, make_config, tmp_path):
    np.savez(tmp_path / "images.npz", images=IMAGES)
    data = {"name": "arrays", "path": tmp_path / "images.npz"}
    with jax.enable_x64(False):
        train(make_config(tmp_path / "command", data=data))
    run = jd.fit(IMAGES, config=config())
    command = jd.load_run(tmp_path / "command")
    assert are_equal(run.params, command.params)
    np.testing.assert_array_equal(run.sample(4), command.sample(4))
    assert [path.name for path in run.folder.glob("*.png")] == ["samples.png", "loss.png"]


@pytest.mark.slow
@pytest.mark.guard
def test_a_run_folder_stays_and_can_be_resumed(config, tmp_path, capsys):
    folder = tmp_path / "mine"
    settings = {"config": config(), "network": OWN}
    first = jd.fit(IMAGES, **settings, run=folder, max_steps=6)
    printed = capsys.readouterr().out
    assert "Stopped early, with the ema parameters of step 6; call fit again to resume" in printed
    assert "step 6" in repr(first)
    second = jd.fit(IMAGES, **settings, run=folder)
    assert "step 12" in repr(second)
    assert are_equal(second.params, jd.fit(IMAGES, **settings).params)


def test_keywords_change_settings(config):
    changes = {
        "steps": 3,
        "learning_rate": 0.5,
        "prediction_type": "v_prediction",
        "num_timesteps": 6,
        "random_flip": False,
        "seed": 7,
        "max_grad_norm": None,
    }
    changed = change_config(config(), changes)
    assert (changed.train.num_steps, changed.train.learning_rate, changed.seed) == (3, 0.5, 7)
    assert (changed.diffusion.prediction_type, changed.diffusion.num_timesteps) == ("v", 6)
    assert not changed.data.random_flip
    assert changed.train.max_grad_norm is None
    assert changed.train.warmup_steps <= 3  # follows


def test_adjusted_settings_are_printed_without_flags(config, capsys):
    change_config(config(), {"steps": 2})
    assert "warmup_steps is 1 (the preset has 4)" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.guard
def test_held_out_images_give_a_validation_loss(config):
    run = jd.fit(IMAGES, config=config(), network=OWN, holdout=0.25, validate_every=3)
    rows = [json.loads(line) for line in run.files.metrics.read_text().splitlines()]
    assert [0 < row["validation_loss"] < 10 for row in rows] == [True] * 4


def test_labels_make_the_network_conditional(config):
    source = make_source(IMAGES, LABELS)
    changed, _ = choose_network(config(), None, source, True)
    assert changed.model.num_classes == 3
    dropped = change_config(config(), {"label_dropout": 0.2})
    changed, _ = choose_network(dropped, None, source, True)
    assert changed.model.num_classes == 4  # and "no class"


def apply_with_label(params, x_t, t, *, label):
    return apply_plain(params, x_t, t) + params["bias"] * label[:, None, None, None]


@pytest.mark.slow
@pytest.mark.guard
def test_your_own_network_is_trained_and_loaded(config, tmp_path):
    run = jd.fit(IMAGES, config=config(), network=OWN, run=tmp_path / "own", optimizer="muon")
    assert not are_equal(run.params, init_plain(jax.random.key(0)))
    loaded = jd.load_run(tmp_path / "own", network=OWN)
    np.testing.assert_array_equal(loaded.sample(4), run.sample(4))
    with pytest.raises(jd.UserError, match=r"network of your own, .* load_run\(folder, network="):
        jd.load_run(tmp_path / "own")


@pytest.mark.slow
@pytest.mark.guard
def test_your_own_network_can_take_labels(config):
    run = jd.fit(IMAGES, LABELS, config=config(), network=(init_plain, apply_with_label), steps=3)
    assert run.parts.num_labels == 3
    assert (run.sample(3, label=0) != run.sample(3, label=2)).any()


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize("make", [make_nnx, make_equinox])
def test_networks_of_other_frameworks_are_trained(config, make):
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        apply_fn, params = make()
        run = jd.fit(IMAGES, config=config(), network=(lambda key: params, apply_fn), steps=3)
        assert jax.tree.structure(run.params) == jax.tree.structure(params)
        assert run.sample(2, steps=2).shape == (2, 8, 8, 1)


class Small(nn.Module):
    @nn.compact
    def __call__(self, x_t, t):
        return nn.Conv(1, (1, 1))(x_t)


@pytest.mark.slow
@pytest.mark.guard
def test_a_linen_module_is_trained_in_a_folder_that_is_removed_with_the_object(config):
    run = jd.fit(IMAGES[..., 0], config=config(), network=Small(), steps=3)
    assert run.params["Conv_0"]["kernel"].shape == (1, 1, 1, 1)
    assert run.sample(2, steps=2).shape == (2, 8, 8, 1)
    folder = run.folder
    assert (folder / "config.json").exists()
    del run
    gc.collect()
    assert not folder.exists()


def test_a_configuration_replaces_the_presets_network(config):
    wide = jd.UNetConfig(channels=8, channel_mult=(1,), attn_levels=(), num_groups=2)
    changed, own = choose_network(config(), wide, make_source(IMAGES), False)
    assert (changed.model, own) == (wide, None)


def test_ctrl_c_returns_the_unfinished_run(config, capsys):
    calls = []

    def apply_fn(params, x_t, t):
        jax.debug.callback(lambda: calls.append(signal.raise_signal(signal.SIGINT)))
        return apply_plain(params, x_t, t)

    run = jd.fit(IMAGES, config=config(), network=(init_plain, apply_fn))
    assert calls
    assert "Stopped early, with the ema parameters of step" in capsys.readouterr().out
    assert int(run.description.split("step ")[1]) < 12


FLOATS = IMAGES / 255
MISTAKES = {
    "floats from 0 to 1": (
        lambda: jd.fit(FLOATS),
        r"images are float64, but fit takes uint8 pixels: if they go from 0 to 1, \(255 \* images\)",
    ),
    "floats from -1 to 1": (lambda: jd.fit(2 * FLOATS - 1), "from -1 to 1, .*jd.to_uint8"),
    "floats up to 255": (lambda: jd.fit(255 * FLOATS), r"from 0 to 255; .* images.round\(\)"),
    "whole numbers of another type": (lambda: jd.fit(IMAGES.astype(int)), "images are int64, but"),
    "one image": (
        lambda: jd.fit(IMAGES[0, :, :, 0]),
        r"images have shape \(8, 8\), but it must be",
    ),
    "channels first": (
        lambda: jd.fit(np.zeros((4, 3, 16, 16), np.uint8)),
        r"looks like \[batch, channels, height, width\]",
    ),
    "two channels": (lambda: jd.fit(np.zeros((4, 8, 8, 2), np.uint8)), "images have 2 channels"),
    "labels of other images": (
        lambda: jd.fit(IMAGES, LABELS[:3]),
        r"labels are int64 of shape \(3,\)",
    ),
    "labels that are not numbers": (
        lambda: jd.fit(IMAGES, ["shoe"] * 24),
        "labels are <U4 of shape",
    ),
    "an unknown preset": (lambda: jd.fit(IMAGES, config="fashion"), "fashion-cpu"),
    "a number for a preset": (
        lambda: change_config(3, {}),
        "config is int, but it must be the name",
    ),
    "a misspelt setting": (
        lambda: jd.fit(IMAGES, lerning_rate=0.1),
        "fit takes no keyword 'lerning_rate': did you mean 'learning_rate'?",
    ),
    "a setting of the wrong type": (lambda: jd.fit(IMAGES, steps="many"), "num_steps"),
    "a setting that cannot work": (
        lambda: jd.fit(IMAGES, learning_rate=-1.0),
        "^learning_rate is -1.0, but it must be positive",
    ),
    "more images per step than there are": (
        lambda: jd.fit(IMAGES, batch_size=32),
        "^batch_size 32 is larger than the data set",
    ),
    "no network": (
        lambda: jd.fit(IMAGES, network="unet"),
        r"network is str, but it must be a configuration .* \(init, apply_fn\)",
    ),
    "a network that returns something else": (
        lambda: jd.fit(
            IMAGES, network=(init_plain, lambda params, x_t, t: x_t[:, :4]), batch_size=8
        ),
        "the network returns 4x8x1 for images of 8x8x1",
    ),
    "labels for a network without classes": (
        lambda: jd.fit(IMAGES, LABELS, config="pulfer"),
        "PulferConfig takes no labels: leave them out",
    ),
    "no labels for a network with classes": (
        lambda: jd.fit(IMAGES, config="guided-diffusion"),
        r"GuidedDiffusionConfig has 1000 classes, but no labels were given",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.usefixtures("unchecked_types")
def test_a_mistake_gets_one_sentence(mistake, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    make, message = MISTAKES[mistake]
    with pytest.raises(jd.UserError, match=message):
        make()


@pytest.mark.slow
@pytest.mark.guard
def test_the_example_in_its_docstring_runs(one_device):
    assert run_examples(jd.fit)["run"].config.train.num_steps == 4
