"""The parity report: it measures, writes and fails as it should, also from an installed wheel."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from jax_ddpm.errors import UserError
from jax_ddpm.parity.blocks import Block, match_blocks, read_outputs
from jax_ddpm.parity.measure import find_peak, measure_difference
from jax_ddpm.parity.page import render_page
from jax_ddpm.parity.parts import PartName
from jax_ddpm.parity.peers import find_reference
from jax_ddpm.parity.quantities import Pair, Part, measure_part
from jax_ddpm.parity.record import make_record
from jax_ddpm.parity.report import ParityArgs, format_line, leave_out_parts, write_report
from jax_ddpm.parity.tolerances import TOLERANCES, Tolerance
from parity_tests.comparing import GOLDENS
from parity_tests.test_peers import load_recorded_network
from tests.shared.long_tests import mark_others_long

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "parity.py"
MEASURE = set(
    ["absolute", "relative", "ulp", "tolerance", "rounding", "arrays", "numbers", "curve", "ok"]
)
QUANTITY = set(
    ["part", "group", "what", "against", "tolerance_of", "along", "float64", "float32", "ok"]
)
RECORD = set(
    [
        "version",
        "subject",
        "seed",
        "created",
        "ok",
        "summary",
        "environment",
        "parts",
        "left_out",
        "quantities",
    ]
)


def test_differences_are_measured_in_three_units():
    b = np.array([4, -2, 1e-3], np.float32)
    a = b + np.array([0, 2**-21, 1e-3], np.float32)  # 2^-22 is the spacing at 2
    found = measure_difference(a, b, find_peak(b))
    assert found.absolute == pytest.approx(1e-3)
    assert found.relative == pytest.approx(1e-3 / 4)
    assert found.ulp == 2  # the third entry is too small to be counted


@pytest.mark.parametrize(
    ("a", "b", "far"),
    [
        ([np.inf, 1], [np.inf, 1], False),
        ([np.inf, 1], [-np.inf, 1], True),
        ([np.inf, 1], [2, 1], True),
        ([np.nan, 1], [np.nan, 1], True),
        ([2, 1], [np.nan, 1], True),
    ],
)
def test_a_non_finite_number_is_far_away_unless_both_are_the_same_infinity(a, b, far):
    a, b = np.array(a), np.array(b)
    assert measure_difference(a, b, find_peak(b)).relative == (np.inf if far else 0)


def test_ulp_are_counted_only_for_large_entries():
    assert measure_difference(np.full(2, 1e-9), np.zeros(2), 1.0).ulp is None


@pytest.fixture
def quantity(monkeypatch):
    """quantity(gap): its float32 result is off by `gap` in the second of three steps."""

    def make(gap):
        def pairs(dtype, seed):
            theirs = np.full((3, 2), np.float32(1 / 3) if dtype == "float32" else 1 / 3, dtype)
            ours = theirs.copy()
            ours[1] += gap if dtype == "float32" else 0
            yield Pair("a group", "a quantity", "q_sample", ours, theirs, "step")

        monkeypatch.setitem(TOLERANCES, "q_sample", Tolerance(1e-15, 1e-5))
        (found,) = measure_part(Part("a part", "A part", "", "torch_ref", pairs), 0)
        return found

    return make


def test_a_quantity_within_tolerance_is_ok(quantity):
    found = quantity(2**-20)
    assert found.ok and found.float64.relative == 0
    assert found.float32.relative == pytest.approx(3 * 2**-20, rel=1e-6)
    assert found.float32.curve == [0, found.float32.relative, 0]
    assert found.float32.rounding == pytest.approx(3e-8, rel=0.1)  # of 1/3 in float32
    assert format_line(found).endswith("ok")


@pytest.mark.parametrize("gap", [1e-4, np.nan, np.inf])
def test_a_quantity_out_of_tolerance_is_reported(quantity, gap):
    found = quantity(gap)
    assert found.float64.ok and not found.float32.ok and not found.ok
    assert format_line(found).endswith("OUT OF TOLERANCE")


def test_a_part_whose_package_is_not_installed_is_named(quantity):
    parts = [
        Part("a", "A part", "", "torch_ref", lambda dtype, seed: iter(())),
        Part("b", "B", "", "some-package", lambda dtype, seed: iter(()), package="not_there"),
    ]
    remaining, left_out = leave_out_parts(parts)
    sentence = "B: not compared, because some-package is not installed (pip install some-package)"
    assert (remaining, left_out) == (parts[:1], {"b": sentence})
    record = make_record([quantity(0)], remaining, "the library", 0, left_out)
    assert f"<p>{sentence}</p>" in render_page(record)
    with pytest.raises(UserError, match="not compared, because some-package"):
        leave_out_parts(parts[1:])


def test_a_nan_is_written_as_null_and_shown_as_not_finite(quantity):
    part = Part("a part", "A part", "", "torch_ref", lambda dtype, seed: iter(()))
    record = make_record([quantity(np.nan)], [part], "the library", 0)
    json.dumps(record, allow_nan=False)
    found = record["quantities"][0]["float32"]
    assert found["relative"] is None and found["curve"] == [0, None, 0] and not found["ok"]
    assert "<td>not finite<td>" in render_page(record)


def test_slack_follows_the_rounding_of_pytorch():
    """A network may amplify rounding, but our result must not be far off."""

    def quantity(ours, theirs, **settings):
        def pairs(dtype, seed):
            off = (0, 0) if dtype == "float64" else (ours, theirs)
            yield Pair("", "", "q_sample", *(np.array([1 + e, 2], dtype) for e in off))

        return next(measure_part(Part("", "", "", "", pairs, **settings), 0))

    assert TOLERANCES["q_sample"].float32 < 1e-4
    assert not quantity(0, 1e-3).ok
    assert quantity(0, 1e-3, slack=10).ok
    assert not quantity(1e-3, 0, slack=10).ok


class Tags(HTMLParser):
    """Collects every tag, and every attribute that could load something."""

    def __init__(self):
        super().__init__()
        self.tags, self.links = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]


def check_files(folder):
    """Check the keys of a report and that its page loads nothing; return both."""
    record = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert record.keys() == RECORD and record["version"] == 1
    names = [part["name"] for part in record["parts"]]
    for quantity in record["quantities"]:
        assert quantity.keys() == QUANTITY and quantity["part"] in names
        for dtype in ("float64", "float32"):
            assert quantity[dtype].keys() == MEASURE
    page = (folder / "report.html").read_text()
    assert "http" not in page and "url(" not in page.replace("url(#", "") and "@import" not in page
    parser = Tags()
    parser.feed(page)
    assert {"svg", "table", "style"} <= parser.tags
    assert not parser.tags & {"script", "link", "img", "iframe"}
    assert all(link.startswith("#") for link in parser.links)
    for quantity in record["quantities"]:
        assert f">{quantity['what'].replace(chr(39), '&#x27;')}" in page
    return record, page


def test_a_report_is_a_json_file_and_a_page_that_loads_nothing(tmp_path, capsys):
    assert write_report(ParityArgs(out=tmp_path, parts=("schedules", "losses")))
    record, page = check_files(tmp_path)
    assert record["ok"] and "all within tolerance" in page
    assert {q["part"] for q in record["quantities"]} == {"schedules", "losses"}
    assert record["summary"]["quantities"] == len(record["quantities"]) > 100
    assert record["environment"]["torch"] in page
    printed = capsys.readouterr().out
    assert printed.count("  ok") == len(record["quantities"])


def run_script(monkeypatch, *args):
    """The exit code of scripts/parity.py."""
    monkeypatch.setattr(sys, "argv", ["parity.py", *map(str, args)])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return exit_.value.code


def test_a_difference_out_of_tolerance_gives_exit_code_1(monkeypatch, tmp_path, capsys):
    assert run_script(monkeypatch, "--out", tmp_path, "--parts", "losses") == 0
    monkeypatch.setitem(TOLERANCES, "losses", Tolerance(1e-13, 1e-9))
    assert run_script(monkeypatch, "--out", tmp_path, "--parts", "losses") == 1
    record, page = check_files(tmp_path)
    failed = [q["what"] for q in record["quantities"] if not q["ok"]]
    assert not record["ok"] and record["summary"]["out_of_tolerance"] == len(failed) > 5
    assert f"{len(failed)} OUT OF TOLERANCE" in page
    assert capsys.readouterr().out.count("OUT OF TOLERANCE") == len(failed) + 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--weights", "w.npz"], "give both --weights FILE and --source NAME"),
        (["--source", "ho"], "give both --weights FILE and --source NAME"),
        (["--weights", "none.npz", "--source", "ho"], "there is no file none.npz"),
        (["--wieghts", "w.npz"], "did you mean --weights?"),
    ],
)
def test_a_mistake_gives_one_sentence(monkeypatch, tmp_path, args, message):
    code = run_script(monkeypatch, "--out", tmp_path / "out", *args)
    assert code.startswith("error: ") and message in code and "\n" not in code
    assert not (tmp_path / "out").exists()


def test_blocks_are_found_by_the_parameters_they_hold():
    """Of two modules with the same parameters, the one with our output counts, not inner layers."""
    image = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)  # NHWC
    tensor = torch.from_numpy(np.moveaxis(image, -1, 1).copy())
    names = {
        "a.inner.w.weight": "b.w.kernel",
        "a.inner.v.weight": "b.v.kernel",
        "c.weight": "d.kernel",
        "e.weight": "e_0.kernel",
        "g.weight": "g.kernel",
    }
    theirs = {
        "a.inner.w": Block(tensor, None),
        "a.inner": Block(tensor * 3, None),
        "a": Block(tensor, None),
        "c": Block(tensor.flatten(2), None),
        "e": Block(tensor - 1, torch.ones_like(tensor)),  # the residual connection is outside
        "g": Block(tensor + 1, torch.ones_like(tensor)),  # inside, ours is outside
    }
    ours = {
        "b": image,
        "b.w": image,
        "d": image.reshape(2, 12, 5),
        "e_0": image,
        "f": image,
        "g": image,
    }
    found = match_blocks(ours, theirs, names)
    labels = {path: match.label for path, match in found.items()}
    assert labels == {"b": "b = a.inner", "d": "d = c", "e_0": "e_0 = e", "g": "g"}
    for path, match in found.items():
        assert np.array_equal(match.ours, ours[path])
        assert np.array_equal(match.theirs, ours[path])


def test_outputs_of_another_size_are_not_compared():
    assert read_outputs(Block(torch.zeros(2, 5, 3, 4), None), (2, 3, 4, 6)) == []


CHECKPOINTS = {
    "hojonathanho/unet": "ho",
    "lucidrains/unet_self_condition": "lucidrains",
    "guided_diffusion/unet_scaleshift_classcond": "guided_diffusion",
    "annotated_a2_ws/unet_ws_multiply": "annotated_ws",
    "brianpulfer/myunet": "pulfer",
    "diffusers/unet_class_scaleshift": "diffusers",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", mark_others_long(CHECKPOINTS, keep=("brianpulfer/myunet",)))
def test_the_network_of_a_checkpoint_is_within_tolerance(tmp_path, case):
    (recorded,) = GOLDENS.joinpath(case).glob("weights.*")
    weights = recorded
    if recorded.suffix == ".npz":  # packed more tightly than untrusted files may be
        weights = tmp_path / recorded.name
        np.savez(weights, **np.load(recorded))
    config = json.loads((GOLDENS / case / "manifest.json").read_text())["config"]
    config.pop("grad_rows")
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = CHECKPOINTS[case]
    args = ParityArgs(tmp_path, weights, source, tmp_path / "config.json")
    assert write_report(args)
    record, _ = check_files(tmp_path)
    groups = [q["group"] for q in record["quantities"]]
    assert groups.count("blocks, from the first to the last") >= 10


@pytest.mark.slow
def test_other_weights_are_out_of_tolerance(tmp_path, monkeypatch):
    """One number of one weight is off by a thousandth."""
    network = load_recorded_network("hojonathanho/unet", "ho")
    reference = find_reference(network)
    with torch.no_grad():
        reference.module.conv_in.weight[0, 0, 0, 0] *= 1.001
    monkeypatch.setattr("jax_ddpm.parity.peers.find_reference", lambda network: reference)
    monkeypatch.setattr("jax_ddpm.parity.report.read_network", lambda args: network)
    assert not write_report(ParityArgs(tmp_path, Path("weights"), "ho"))
    record, _ = check_files(tmp_path)
    output = next(q for q in record["quantities"] if q["what"] == "output")
    assert not output["float64"]["ok"] and not output["float32"]["ok"]


@pytest.mark.slow
def test_the_command_compares_every_part(tmp_path):
    command = [sys.executable, str(SCRIPT), "--out", "found"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record, page = check_files(tmp_path / "found")
    names = [*(part["name"] for part in record["parts"]), *record["left_out"]]
    assert names == list(get_args(PartName))
    for part in ("chains", "training"):
        chosen = [q for q in record["quantities"] if q["part"] == part]
        assert chosen and all(len(q["float32"]["curve"]) >= 50 for q in chosen)
    assert page.count("<svg") == 3
    assert re.search(r"\d+ quantities, all within tolerance", done.stdout)


def test_flags_that_would_change_nothing_are_refused(tmp_path):
    weights = {"weights": tmp_path / "w.pt", "source": "ho"}
    with pytest.raises(UserError, match="--parts schedules has no effect with --weights"):
        write_report(ParityArgs(tmp_path, **weights, parts=("schedules",)))
    with pytest.raises(UserError, match="give both --weights FILE and --source NAME"):
        write_report(ParityArgs(tmp_path, prefix="ema"))
    assert not list(tmp_path.iterdir())


def test_without_pytorch_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"needs PyTorch, .* pip install 'jax_ddpm\[parity\]'"):
        write_report(ParityArgs())


COMMAND = """
import runpy, sys
from pathlib import Path
sys.modules.update(pytest=None, parity_tests=None, tests=None)
import jax_ddpm
assert Path(jax_ddpm.__file__).is_relative_to(sys.argv[1]), jax_ddpm.__file__
sys.argv = ["jax_ddpm", "parity", "--parts", "process", "network", "--out", "found"]
runpy.run_module("jax_ddpm", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.guard
def test_an_installed_wheel_compares_the_frameworks(tmp_path):
    """`python -m jax_ddpm parity` away from the checkout, without its tests and without pytest."""
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    for name in ("jax_ddpm", "torch_ref"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(checkout)]
    subprocess.run([*pip, *wheel], check=True)
    (built,) = tmp_path.glob("jax_ddpm-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(built)], check=True)
    shutil.rmtree(checkout)
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-P", "-c", COMMAND, str(site)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    check_files(tmp_path / "found")
