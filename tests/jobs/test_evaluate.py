import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jax_ddpm import runs
from jax_ddpm.config.jobs import EvaluateJob, Weights
from jax_ddpm.errors import UserError
from jax_ddpm.files.images import from_uint8
from jax_ddpm.jobs import evaluate as command
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.evaluate import evaluate_run
from jax_ddpm.jobs.generate import image_keys
from jax_ddpm.jobs.likelihood import flow_timesteps, make_bound_fn, make_flow_fn
from jax_ddpm.jobs.parameters import load_params
from jax_ddpm.models import LucidrainsConfig, UNetConfig
from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.likelihood import make_noise_fn, make_reverse_fn, variational_bound

T = 8


@pytest.fixture(scope="module")
def evaluate(trained_run, tmp_path_factory):
    """`evaluate(num=..., ...)`: the JSON that the job writes."""
    folder = tmp_path_factory.mktemp("evaluated")

    def run(weights="ema", **job):
        job = {"num": 6, "batch_size": 4, "out": folder / "found.json"} | job
        out = evaluate_run(trained_run, EvaluateJob(**job), Weights(weights))
        return json.loads(out.read_text())

    return run


@pytest.fixture(scope="module")
def bound(evaluate):
    return evaluate()


@pytest.mark.slow
@pytest.mark.guard
def test_the_parts_of_the_bound_sum_to_the_whole(bound):
    assert len(bound["bits_of_each_image"]) == bound["num_images"] == 6
    assert len(bound["terms"]) == len(bound["x_0_mse"]) == len(bound["eps_mse"]) == T
    assert bound["timesteps"] == list(range(T))
    bits = np.array(bound["bits_of_each_image"])
    np.testing.assert_allclose(bits.mean(), bound["bits_per_dimension"], rtol=1e-12)
    np.testing.assert_allclose(bits.std(ddof=1) / 6**0.5, bound["standard_error"], rtol=1e-12)
    parts = bound["prior"] + bound["decoder"] + bound["rest"]
    np.testing.assert_allclose(parts, bits.mean(), rtol=1e-6)  # float32 sums; measured: 4e-8
    np.testing.assert_allclose(bound["decoder"] + bound["rest"], sum(bound["terms"]), rtol=1e-12)


@pytest.mark.slow
def test_the_job_computes_the_bound_of_the_runs_images(trained_run, bound):
    run = runs.load(trained_run)
    parts = build(run.config, run.image_shape)
    source = command.open_images(EvaluateJob(num=6), run)
    numbers = np.arange(6) * 40 // 6
    x_0 = from_uint8(jnp.asarray(source.images[numbers]))
    denoise_fn = make_denoise_fn(parts.network.apply_fn, load_params(run, parts)[0])
    reverse_fn = make_reverse_fn(parts.schedule, denoise_fn, "fixed_large")
    noise_fn = make_noise_fn(image_keys(0, numbers), x_0.shape[1:])
    found = jax.jit(lambda: variational_bound(parts.schedule, reverse_fn, x_0, noise_fn))()
    np.testing.assert_allclose(bound["bits_of_each_image"], found.total, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bound", "ode"])
def test_an_image_does_not_depend_on_its_batch(evaluate, method):
    one, other = (evaluate(method=method, batch_size=size)["bits_of_each_image"] for size in (4, 6))
    np.testing.assert_allclose(one, other, rtol=1e-5)
    assert len(set(one)) == 6


@pytest.mark.parametrize(
    "args",
    [
        {"seed": 1},
        {"weights": "raw"},
        {"respacing": "4"},
        {"variance": "fixed_small"},
        {"clip_x_0": False},
        {"split": "test", "num": 5},
        {"method": "ode", "steps": 7},
        {"method": "ode", "steps": 3},
        {"method": "ode", "probes": 3},
    ],
)
@pytest.mark.slow
def test_every_flag_changes_the_number(evaluate, bound, args):
    found = evaluate(**args)
    assert np.isfinite(found["bits_per_dimension"])
    default = evaluate(method="ode", steps=6) if "method" in args else bound
    assert abs(found["bits_per_dimension"] - default["bits_per_dimension"]) > 1e-5


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize(
    ("args", "printed"),
    [
        ({"batch_size": 4}, "40 training images of fashion_mnist, variational bound of 8"),
        pytest.param(
            {"num": 1, "split": "test", "method": "ode"},
            "1 test images of fashion_mnist, probability flow in 7 steps",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_json_and_figure_go_into_the_run_folder(trained_run, tmp_path, capsys, args, printed):
    folder = tmp_path / "run"
    shutil.copytree(trained_run, folder)
    out = evaluate_run(folder, EvaluateJob(**args))
    assert sorted(p.name for p in out.parent.iterdir()) == ["likelihood.json", "likelihood.png"]
    assert out.parent == folder / "evaluation"
    assert (json.loads(out.read_text())["standard_error"] is None) == (args.get("num") == 1)
    with Image.open(out.with_suffix(".png")) as image:
        assert min(image.size) > 300
    output = capsys.readouterr().out
    assert printed in output
    assert "bits/dim" in output


def forbid_work(*args, **kwargs):
    raise AssertionError("it began to work before it checked the flags")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"num": 0}, "--num is 0"),
        ({"num": 41}, "--num is 41, .* at most 40, the number of images"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"method": "ode", "steps": 8}, "--steps is 8, .* between 1 and T - 1 = 7"),
        ({"method": "ode", "probes": 0}, "--probes is 0"),
        ({"method": "ode", "respacing": "4"}, "--respacing 4 needs --method bound"),
        (
            {"method": "ode", "variance": "fixed_small"},
            "--variance fixed_small needs --method bound",
        ),
        ({"steps": 4}, "--steps 4 needs --method ode"),
        ({"respacing": "9"}, "--respacing 9"),
        ({"respacing": "all"}, "--respacing all"),
        ({"weights": "old"}, "--weights is old"),
        ({"seed": -1}, "--seed"),
        ({"out": "a.txt"}, "a file that ends in .json"),
        ({"out": "/dev/null/a.json", "num": 6}, "/dev/null/a.json could not be written"),
    ],
)
def test_flags_that_cannot_work_are_refused_before_any_work(
    trained_run, tmp_path, monkeypatch, args, message
):
    for step in ("build", "load_params"):
        monkeypatch.setattr(command, step, forbid_work)
    weights = Weights(args.pop("weights", "ema"))
    args |= {"out": tmp_path / args["out"]} if "out" in args else {}
    with pytest.raises(UserError, match=message):
        evaluate_run(trained_run, EvaluateJob(**args), weights)


def test_a_folder_without_a_trained_run_is_refused(trained_run, tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        evaluate_run(tmp_path, EvaluateJob())
    shutil.copy(trained_run / "config.json", tmp_path)
    with pytest.raises(UserError, match="train it first"):
        evaluate_run(tmp_path, EvaluateJob(num=1))
    assert not (tmp_path / "evaluation").exists()


def test_a_learned_variance_cannot_be_replaced(make_config, tmp_path):
    config = make_config(tmp_path, diffusion={"variance": "learned_range", "objective": "hybrid"})
    run = runs.Run(tmp_path, config, (8, 8, 1))
    assert command.choose_variance(EvaluateJob(), run) == "learned_range"
    with pytest.raises(UserError, match="has learned its variance"):
        command.choose_variance(EvaluateJob(variance="fixed_small"), run)


NETWORKS = {
    "labels": UNetConfig(
        channels=4,
        channel_mult=(1,),
        num_res_blocks=1,
        attn_levels=(),
        num_groups=2,
        num_classes=10,
    ),
    "self-conditioning": LucidrainsConfig(dim=8, dim_mults=(1,), self_condition=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bound", "ode"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_likelihoods_work_with_labels_or_self_conditioning_and_a_learned_variance(
    make_config, tmp_path, kind, method
):
    config = replace(
        make_config(
            tmp_path,
            diffusion={
                "variance": "learned_range",
                "objective": "hybrid",
                "rescale_timesteps": True,
                "schedule": "cosine",
                "zero_terminal_snr": True,
                "prediction_type": "v",
            },
        ),
        model=NETWORKS[kind],
    )
    parts = build(config, (8, 8, 1))
    params = parts.network.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    params = tree.unflatten(
        [
            leaf + 0.1 * jax.random.normal(jax.random.key(i), leaf.shape)
            for i, leaf in enumerate(leaves)
        ]
    )
    make = make_flow_fn if method == "ode" else make_bound_fn
    timesteps = flow_timesteps(T, 4) if method == "ode" else np.arange(T - 1, -2, -1)
    extra = {"num_probes": 1} if method == "ode" else {"variance": "learned_range"}
    fn = make(parts, clip_x_0=False, timesteps=timesteps, **extra)
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8))
    keys = image_keys(0, np.arange(3))
    labels = None if parts.num_labels is None else jnp.array([0, 1, 2])
    bits = fn(params, (pixels, labels, keys))["bits"]
    assert bits.shape == (3,) and bool(jnp.isfinite(bits).all())
    if labels is not None:
        changed = fn(params, (pixels, jnp.array([0, 1, 3]), keys))["bits"]
        np.testing.assert_array_equal(changed[:2], bits[:2])
        assert changed[2] != bits[2]


@pytest.mark.parametrize(("T", "num_steps"), [(1000, 200), (1000, 999), (8, 7), (2, 1), (50, 7)])
def test_the_levels_of_the_flow_are_all_different_and_reach_both_ends(T, num_steps):
    timesteps = flow_timesteps(T, num_steps)
    assert (len(timesteps), timesteps[0], timesteps[-1]) == (num_steps + 1, 0, T - 1)
    assert (np.diff(timesteps) >= 1).all()
