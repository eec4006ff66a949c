"""Who may import whom, where devices and frameworks may appear, and how long things may get."""

import ast
from pathlib import Path

import pytest

import jax_ddpm

PACKAGE = Path(jax_ddpm.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
REFERENCE = sorted((ROOT / "torch_ref").rglob("*.py"))
REPORT = sorted((ROOT / "parity_tests" / "report").glob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in [*FILES, *SCRIPTS, *REFERENCE, *REPORT]}

MATHS = [
    "schedules",
    "timesteps",
    "diffusion",
    "losses",
    "likelihood",
    "probability_flow",
    "denoiser",
    "grids",
    "samplers",
    "posthoc_ema",
]
JOBS = ["config", "sample_config", "train_config", "presets", "models", "training", "data", "build",
        "generate", "drawing", "edit_job", "runs", "cli", "evaluation", "interop", "plots", "images",
        "files", "convert", "prepare", "figures", "plain_values", "untrusted"]  # fmt: skip

# module or package -> what of jax_ddpm it may import; a module may always import its own package.
LAYERS = {
    "errors": [],
    "untrusted": ["errors"],
    "plain_values": ["errors"],
    "files": ["errors"],
    "schedules": [],
    "diffusion": ["schedules"],
    "losses": ["denoiser", "diffusion", "likelihood", "schedules", "timesteps"],
    "timesteps": ["schedules"],
    "likelihood": ["diffusion", "schedules"],
    "probability_flow": ["diffusion", "schedules"],
    "denoiser": ["diffusion", "schedules"],
    "grids": ["schedules"],
    "samplers": ["diffusion", "schedules"],
    "guidance": ["diffusion", "schedules"],
    "editing": ["diffusion", "samplers", "schedules"],
    "models": [],
    "interop": ["errors", "files", "models", "untrusted"],
    "images": ["files"],
    "plots": ["files"],
    "data": ["errors", "files", "images", "untrusted"],
    "posthoc_ema": [],
    "training.state": ["posthoc_ema", "timesteps"],
    "training.snapshots": ["errors", "files", "posthoc_ema", "training.state", "untrusted"],
    "training.optim": [],
    "training.interrupt": [],
    "training.feed": ["data", "errors", "training.step"],
    "training.metrics": ["errors", "files", "untrusted"],
    "training.step": ["diffusion", "images", "losses", "schedules", "timesteps", "training.state"],
    "training.sharding": [],
    "training.distributed": ["errors"],
    "training.parallel": [
        "errors",
        "training.distributed",
        "training.sharding",
        "training.state",
        "training.step",
    ],
    "training.by_example": ["training.distributed", "training.parallel"],
    "formats": ["errors"],
    "training.checksums": [],
    "training.progress": [],
    "training.board": ["files"],
    "training.retention": [],
    "training.stored": [
        "errors",
        "formats",
        "training.checksums",
        "training.distributed",
        "training.state",
        "untrusted",
    ],
    "training.checkpoint": [
        "errors",
        "training.distributed",
        "training.retention",
        "training.state",
        "training.stored",
    ],
}


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Every module that `path` imports, inside functions too, and the names taken from it."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def inside(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def own_imports(path):
    """What `path` imports from jax_ddpm, without the prefix."""
    for name in imports(path):
        if inside(name, "jax_ddpm"):
            yield name.removeprefix("jax_ddpm").removeprefix(".")


def ids(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


each_file = pytest.mark.parametrize("path", FILES, ids=ids(FILES))


def test_the_walk_sees_the_package():
    assert {"schedules", "training.loop", "models.unet", "samplers"} <= set(map(name_of, FILES))
    assert "schedules.Level" in set(own_imports(PACKAGE / "diffusion.py"))


@each_file
def test_maths_never_imports_jobs(path):
    if inside(name_of(path), *MATHS):
        assert [name for name in own_imports(path) if inside(name, *JOBS)] == []


@each_file
def test_imports_point_in_one_direction(path):
    layer = next((layer for layer in LAYERS if inside(name_of(path), layer)), None)
    if layer is not None:
        allowed = [layer, *LAYERS[layer]]
        assert [name for name in own_imports(path) if not inside(name, *allowed)] == []


@each_file
def test_nothing_below_the_jobs_imports_a_job(path):
    if not inside(name_of(path), "training.loop", "training.job", "training.memory", "generate", "drawing", "edit_job", "build", "cli",
                  "convert", "prepare", "evaluation", "figures"):  # fmt: skip
        jobs = ["training.loop", "training.job", "generate", "drawing", "edit_job", "cli", "build"]
        assert [name for name in own_imports(path) if inside(name, *jobs)] == []


def test_no_two_modules_import_each_other():
    names = {name_of(path) for path in FILES}

    def module(name):
        while name and name not in names:
            name = name.rpartition(".")[0]
        return name

    graph = {name_of(path): {module(found) for found in own_imports(path)} - {""} for path in FILES}
    graph = {name: found - {name} for name, found in graph.items()}
    while leaves := [name for name, found in graph.items() if not found]:
        graph = {name: found - set(leaves) for name, found in graph.items() if name not in leaves}
    assert graph == {}, "these modules import each other in a circle"


@each_file
def test_linen_appears_only_under_models(path):
    if not inside(name_of(path), "models", "evaluation"):
        assert [name for name in imports(path) if inside(name, "flax.linen", "flax.nnx")] == []


@each_file
def test_torch_is_imported_at_most_lazily_in_interop(path):
    found = [name for name in imports(path) if inside(name, "torch", "torch_ref", "torchvision")]
    top = {id(node) for node in TREES[path].body}
    lazy = all(
        id(node) not in top
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Import) and any(inside(a.name, "torch") for a in node.names)
    )
    assert found == [] or (inside(name_of(path), "interop") and lazy and "torch_ref" not in found)


@each_file
def test_heavy_readers_are_imported_only_where_they_are_used(path):
    top = [node for node in TREES[path].body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [a.name for node in top for a in node.names] + [
        node.module or "" for node in top if isinstance(node, ast.ImportFrom)
    ]
    assert [name for name in names if inside(name, "tensorflow_datasets", "fontTools")] == []


DEVICES = {"pmap", "sharding", "devices", "local_devices", "local_device_count", "device_count",
           "NamedSharding", "PartitionSpec", "Mesh", "make_mesh", "shard_map", "device_put",
           "experimental"}  # fmt: skip


KNOW_DEVICES = ["sharding", "distributed", "parallel", "by_example"]


@each_file
def test_devices_appear_only_in_the_modules_that_know_about_them(path):
    if name_of(path) in [f"training.{name}" for name in KNOW_DEVICES]:
        return
    used = {
        node.attr
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "jax"
    }
    used |= {part for name in imports(path) if inside(name, "jax") for part in name.split(".")}
    assert used & DEVICES == set()


@each_file
def test_imports_are_absolute(path):
    assert [name for name in imports(path) if name.startswith(".")] == []


def test_the_two_implementations_never_import_each_other():
    for path in REFERENCE:
        assert [n for n in imports(path) if inside(n, "jax", "flax", "optax", "jax_ddpm")] == []
    for path in FILES:
        assert [n for n in imports(path) if inside(n, "torch_ref", "parity_tests")] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=ids(SCRIPTS))
def test_scripts_only_parse_and_call_the_library(path):
    assert len(path.read_text().splitlines()) <= 60
    assert [name for name in imports(path) if inside(name, "jax", "flax", "optax")] == []


def test_two_scripts_compare_two_frameworks():
    both = ["report", "speed", "parity_tests", "torch", "torch_ref"]
    found = [path.name for path in SCRIPTS if any(inside(name, *both) for name in imports(path))]
    assert found == ["bench.py", "parity.py"]


@pytest.mark.parametrize("path", REPORT, ids=ids(REPORT))
def test_the_parity_report_runs_without_pytest_and_defines_no_network(path):
    assert [name for name in imports(path) if inside(name, "pytest", "parity", "flax")] == []
    assert len(path.read_text().splitlines()) <= 400


def functions_and_classes(tree, prefix=""):
    """Every definition outside functions, with its dotted name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from functions_and_classes(node, f"{prefix}{node.name}.")


@each_file
def test_every_public_definition_has_a_docstring(path):
    # Calling a Linen module is what the docstring of its class describes.
    silent = [
        name
        for name, node in functions_and_classes(TREES[path])
        if not any(part.startswith("_") for part in name.split("."))
        and ast.get_docstring(node) is None
    ]
    assert silent == []
    assert ast.get_docstring(TREES[path]) or not TREES[path].body


@each_file
def test_nothing_gets_too_long(path):
    assert len(path.read_text().splitlines()) <= 400
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > 60} == {}


@each_file
def test_nothing_is_called_utils(path):
    assert "util" not in path.stem and "helper" not in path.stem
