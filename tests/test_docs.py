"""The docs are complete, name only things that exist, and their Python runs as written."""

import importlib
import re
from dataclasses import fields
from pathlib import Path

import jax
import pytest

import jax_ddpm
from jax_ddpm.cli.edit import EditFlags
from jax_ddpm.cli.prepare import EmojiFlags, PrepareFlags
from jax_ddpm.cli.start import StartFlags
from jax_ddpm.config.jobs import CompareJob, EvaluateJob, SampleJob, Weights
from jax_ddpm.config.run import DataConfig, DiffusionConfig, SampleConfig, TrainConfig
from jax_ddpm.devices.processes import Launch

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXT = "".join(page.read_text() for page in PAGES)
SUFFIXES = ("py", "md", "json", "npz", "png")
ROOMS = {path.name for path in (ROOT / "jax_ddpm").iterdir() if path.is_dir()}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: name_page(page))


def name_page(page):
    """Name a page by its path below docs/, as in "howto/labels"."""
    return str(page.relative_to(DOCS).with_suffix(""))


def list_flags(kind, prefix="--", keep=lambda name: True):
    """List the flags of a dataclass; its first field may be positional, like RUN."""
    names = [field.name for field in fields(kind) if field.name != "run" and keep(field.name)]
    return [prefix + name.replace("_", "-") for name in names]


def find_blocks():
    """Find every Python block of every page; those that train or whose page is in a folder are slow."""
    found = []
    for page in PAGES:
        texts = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        found += [
            pytest.param(
                text,
                id=f"{name_page(page)}-{i}",
                marks=[pytest.mark.slow] if page.parent != DOCS or "jd.fit(" in text else [],
            )
            for i, text in enumerate(texts)
        ]
    return found


def find_code(page):
    """Find the inline code of a page, outside its fenced blocks."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def find_anchors(page):
    """Find the anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def exists(name):
    """Whether `name` is a file, or FILE::test with a test of that name in it."""
    path, _, test = name.partition("::")
    found = list(ROOT.glob(path.rstrip("/")))
    return bool(found) and (not test or f"def {test}(" in found[0].read_text())


def test_every_flag_is_documented():
    every_flag = [
        *list_flags(DataConfig, "--data."),
        *list_flags(PrepareFlags),
        *list_flags(EmojiFlags),
        *list_flags(DiffusionConfig, "--diffusion."),
        *list_flags(TrainConfig, "--train.", lambda name: "ema" in name or "snapshot" in name),
        "--train.parallel",
        "--train.fsdp",
        *list_flags(StartFlags, keep=lambda name: name != "launch"),
        *list_flags(Launch),
        *list_flags(SampleJob),
        *list_flags(SampleConfig, keep=lambda name: name != "num_steps"),  # --steps
        *list_flags(EditFlags),
        *list_flags(Weights),
        *list_flags(EvaluateJob),
        *list_flags(CompareJob),
    ]
    named = set(re.findall(r"--[\w.-]+", TEXT))
    assert not [flag for flag in every_flag if flag not in named], "no page mentions these"


@pytest.mark.parametrize("block", find_blocks())
def test_every_python_block_runs_alone(block, tmp_path, monkeypatch):
    """In float32 and with implicit broadcasts, as a user runs it."""
    monkeypatch.chdir(tmp_path)
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        exec(block, {"__name__": "__main__"})


@every_page
def test_every_file_that_a_page_names_exists(page):
    files = re.compile(r"(docs|tests|parity_tests|jax_ddpm|scripts|torch_ref)/[\w./*-]*(::\w+)?")
    missing = [code for code in find_code(page) if files.fullmatch(code) and not exists(code)]
    assert not missing


@every_page
def test_every_internal_link_of_a_page_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+://", target):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), target
        assert not anchor or anchor in find_anchors(found), target


@every_page
def test_every_function_that_a_page_names_exists(page):
    """Written as `room.module.name`, for jax_ddpm.room.module.name."""
    for code in find_code(page):
        name = code.removeprefix("jax_ddpm.")
        room, _, rest = name.partition(".")
        if room in ROOMS and re.fullmatch(r"\w+(\.\w+)*", rest) and rest not in SUFFIXES:
            assert resolves(name), code


def test_every_public_name_is_in_the_reference_once():
    pages = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    assert sorted(re.findall(r"^::: jax_ddpm\.(\w+)$", pages, re.MULTILINE)) == jax_ddpm.__all__


@every_page
def test_every_page_is_in_the_navigation(page):
    assert f" {page.relative_to(DOCS)}\n" in (ROOT / "mkdocs.yml").read_text()


def test_every_row_of_the_equations_names_a_function_and_a_test():
    rows = re.findall(r"^\| .* \|$", (ROOT / "docs/equations.md").read_text(), re.MULTILINE)
    cells = [row.strip("| ").split(" | ") for row in rows]
    equations = [row for row in cells if row[0] not in ("equation", "source")]
    assert len(equations) > 60
    for _, what, functions, tests in equations:
        assert re.search(r"`\w+\.[\w.]+`", functions), what
        assert re.search(r"`(parity_)?tests/[\w./:]+`", tests), what


def test_every_new_import_of_the_changelog_exists():
    rows = re.findall(r"^\| `.*\| (.*) \|$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`jax_ddpm\.([\w.]+)`", row)]
    assert len(names) > 30
    assert not [name for name in names if not resolves(name)]


def test_every_golden_array_is_described_and_every_description_has_arrays():
    folder = ROOT / "parity_tests/goldens"
    names = [
        name for name in find_code(folder / "README.md") if (folder / name.split("/")[0]).is_dir()
    ]
    described = {path for name in names for path in folder.glob(name)}
    recorded = {path.parent for path in folder.rglob("manifest.json")}
    assert all(list(folder.glob(name)) for name in names)
    assert not [path for path in recorded if not {path, path.parent} & described]


def resolves(name):
    """Whether jax_ddpm.`name` is a module, or something in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(["jax_ddpm", *parts[:end]]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found is not None
    return False
