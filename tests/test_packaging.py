"""The wheel is complete, its dependencies are bounded, and imports are fast."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points, version
from pathlib import Path

import pipeline.published
import pytest

import pipeline.weights

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(TEXT)["project"]
HEAVY = ("torch", "lightning", "cv2", "matplotlib", "scipy", "wandb", "jsonargparse", "numpy")


def python(*arguments, cwd):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, so that no files are left in the project."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("pipeline", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    built = python("-c", "from setuptools.build_meta import build_wheel as b; b('.')", cwd=copy)
    assert built.returncode == 0, built.stderr
    assert "absent from the `packages` configuration" not in built.stdout + built.stderr
    return next(copy.glob("*.whl"))


def test_the_wheel_has_all_modules_configs_and_data_files(wheel):
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


def test_the_wheel_has_nothing_else(wheel):
    inside = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in inside} == {"pipeline", "heatlift"}


def test_shipped_configs_are_found_from_anywhere(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); "
    code += "from pipeline.cli.configs import find_config; print(find_config('lift/mixste_small'))"
    found = python("-c", code, cwd=tmp_path / "elsewhere")
    assert Path(found.stdout.strip()).is_relative_to(tmp_path / "site"), found.stderr


@pytest.mark.parametrize("code", ["import pipeline", "import pipeline.lift, pipeline.heatmap"])
def test_importing_loads_nothing_heavy(code, tmp_path):
    result = python("-c", f"{code}; import sys; print(*sys.modules)", cwd=tmp_path)
    assert not set(HEAVY) & set(result.stdout.split()), result.stderr


def test_help_and_version_load_nothing_heavy(tmp_path):
    for option in ("--help", "--version"):
        code = f"from pipeline.__main__ import main; main([{option!r}]); "
        result = python("-c", f"{code} import sys; print(*sys.modules)", cwd=tmp_path)
        assert "heatlift" in result.stdout
        assert not set(HEAVY) & set(result.stdout.splitlines()[-1].split()), result.stderr


def test_the_console_command_is_main():
    (command,) = entry_points(group="console_scripts", name="heatlift")
    assert command.value == PROJECT["scripts"]["heatlift"] == "pipeline.__main__:main"
    assert callable(command.load())


def test_every_lower_bound_has_its_reason():
    for bound in re.findall(r'^    "[^"\n]+>=[^"\n]+",?.*$', TEXT, re.MULTILINE):
        assert re.search(r"  # \S.{3,}", bound), bound


def test_installed_packages_fit_the_bounds_and_the_constraints():
    from packaging.requirements import Requirement

    pinned = [
        Requirement(line) for line in (ROOT / "constraints.txt").read_text().split("\n") if line
    ]
    for requirement in [*map(Requirement, PROJECT["dependencies"]), *pinned]:
        found = version(requirement.name).split("+")[0]
        assert requirement.specifier.contains(found), f"{requirement}, but {found} is here"


OUTSIDE_NAMES = {
    "pipeline.skeleton": "H36M17 H36M18 COCO17 MPII16 MPI3DHP17 Skeleton",
    "pipeline.heatmap": "HRNet SimpleBaseline",
    "pipeline.integral": "SAN",
    "pipeline.lift": "MixSTE PoseFormer VideoPose3D Martinez CombinedDeepLearner",
    "pipeline.lift.martinez": "ResidualMLP",
    "pipeline.weights": "load_published",
    "pipeline.published": "load_published",
    "pipeline.metrics": "mpjpe p_mpjpe n_mpjpe mpjve MPJPE PMPJPE NMPJPE MPJVE",
}
"""Module -> names that scripts outside the project rely on."""


@pytest.mark.parametrize("module", OUTSIDE_NAMES)
def test_names_that_outside_scripts_rely_on_can_be_imported(module):
    place = importlib.import_module(module)
    for name in OUTSIDE_NAMES[module].split():
        assert callable(getattr(place, name)) or name[-2:].isdigit()


def test_the_old_name_of_the_weights_is_the_same_module_by_attribute():
    assert pipeline.published.load_published is pipeline.weights.load_published
