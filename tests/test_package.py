"""What is published: one version, and every file that the code reads."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_is_one_and_the_changelog_has_it():
    version = SETTINGS["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    released = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == version


def test_the_wheel_has_every_file_that_is_not_python():
    package = ROOT / "jax_ddpm"
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]["jax_ddpm"]
    published = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file()}
    assert not {path for path in files - published if path.suffix not in (".py", ".pyc")}
