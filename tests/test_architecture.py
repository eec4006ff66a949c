"""Who may import whom, where devices and frameworks may appear, and how long files may get."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import jax_ddpm

PACKAGE = Path(jax_ddpm.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
REFERENCE = sorted((ROOT / "torch_ref").rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in [*FILES, *SCRIPTS, *REFERENCE]}

# The rooms from the top floor down. A room may import rooms on lower floors, never its neighbours.
FLOORS = [
    ["__init__", "__main__"],
    ["cli", "api"],
    ["jobs"],
    ["runs", "parity"],
    ["devices", "config"],
    ["training"],
    ["data", "interop"],
    ["files", "samplers"],
    ["process", "optim", "models", "quality"],
    ["errors"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def find_room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def list_imports(path: Path) -> Iterator[str]:
    """Every module that `path` imports, inside functions too, and the names taken from it."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def find_violations(paths: list[Path], *packages: str) -> list[str]:
    """Imports of `packages` in any of `paths`, as "file: module"."""
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in paths
        for name in list_imports(path)
        if is_inside(name, *packages)
    ]


def list_files_outside(*rooms: str) -> list[Path]:
    return [path for path in FILES if find_room(path) not in rooms]


def test_the_walk_sees_the_package():
    assert {find_room(path) for path in FILES} <= FLOOR.keys()
    assert "jax_ddpm.process.schedules.Schedule" in set(list_imports(PACKAGE / "process/levels.py"))


def test_imports_only_go_down():
    wrong = []
    for path in FILES:
        room = find_room(path)
        for name in list_imports(path):
            if is_inside(name, "jax_ddpm") and name != "jax_ddpm":
                other = name.split(".")[1]
                if other in FLOOR and other != room and FLOOR[other] <= FLOOR[room]:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


def test_no_two_modules_import_each_other():
    def name_module(path: Path) -> str:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        return ".".join(["jax_ddpm", *parts]).removesuffix(".__init__")

    modules = {name_module(path): path for path in FILES}

    def find_module(name: str) -> str:
        while name not in modules:
            name = name.rpartition(".")[0]
        return name

    graph = {
        name: {find_module(found) for found in list_imports(path) if is_inside(found, "jax_ddpm")}
        - {name}
        for name, path in modules.items()
    }
    while leaves := [name for name, found in graph.items() if not found]:
        graph = {name: found - set(leaves) for name, found in graph.items() if name not in leaves}
    assert graph == {}, "these modules import each other in a circle"


def test_imports_are_absolute():
    assert [p for p in FILES if any(name.startswith(".") for name in list_imports(p))] == []


def test_linen_appears_only_in_networks():
    assert find_violations(list_files_outside("models", "quality"), "flax.linen", "flax.nnx") == []


def test_torch_appears_only_where_two_frameworks_meet():
    torch = ("torch", "torchvision", "torch_ref", "diffusers")
    allowed = [PACKAGE / "interop" / "files.py"]
    elsewhere = [path for path in list_files_outside("parity") if path not in allowed]
    assert find_violations(elsewhere, *torch) == []
    assert find_violations(allowed, *torch) == ["jax_ddpm/interop/files.py: torch"]
    assert find_violations(REFERENCE, "jax", "flax", "optax", "jax_ddpm") == []
    assert find_violations(FILES, "parity_tests", "tests") == []


DEVICE_NAMES = {
    "pmap",
    "sharding",
    "devices",
    "local_devices",
    "local_device_count",
    "device_count",
    "NamedSharding",
    "PartitionSpec",
    "Mesh",
    "make_mesh",
    "shard_map",
    "device_put",
    "experimental",
}


def test_devices_appear_only_in_their_room():
    wrong = []
    for path in list_files_outside("devices"):
        used = {
            node.attr
            for node in ast.walk(TREES[path])
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "jax"
        }
        used |= {
            part
            for name in list_imports(path)
            if is_inside(name, "jax")
            for part in name.split(".")
        }
        wrong += [f"{path.relative_to(PACKAGE)}: {name}" for name in used & DEVICE_NAMES]
    assert wrong == []


def test_scripts_import_no_framework():
    for path in SCRIPTS:
        assert find_violations([path], "jax", "flax", "optax", "torch") == []


def count_lines(function):
    """Lines without the docstring, which may hold an example."""
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if is_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_no_file_and_no_function_is_too_long():
    long = [path for path in FILES if len(path.read_text().splitlines()) > 400]
    long += [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in FILES
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.FunctionDef) and count_lines(node) > 55
    ]
    assert long == []


@pytest.mark.parametrize("word", ["util", "helper"])
def test_no_file_is_a_catch_all(word):
    assert [path for path in FILES if word in path.stem] == []
