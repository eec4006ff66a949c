"""The report: one page that shows a run, or several, and loads nothing else."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from jax_ddpm import runs
from jax_ddpm.cli import report as command
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.report import write_report
from jax_ddpm.jobs.report.charts import Curve, draw_chart, make_axis, make_log_axis
from jax_ddpm.jobs.report.ending import format_duration, list_next
from jax_ddpm.runs.calls import Call, append_call, read_calls

VOID = {"meta", "img", "input", "path", "circle", "br", "link"}
OPTIONAL = {"tr", "td", "th", "dt", "dd", "p"}  # elements that HTML closes by itself


class Page(HTMLParser):
    """Checks that elements are closed, and collects addresses and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.text = [], [], []
        self.feed(text)
        assert self.open == ["html"] or self.open == []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID | OPTIONAL:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID | OPTIONAL:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def copied_run(trained_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "a run"
    shutil.copytree(trained_run, folder)
    return folder


def test_training_leaves_a_page_that_loads_nothing_and_shows_everything(trained_run):
    text = (trained_run / "report.html").read_text()
    page = Page(text)
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert "http" not in re.sub(r"data:image/\S+", "", text)
    for section in ("Curves", "Samples", "Data", "Configuration", "Environment", "Next"):
        assert f"<h2>{section}</h2>" in text
    words = " ".join(page.text)
    assert "12 steps of 8 images" in words and "Half of them are mirrored" in words
    assert text.count("data-step=") == 2  # the grids of steps 6 and 12
    assert "left out" not in words


def test_several_runs_stand_side_by_side_with_what_differs(copied_run, trained_run):
    document = json.loads((copied_run / "config.json").read_text())
    run = runs.load(copied_run)
    changed = replace(run.config, sample=replace(run.config.sample, num_steps=3))
    del document["seal"]
    runs.write_config(replace(run, config=changed))
    out = write_report([trained_run, copied_run], copied_run / "both.html")
    words = " ".join(Page(out.read_text()).text)
    assert "a run, training" in words and "finished_run, training" in words
    assert "--sample.num-steps 4 3" in " ".join(words.split())


def test_names_are_escaped(copied_run):
    folder = copied_run.with_name("<b>&name")
    copied_run.rename(folder)
    try:
        text = write_report([folder]).read_text()
    finally:
        folder.rename(copied_run)
    assert html.escape("<b>&name") in text and "<b>&name" not in text
    Page(text)


def test_damaged_files_are_left_out_and_said(copied_run):
    for name in ("sampling.gif", "samples/step_0000012.png"):
        (copied_run / name).write_bytes(b"no picture")
    (copied_run / "calls.jsonl").write_text('{"first_step": "x"}\n[]\nnonsense\n')
    (copied_run / "evaluation").mkdir()
    (copied_run / "evaluation" / "quality.json").write_text("{}")
    words = " ".join(Page(write_report([copied_run]).read_text()).text)
    assert "sampling.gif is not a picture" in words
    assert "step_0000012.png is not a picture" in words
    assert "quality.json is not a report" in words


def test_a_folder_that_is_no_run_and_another_suffix_are_refused(tmp_path, trained_run):
    with pytest.raises(UserError, match="not a run folder"):
        write_report([tmp_path])
    with pytest.raises(UserError, match=r"ends in \.html"):
        command.run([str(trained_run), "--out", str(tmp_path / "page.pdf")])
    with pytest.raises(UserError, match="1 to 6 runs"):
        write_report([trained_run] * 7)


def test_a_run_that_has_not_begun_has_a_page(tmp_path, make_config):
    run = runs.Run(tmp_path / "new", make_config(tmp_path / "new"), (8, 8, 1))
    runs.write_config(run)
    words = " ".join(Page(write_report([run.folder]).read_text()).text)
    assert "No step is logged yet" in words and "To continue training" in words


def test_what_comes_next_depends_on_whether_the_rate_decays(make_config, tmp_path):
    run = runs.Run(tmp_path, make_config(tmp_path), (8, 8, 1))
    assert [each.words[0] for each in list_next(run, 6)] == ["train", "sample", "evaluate"]
    assert "--train.init-from" in list_next(run, 12)[-1].words
    constant = make_config(tmp_path, train={"decay": "constant"})
    assert list_next(replace(run, config=constant), 12)[-1].words[-1] == "24"


@pytest.mark.parametrize(
    ("ends", "ticks"),
    [
        ((0, 2600), (0, 1000, 2000)),
        ((0.5, 0.5), (0.4, 0.6)),
        ((0, 0), (0, 0.5, 1)),
        ((-1, 3), (-1, 0, 1, 2, 3)),
    ],
)
def test_ticks_are_round_numbers(ends, ticks):
    assert make_axis(*ends).ticks == pytest.approx(ticks)


def test_a_logarithmic_axis_has_ticks_in_every_range():
    for high in (3.1, 12, 500, 1e9):
        axis = make_log_axis(1.01, high)
        assert 1 <= len(axis.ticks) <= 5
        assert all(0 <= axis.place(tick) <= 1 for tick in axis.ticks)


@pytest.mark.parametrize(
    "values", [[1.0], [0.0, 0.0], [1e-9, 1e9], list(range(1, 1000)), [-2.0, 5.0]]
)
def test_every_point_of_a_chart_lies_inside(values):
    chart = draw_chart("a", [Curve("b", range(1, len(values) + 1), values)], is_log=True)
    for line in re.findall(r'class="curve[^"]*" d="M([^"]*)"', chart.split("<ul>")[0]):
        for point in line.split("L"):
            x, y = map(float, point.split())
            assert 52 <= x <= 410 and 8 <= y <= 204


def test_durations_have_the_unit_that_suits_them():
    assert [format_duration(s) for s in (3, 95, 7500)] == ["3 seconds", "1.6 minutes", "2.1 hours"]


def test_calls_are_read_back(tmp_path):
    calls = [Call(0, 6, 1.5, "2026-01-01", {"jax": "1"}), Call(6, 12, 2.0, "2026-01-02", {})]
    for call in calls:
        append_call(tmp_path / "calls.jsonl", call)
    assert read_calls(tmp_path / "calls.jsonl") == calls


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_without_a_sideways_scrollbar(
    trained_run, tmp_path, width, scheme
):
    """A probe at the end of the page draws what it finds into the title, and --dump-dom prints it."""
    probe = (
        "<script>addEventListener('load', () => { const d = document.documentElement, i = "
        "document.querySelector('.slides input'); i.value = 0; i.dispatchEvent(new Event('input'));"
        "document.title = [d.scrollWidth <= innerWidth, getComputedStyle(document.body)"
        ".backgroundColor, document.querySelector('output').textContent, [...document.images]"
        ".every(i => i.complete && (i.naturalWidth || i.hidden))].join(' | '); })</script>"
    )
    page = tmp_path / "page.html"
    page.write_text((trained_run / "report.html").read_text() + probe)
    picture = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    options += ["--virtual-time-budget=2000", f"--user-data-dir={tmp_path / 'profile'}"]
    options += [f"--blink-settings=preferredColorScheme={'0' if scheme == 'dark' else '1'}"]
    shown = subprocess.run(
        [BROWSER, *options, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    back = "rgb(18, 21, 27)" if scheme == "dark" else "rgb(251, 251, 250)"
    title = re.search("<title>(.*?)</title>", shown.stdout)[1]
    assert title == f"true | {back} | 6 | true"
    subprocess.run(
        [BROWSER, *options, f"--screenshot={picture}", page.as_uri()],
        check=True,
        timeout=120,
        capture_output=True,
    )
    with Image.open(picture) as image:
        assert image.size == (width, 900) and len(image.convert("RGB").getcolors(2**24)) > 50
