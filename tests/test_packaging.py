"""What is installed is whole and light: the wheel, its dependencies, what importing costs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(TEXT)["project"]
HEAVY = ("torch", "lightning", "cv2", "matplotlib", "scipy", "wandb", "jsonargparse", "numpy")


def python(*words, cwd):
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, so that nothing is left in the project."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    leave_out = shutil.ignore_patterns("__pycache__")
    for name in ("pipeline", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=leave_out)
    built = python("-c", "from setuptools.build_meta import build_wheel as b; b('.')", cwd=copy)
    assert built.returncode == 0, built.stderr
    assert "absent from the `packages` configuration" not in built.stdout + built.stderr
    return next(copy.glob("*.whl"))


def test_the_wheel_has_every_module_config_and_fact(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "pipeline").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    configs = {
        f"pipeline/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert files | configs <= inside


def test_the_wheel_brings_nothing_else(wheel):
    inside = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in inside} == {"pipeline", "heatlift"}


def test_shipped_configs_are_found_from_anywhere(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()
    words = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); "
    words += "from pipeline.cli.configs import find_config; print(find_config('lift/mixste_small'))"
    found = python("-c", words, cwd=tmp_path / "elsewhere")
    assert Path(found.stdout.strip()).is_relative_to(tmp_path / "site"), found.stderr


@pytest.mark.parametrize("words", ["import pipeline", "import pipeline.lift, pipeline.heatmap"])
def test_importing_loads_nothing_heavy(words, tmp_path):
    told = python("-c", f"{words}; import sys; print(*sys.modules)", cwd=tmp_path)
    assert not set(HEAVY) & set(told.stdout.split()), told.stderr


def test_help_and_version_load_nothing_heavy(tmp_path):
    for option in ("--help", "--version"):
        words = f"from pipeline.__main__ import main; main([{option!r}]); "
        told = python("-c", f"{words} import sys; print(*sys.modules)", cwd=tmp_path)
        assert "heatlift" in told.stdout
        assert not set(HEAVY) & set(told.stdout.splitlines()[-1].split()), told.stderr


def test_the_console_command_is_main():
    (command,) = entry_points(group="console_scripts", name="heatlift")
    assert command.value == PROJECT["scripts"]["heatlift"] == "pipeline.__main__:main"
    assert callable(command.load())


def test_every_lower_bound_has_its_reason():
    for bound in re.findall(r'^    "[^"\n]+>=[^"\n]+",?.*$', TEXT, re.MULTILINE):
        assert re.search(r"  # \S.{3,}", bound), bound


def test_what_is_installed_fits_the_bounds_and_the_constraints():
    from packaging.requirements import Requirement

    pinned = [
        Requirement(line) for line in (ROOT / "constraints.txt").read_text().split("\n") if line
    ]
    for requirement in [*map(Requirement, PROJECT["dependencies"]), *pinned]:
        found = version(requirement.name).split("+")[0]
        assert requirement.specifier.contains(found), f"{requirement}, but {found} is here"
