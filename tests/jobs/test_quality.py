import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jax_ddpm.config.jobs import QualityJob, Weights
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.errors import UserError
from jax_ddpm.files.statistics import read_statistics, write_statistics
from jax_ddpm.jobs import quality as command
from jax_ddpm.jobs import reference as references
from jax_ddpm.jobs.features import choose_features, make_own
from jax_ddpm.jobs.quality import evaluate_quality
from jax_ddpm.jobs.quality_report import compare_figures, read_report
from jax_ddpm.quality.frechet import Gaussian, fit_gaussian, frechet_distance
from jax_ddpm.quality.manifolds import Neighbours

OWN = """
import jax.numpy as jnp

def features(images):
    x = images.astype(jnp.float32).reshape(len(images), -1) / 255
    return jnp.stack([x.mean(1), x.std(1), x.max(1)], axis=1)

def scalar(images):
    return images.sum()
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mine.py"
    path.write_text(OWN)
    return f"{path}:features"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jax_ddpm"


@pytest.fixture
def evaluate(trained_run, tmp_path, own):
    """`evaluate(num=..., ...)`: the JSON that the job writes."""

    def run(changes=None, weights="ema", name="found", **job):
        job = {"num": 24, "batch_size": 16, "features": own, "out": tmp_path / f"{name}.json"} | job
        out = evaluate_quality(trained_run, QualityJob(**job), changes, Weights(weights))
        return json.loads(out.read_text())

    return run


def figures(report, number=0):
    return report["results"][number]["figures"]


@pytest.mark.slow
@pytest.mark.guard
def test_the_report_holds_every_figure_and_what_stands_beside_it(evaluate, tmp_path, capsys, cache):
    report = evaluate(raw_too=True)
    out = capsys.readouterr().out
    assert report["images"] == 24 and report["sampler"] == "ddim" and report["steps"] == 4
    assert report["reference"] == "40 training images of fashion_mnist"
    assert [each["parameters"].split()[0] for each in report["results"]] == ["ema", "raw"]
    found = figures(report)
    assert list(found) == ["frechet", "kernel", "precision", "recall", "density", "coverage"]
    assert found["frechet"]["title"] == "FD in mine.py:features"
    assert found["frechet"]["margin"] > 0
    assert found["frechet"]["value"] != figures(report, 1)["frechet"]["value"]
    assert "FD in mine.py:features" in out and "+-" in out and "FID" not in out
    assert "24 images with ddim in 4 steps" in out
    with Image.open(tmp_path / "found_neighbours.png") as sheet:
        assert sheet.size == (4 * 58 + 2, 12 * 58 + 2)
    assert (tmp_path / "found_neighbours_raw.png").is_file()
    assert report["baseline"]["parameters"] == "24 real images, test images of fashion_mnist"
    assert list(report["baseline"]["figures"]) == list(found)
    assert report["baseline"]["figures"]["frechet"]["value"] < found["frechet"]["value"]
    assert "24 real images, test images of fashion_mnist" in out
    assert len(list((cache / "references").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.guard
def test_the_distance_is_that_of_the_images_that_are_drawn(evaluate, trained_run, tmp_path, own):
    from jax_ddpm.config.jobs import SampleJob
    from jax_ddpm.jobs.sample import sample_run

    report = evaluate(measures=("frechet",))
    drawn = sample_run(trained_run, SampleJob(num=24, batch_size=16, out=tmp_path / "a.npz"))
    apply = choose_features(QualityJob(features=own), (8, 8, 1)).apply
    with np.load(drawn) as file:
        features = np.asarray(apply(None, jnp.asarray(file["arr_0"]))[0])
    evaluate(measures=("frechet",), write_reference=tmp_path / "ref.npz")
    reference = read_statistics(tmp_path / "ref.npz")
    expected = frechet_distance(fit_gaussian(features), reference)
    np.testing.assert_allclose(
        figures(report)["frechet"]["value"], expected, rtol=1e-5
    )  # measured: 9e-8
    again = evaluate(measures=("frechet",), reference=tmp_path / "ref.npz")
    np.testing.assert_allclose(
        figures(again)["frechet"]["value"], expected, rtol=1e-5
    )  # measured: 9e-8
    assert again["reference"] == "statistics in ref.npz"


@pytest.mark.slow
def test_a_cached_reference_is_read_and_a_damaged_one_replaced(evaluate, cache, monkeypatch):
    first = evaluate(measures=("frechet",))
    (path,) = (cache / "references").glob("*train*")
    monkeypatch.setattr(references, "extract_all", None)
    assert figures(evaluate(measures=("frechet",))) == figures(first)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    path.write_bytes(path.read_bytes()[:-30])
    assert figures(evaluate(measures=("frechet",))) == figures(first)


@pytest.mark.slow
@pytest.mark.guard
def test_two_reports_are_compared_honestly(evaluate, tmp_path, capsys, trained_run):
    evaluate(name="other", measures=("frechet", "precision"))
    same = evaluate(seed=1, against=tmp_path / "other.json", measures=("frechet", "precision"))
    out = capsys.readouterr().out
    assert "FD in mine.py:features: " in out and "no range is known" in out
    with pytest.raises(UserError, match=r"differ in their images \(30 here, 24 there\)"):
        evaluate(num=30, against=tmp_path / "other.json", measures=("frechet",))
    with pytest.raises(UserError, match="has not been evaluated"):
        evaluate(against=tmp_path)
    with pytest.raises(UserError, match="is not a report"):
        read_report(trained_run / "config.json")
    assert same["format"] == "jax_ddpm quality 1"


def test_a_difference_is_said_to_be_chance_only_inside_the_joint_range():
    mine, theirs = ({"title": "FD", "value": v, "margin": 3.0} for v in (10.0, 14.0))
    assert "-4 is inside the range of +- 4.2" in compare_figures(mine, theirs)
    assert "-5 is outside the range" in compare_figures(mine, theirs | {"value": 15.0})


def forbid_work(*args, **kwargs):
    raise AssertionError("it began to work before it checked the flags")


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"num": 19}, "--num is 19, but it must be at least 20"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"seed": -1}, "--seed"),
        (
            {"features": "inceptoin"},
            "fashion, inception or FILE.py:FUNCTION: did you mean inception",
        ),
        ({"features": "fashion"}, "takes grey images of 28x28, but these are 8x8x1"),
        ({"features": "none.py:f"}, "there is no file none.py"),
        ({"inception": "none.pth"}, "--inception is for Inception's features"),
        ({"features": None, "inception": "none.pth"}, "none.pth: there is no such file"),
        ({"measures": ("score",)}, "--measures score needs classes: choose among frechet"),
        ({"out": "a.txt"}, "a file that ends in .json"),
        ({"write_reference": "a.json"}, "a file that ends in .npz"),
    ],
)
def test_flags_that_cannot_work_are_refused_before_any_work(
    trained_run, tmp_path, monkeypatch, own, job, message
):
    for step in ("build", "load_params", "open_data"):
        monkeypatch.setattr(command, step, forbid_work)
    job = {"features": own} | job
    from pathlib import Path

    for name in ("out", "inception", "write_reference"):
        job |= {name: Path(job[name])} if name in job else {}
    with pytest.raises(UserError, match=message):
        evaluate_quality(trained_run, QualityJob(**job))


def test_a_measure_that_needs_more_images_than_there_are_is_left_out(capsys):
    source = ImageSource(np.zeros((5, 8, 8, 1), np.uint8), np.zeros(5, np.int32))
    names = ["frechet", "precision", "density"]
    assert command.drop_unmeasurable(names, QualityJob(), source) == ["frechet", "precision"]
    out = capsys.readouterr().out
    assert out == "density needs at least 6 images to compare with, not 5: it is left out\n"
    with pytest.raises(UserError, match="--measures density needs at least 6 images"):
        command.drop_unmeasurable(names, QualityJob(measures=("prdc",)), source)
    one = source._replace(images=source.images[:1])
    with pytest.raises(UserError, match="needs at least 2 images to compare with, not 1"):
        command.drop_unmeasurable(["frechet"], QualityJob(), one)


def test_the_sheet_of_neighbours_fits_data_of_two_images(tmp_path):
    images = np.zeros((2, 8, 8, 1), np.uint8)
    nearest = Neighbours(np.array([[0, 1]] * 20), np.zeros((20, 2)))
    source = ImageSource(images, np.zeros(2, np.int32))
    command.save_neighbours(tmp_path / "a.png", np.zeros((20, 8, 8, 1), np.uint8), source, nearest)
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.size[1] > 3 * sheet.size[0]  # twelve rows of three images


def test_the_fields_names_of_measures_are_accepted():
    assert QualityJob(measures=("fid", "prdc", "kid", "frechet", "is")).measures == (
        "frechet",
        "precision",
        "density",
        "kernel",
        "score",
    )
    with pytest.raises(UserError, match="did you mean 'fid'"):
        QualityJob(measures=("fidd",))


def test_statistics_alone_allow_no_measure_of_images(trained_run, tmp_path, own):
    write_statistics(tmp_path / "s.npz", Gaussian(np.zeros(4), np.eye(4)))
    job = QualityJob(features=own, reference=tmp_path / "s.npz", num=20, measures=("kernel",))
    with pytest.raises(UserError, match="kernel needs images, not only statistics"):
        evaluate_quality(trained_run, job)


def test_features_must_be_one_vector_per_image(own):
    with pytest.raises(UserError, match=r"is not features\(images .*returns"):
        make_own(own.replace(":features", ":scalar"), (8, 8, 1))


def test_without_a_network_the_way_out_is_named(monkeypatch, tmp_path):
    from jax_ddpm.jobs import features

    url = "http://127.0.0.1:9/weights.pth"
    monkeypatch.setattr(features, "INCEPTION", features.INCEPTION._replace(url=url))
    with pytest.raises(UserError, match=r"could not be downloaded .*--inception FILE"):
        choose_features(QualityJob(), (32, 32, 3))
