"""A flag that would change nothing is refused, also in commands that neither train nor sample."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jax_ddpm.cli import convert, prepare
from jax_ddpm.config.jobs import QualityJob, Weights
from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, to_state_dict
from jax_ddpm.interop.files import write_weights
from jax_ddpm.jobs.quality import evaluate_quality
from jax_ddpm.models import UNetConfig, parameter_shapes

PREPARE = "--name a --data.name arrays --data.path a.npz"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--data.skip-bad", "--data.skip-bad has no effect here: it needs --data.name folder"),
        ("--data.crop none", "--data.crop none has no effect here: it needs --data.image-size"),
        ("--resize box", "--resize box has no effect here: it needs --data.image-size"),
    ],
)
def test_prepare(args, message, tmp_path):
    with pytest.raises(UserError, match=message):
        prepare.run([*PREPARE.split(), "--out", str(tmp_path), *args.split()])
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with one set of weights."""
    config = UNetConfig(
        channels=4, channel_mult=(1,), num_res_blocks=1, attn_levels=(), num_groups=2
    )
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), parameter_shapes(config))
    path = tmp_path_factory.mktemp("weights") / "a.npz"
    write_weights(path, to_state_dict(zeros, PEERS["torch_ref"]))
    path.with_suffix(".json").write_text('{"num_groups": 2}')
    return path


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--run b", "--run has no effect here: --out names the new run"),
        ("--preset cifar10", "--preset has no effect here: --source chooses the preset"),
        ("--weights raw", "--weights raw has no effect: .*a.npz holds one set of weights"),
        ("--train.ema-power 0.5", "--train.ema-power 0.5 has no effect .* --train.ema-form power"),
    ],
)
def test_convert(args, message, weights, tmp_path):
    out = ["--source", "torch_ref", "--data.image-size", "8", "--out", str(tmp_path / "run")]
    with pytest.raises(UserError, match=message):
        convert.run([str(weights), *out, *args.split()])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("job", "weights", "message"),
    [
        ({"reference": Path("a.npz"), "split": "test"}, "ema", "--split test has no effect with"),
        ({"raw_too": True}, "raw", "--raw-too has no effect with --weights raw"),
    ],
)
def test_evaluate(job, weights, message, tmp_path):
    with pytest.raises(UserError, match=message):
        evaluate_quality(tmp_path, QualityJob(**job), weights=Weights(weights))
