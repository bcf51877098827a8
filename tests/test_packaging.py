"""The wheel is complete, its dependencies are bounded, and imports are fast."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import entry_points, version
from pathlib import Path

import pipeline.published
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from runs import COMMANDS, TINY
from wheels import build, copy_project

import heatlift
import pipeline
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
    return build("wheel", copy_project(copy))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with what pip installs from the wheel: the packages, and `bin/heatlift`."""
    folder = tmp_path_factory.mktemp("site")
    options = ("--no-deps", "--no-index", "--no-compile", "--target", str(folder))
    done = python("-m", "pip", "install", "--quiet", *options, str(wheel), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def elsewhere(installed, tmp_path):
    """Run programs of an installed wheel in a folder that has an own package `pipeline`."""
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise SystemExit('the local folder')\n")
    programs = (installed / "bin", Path(sys.executable).parent)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "HEATLIFT_SHARED"},
        "PATH": os.pathsep.join([*map(str, programs), os.environ["PATH"]]),
        "PYTHONPATH": str(installed),
        "HEATLIFT_CACHE": str(tmp_path / "cache"),
        "WANDB": "off",
    }

    def run(*words):
        return subprocess.run(
            words,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    return run


def test_the_wheel_has_all_modules_configs_and_data_files(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "pipeline").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    configs = {
        f"pipeline/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "configs").rglob("*")
        if path.is_file()
    }
    pages = {f"pipeline/docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert any(not name.endswith(".py") for name in files)
    assert files | configs | pages <= inside
    assert not [name for name in inside if name.endswith(".png") or "drawings" in name]


def test_the_wheel_has_nothing_else(wheel):
    inside = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0].split("-")[0] for name in inside}
    assert tops == {"pipeline", "heatlift.py", "heatlift"}  # the last one: heatlift-0.1.0.dist-info


def test_shipped_configs_are_found_from_anywhere(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); "
    code += "from pipeline.cli.configs import find_config; print(find_config('lift/mixste_small'))"
    found = python("-c", code, cwd=tmp_path / "elsewhere")
    assert Path(found.stdout.strip()).is_relative_to(tmp_path / "site"), found.stderr


def test_commands_of_an_installed_wheel_work_in_any_folder(elsewhere):
    assert elsewhere("heatlift", "--version").stdout == f"heatlift {version('heatlift')}\n"
    listed = elsewhere("heatlift", "weights", "ls")
    assert listed.returncode == 0, listed.stderr
    assert "blazepose" in listed.stdout
    page = elsewhere("heatlift", "docs", "own_data")
    assert page.stdout == (ROOT / "docs" / "own_data.md").read_text(), page.stderr


CHECKOUT = re.compile(r"docs/\w+\.md|\b(run|Next: ).?make \w+|pipeline/\w+\.py")
"""What somebody who installed the wheel does not have."""

FOR_CHECKOUTS = {"pipeline/experiments/box.py", "pipeline/experiments/benchmark_page.py"}
"""Modules that write pages of the documentation."""


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda path: path.stem
)
def test_messages_and_help_name_commands_and_no_files_of_a_checkout(path):
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    tree = ast.parse(path.read_text())
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    comments = [ast.get_docstring(tree)] + [  # of modules and of constants
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    for text in map(str, texts):
        assert {*re.findall(r"`heatlift docs (\w+)`", text)} <= pages, text
        if path.relative_to(ROOT).as_posix() in FOR_CHECKOUTS or text in comments:
            continue
        assert not CHECKOUT.search(text), text


@pytest.mark.slow
@pytest.mark.parametrize("command", ["models", "lift fit -c lift/mixste_small -c data/synthetic"])
def test_configs_and_networks_of_an_installed_wheel_are_found_in_any_folder(elsewhere, command):
    more = ("--print_config",) if "-c" in command else ()
    done = elsewhere("heatlift", *command.split(), *more)
    assert done.returncode == 0, done.stderr
    assert "MixSTE" in done.stdout


def test_a_local_folder_named_pipeline_is_what_python_runs_as_a_module(elsewhere, installed):
    """So the docs name the ways that work: the command, and `python -P -m`."""
    assert "the local folder" in elsewhere("python", "-m", "pipeline", "--version").stderr
    assert elsewhere("python", "-P", "-m", "pipeline", "--version").returncode == 0
    where = elsewhere("python", "-P", "-c", "import pipeline; print(pipeline.__file__)").stdout
    assert Path(where.strip()).is_relative_to(installed)


@pytest.mark.slow
def test_torchrun_trains_beside_a_local_folder_named_pipeline(elsewhere, tmp_path):
    (tmp_path / "lift.yaml").write_text(TINY["lift"])
    torchrun = ("torchrun", "--nproc_per_node", "1", "--no-python", "heatlift")
    done = elsewhere(*torchrun, *COMMANDS["lift"], "--trainer.fast_dev_run", "true")
    assert done.returncode == 0, done.stderr
    module = ("torchrun", "--nproc_per_node", "1", "-m", "pipeline")
    assert "the local folder" in elsewhere(*module, "--version").stderr


SHORT = """
import sys
import heatlift
assert not {heavy} & set(sys.modules), sys.modules
print(heatlift.__file__, dir(heatlift), heatlift.__version__)
from heatlift import Motion
assert Motion.__module__ == "pipeline.export.motion"
"""


def check_short_name(printed, place):
    assert printed.returncode == 0, printed.stderr
    names = "['Heatlift', 'Motion', '__version__']"
    assert printed.stdout.strip() == f"{place / 'heatlift.py'} {names} {version('heatlift')}"


def test_the_short_name_of_an_installed_wheel(elsewhere, installed):
    check_short_name(elsewhere("python", "-P", "-c", SHORT.format(heavy=set(HEAVY))), installed)


def test_the_short_name_of_an_editable_install(tmp_path):
    """As `pip install -e` makes it; -S leaves out the editable install that runs these tests."""
    project, site = tmp_path / "project", tmp_path / "site"
    project.mkdir()
    zipfile.ZipFile(build("editable", copy_project(project))).extractall(site)
    packages = sysconfig.get_paths()["purelib"]
    paths = f"import sys, site; site.addsitedir({str(site)!r}); sys.path.append({packages!r})"
    code = f"{paths}\n{SHORT.format(heavy=set(HEAVY))}"
    check_short_name(python("-I", "-S", "-c", code, cwd=tmp_path), project)


def test_the_short_name_has_the_api_and_no_other_names():
    assert (heatlift.Heatlift, heatlift.Motion) == (pipeline.Heatlift, pipeline.Motion)
    with pytest.raises(AttributeError, match="has no attribute 'MixSTE'"):
        _ = heatlift.MixSTE
    assert all(name.startswith("_") for name in vars(heatlift))


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


@pytest.mark.parametrize(
    ("arguments", "code", "unwanted"),
    [
        (["cache", "ls"], 0, {"torch", "lightning", "matplotlib", "scipy", "wandb"}),
        (["weights", "ls"], 0, {"torch", "lightning", "matplotlib", "scipy", "wandb"}),
        (["runs", "ls"], 2, {"torch", "lightning", "matplotlib", "scipy", "wandb"}),
        (["newest", "lift"], 2, {"torch", "lightning", "matplotlib", "scipy", "wandb"}),
        (["predict", "--help"], 0, {"torch", "lightning", "matplotlib", "scipy", "wandb", "cv2"}),
        (["export", "--help"], 0, {"torch", "lightning", "matplotlib", "scipy", "wandb", "cv2"}),
        (["lift", "fit", "-c", "lift/demo", "--print_config"], 0, {"wandb", "pipeline.predict"}),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_command_imports_what_it_needs(arguments, code, unwanted, tmp_path):
    run = f"from pipeline.__main__ import main; code = main({arguments!r}); "
    result = python("-c", f"{run} import sys; print(code, *sys.modules)", cwd=tmp_path)
    found, *modules = result.stdout.splitlines()[-1].split()
    assert int(found) == code, result.stderr
    assert not unwanted & set(modules)


def test_the_console_command_is_main():
    (command,) = entry_points(group="console_scripts", name="heatlift")
    assert command.value == PROJECT["scripts"]["heatlift"] == "pipeline.__main__:main"
    assert callable(command.load())


def test_every_lower_bound_has_its_reason():
    for bound in re.findall(r'^    "[^"\n]+>=[^"\n]+",?.*$', TEXT, re.MULTILINE):
        assert re.search(r"  # \S.{3,}", bound), bound


def test_installed_packages_fit_the_bounds_and_the_constraints():
    for requirement in [*map(Requirement, PROJECT["dependencies"]), *constraints()]:
        found = version(requirement.name).split("+")[0]
        assert requirement.specifier.contains(found), f"{requirement}, but {found} is here"


def constraints():
    """Versions that `make install` takes; none in the environment of `make test-lowest`."""
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        return []
    return [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()]


def packages_with_private_names():
    """Packages that `private_names` checks names of, and the one whose class it extends."""
    text = (ROOT / "pipeline" / "training" / "private_names.py").read_text()
    return {*re.findall(r'require\([^)]*"([a-z]+)"\)', text), "torchmetrics"}


def test_packages_whose_private_names_are_used_have_an_upper_bound():
    assert packages_with_private_names() == {"lightning", "jsonargparse", "torch", "torchmetrics"}
    bounds = {found.name: found.specifier for found in map(Requirement, PROJECT["dependencies"])}
    for name in packages_with_private_names():
        assert [bound for bound in bounds[name] if bound.operator == "<"], name


def test_the_lowest_versions_are_installed_by_a_target_that_reads_the_bounds():
    plan = subprocess.run(
        ["make", "-n", "test-lowest", "LOWEST=no-such-folder", "PYTHON=python3.11"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert "--resolution lowest-direct -e '.[dev]'" in plan.stdout
    assert "no-such-folder/bin/pytest" in plan.stdout


@pytest.mark.slow
def test_the_newest_versions_of_all_packages_fit_together(tmp_path):
    """pip finds a version of each package, without the constraints and what is installed."""
    report = tmp_path / "report.json"
    options = ("--dry-run", "--ignore-installed", "--quiet", "--report", str(report))
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *PROJECT["dependencies"]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    if "connection" in done.stderr.lower():
        pytest.skip("no connection to the package index")
    assert done.returncode == 0, done.stderr
    found = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    chosen = {canonicalize_name(entry["name"]): entry["version"] for entry in found}
    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert requirement.specifier.contains(chosen[canonicalize_name(requirement.name)])


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
