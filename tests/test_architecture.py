"""The house is as ARCHITECTURE.md draws it, and imports run down only."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "pipeline").rglob("*.py"))
TEXT = (ROOT / "ARCHITECTURE.md").read_text()

FLOORS = [line.split() for line in re.search(r"```floors\n(.*?)```", TEXT, re.S)[1].splitlines()]
"""From top to bottom; files of one floor may import each other."""


def floor_of(path):
    """Number of the floor a file stands on, counted from the top."""
    noun = path.parts[1].removesuffix(".py")
    for number, names in enumerate(FLOORS):
        if noun in names:
            return number
    raise AssertionError(f"{path} stands on no floor of ARCHITECTURE.md")


def imported(path):
    """What a file imports from the package, also inside functions."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pipeline"):
            for alias in node.names:
                inner = Path(*node.module.split("."), f"{alias.name}.py")
                package = Path(*node.module.split("."), alias.name, "__init__.py")
                outer = Path(*node.module.split(".")).with_suffix(".py")
                yield next(
                    (p for p in (inner, package, outer) if p in FILES),
                    Path(*node.module.split("."), "__init__.py"),
                )
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("pipeline."):
                    yield Path(*alias.name.split(".")).with_suffix(".py")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_import_runs_upwards(path):
    if len(path.parts) == 2 and path.name == "__init__.py":
        return
    for other in imported(path):
        if len(other.parts) > 2 or other.name != "__init__.py":
            assert floor_of(other) >= floor_of(path), f"{path} imports {other}, which is above it"


def test_an_upward_import_would_be_noticed():
    assert floor_of(Path("pipeline/lift/module.py")) < floor_of(Path("pipeline/heatmap/module.py"))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_has_its_line_in_the_tree(path):
    doc = ast.get_docstring(ast.parse((ROOT / path).read_text()))
    assert doc, f"{path} has no docstring"
    first = doc.splitlines()[0]
    name = path.name if path.name != "__init__.py" else f"{path.parent.name}/"
    lines = [line for line in TEXT.splitlines() if re.match(rf"[│├└─ ]*{re.escape(name)}\s", line)]
    assert any(line.rstrip().endswith(first) for line in lines), (
        f"ARCHITECTURE.md needs a line '{name}  {first}'"
    )


def test_the_tree_names_no_file_that_is_gone():
    tree = re.search(r"```tree\n(.*?)```", TEXT, re.S)[1]
    named = set(re.findall(r"(\w+\.py)\s", tree))
    assert named <= {path.name for path in FILES}


def test_every_package_is_in_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(path.parent.parts) for path in FILES if path.name == "__init__.py"}
    assert there <= set(listed)
