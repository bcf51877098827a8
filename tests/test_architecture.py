"""The layout is as ARCHITECTURE.md has it; imports, strings included, run down in no circle."""

from __future__ import annotations

import ast
import contextlib
import importlib
import re
import tomllib
from pathlib import Path

import pytest

import pipeline

ROOT = Path(__file__).parents[1]
FLAT = {"__init__", "__main__", "camera", "errors", "rng", "skeleton", "sources"}
ORDER = (
    "__main__ > experiments > cli > predict > export > weights > pretrain > lift > detections > "
    "integral > heatmap > datasets > mocap > dashboard > metrics > training > files > sources > "
    "camera > skeleton > rng, errors"
)
LEVELS = {
    name: level
    for level, names in enumerate(reversed(ORDER.split(" > ")))
    for name in names.split(", ")
}
JUNK = {"utils", "common", "helpers", "misc", "tools"}
LONGEST_FILE, LONGEST_CLASS, LONGEST_FUNCTION = 450, 220, 50
"""Lines; of functions without their docstring."""


def sources(root: Path = ROOT) -> dict[str, str]:
    """Module name without `pipeline.` -> source; a package stands under its own name."""
    found = {}
    for path in sorted((root / "pipeline").rglob("*.py")):
        parts = path.relative_to(root / "pipeline").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and parts[:-1] else parts)] = (
            path.read_text()
        )
    return found


FILES = sources()
TREES = {name: ast.parse(text) for name, text in FILES.items()}
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
PLACE = re.compile(r"pipeline(?:\.\w+)+(?::\w+)?")


def named(module: str, tree: ast.AST) -> set[str]:
    """What a module names of the package: in imports, also inside functions, and in strings.

    A string counts where it is nothing but a place: `pipeline.x`, `pipeline.x.Class` or
    `pipeline.x:function`. So class-path tables and the arguments of `import_module` count.
    """
    places = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            package = node.module or ""
            if node.level:  # relative: counted from the package of this module
                above = ["pipeline", *module.split(".")]
                above = above if module in PACKAGES else above[:-1]
                package = ".".join([*above[: len(above) + 1 - node.level], package]).rstrip(".")
            places |= {f"{package}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            places |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and PLACE.fullmatch(str(node.value)):
            places.add(node.value.replace(":", "."))
    return {place.removeprefix("pipeline.") for place in places if place.startswith("pipeline.")}


PACKAGES = {name for name in FILES if any(other.startswith(f"{name}.") for other in FILES)}


def module_of(place: str) -> str | None:
    """The module that a dotted place is in; none for names of `pipeline` itself."""
    parts = place.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in FILES:
            return ".".join(parts[:end])
    return None


def level(module: str) -> int:
    return LEVELS[module.split(".")[0]]


def arrows(module: str, tree: ast.AST) -> set[str]:
    """The modules that a module imports or names, itself and its own package left out."""
    found = {module_of(place) for place in named(module, tree)} - {None, module}
    return {other for other in found if other != module.split(".")[0]}


def upward(module: str, tree: ast.AST) -> set[str]:
    """What a module imports from a level above its own, or from another package of its level."""
    mine = module.split(".")[0]
    return {
        other
        for other in arrows(module, tree)
        if other.split(".")[0] != mine and level(other) >= level(module)
    }


@pytest.mark.parametrize("module", [name for name in FILES if name != "__init__"])
def test_imports_run_down(module):
    assert not upward(module, TREES[module]), f"against {ORDER}"


@pytest.mark.parametrize(
    "line",
    [
        "from pipeline.cli import launch",
        "import pipeline.experiments.demo",
        "def f():\n    from pipeline import weights",
        "from ..cli import launch",
        "import importlib; importlib.import_module('pipeline.cli.launch')",
        "__import__('pipeline.weights')",
        "PLACES = {'demo': 'pipeline.experiments.demo:demo'}",
        "NETWORKS = {'mixste': ('pipeline.lift.MixSTE', None)}",
    ],
)
def test_a_planted_upward_import_or_string_is_found(line):
    assert upward("heatmap.module", ast.parse(line))


def test_a_planted_downward_import_or_string_is_let_pass():
    text = "from pipeline.training.stage import Stage\nPLACE = 'pipeline.files.store:Store'"
    assert not upward("heatmap.module", ast.parse(text))


def test_every_string_that_names_a_module_names_one_that_exists():
    for module, tree in TREES.items():
        for place in named(module, tree):
            assert exists(place), f"{module}: {place}"


def exists(place: str) -> bool:
    """Whether a dotted place below `pipeline` is a module, or a name in one."""
    found = pipeline
    for depth, name in enumerate(place.split("."), start=1):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(".".join(["pipeline", *place.split(".")[:depth]]))
        found = getattr(found, name, None)
    return found is not None


@pytest.mark.parametrize("place", ["cli.gone", "cli.launch.gone", "lift.NoSuchLifter", "gone"])
def test_a_string_that_names_nothing_is_found(place):
    assert not exists(place)


def test_modules_are_loaded_by_name_only_where_laziness_needs_it():
    """Each of these strings is read by `named`, or comes from a config or the command line."""
    loading = {
        name for name, text in FILES.items() if re.search(r"import_module\(|__import__\(", text)
    }
    assert loading == {
        "__init__",  # lazy names of the packages
        "cli.late_imports",  # packages of others, not of Heatlift
        "cli.commands",  # the command table of __main__
        "cli.stages",  # the table of stages
        "cli.explain",  # classes that a config names
        "cli.launch",  # --import FILE.py
        "cli.models",  # the table of systems
        "weights.importing",  # the table of networks
    }


def test_there_is_no_circle():
    graph = {name: arrows(name, tree) for name, tree in TREES.items() if name != "__init__"}
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != 1, f"circle: {' -> '.join([*trail, name])}"
        if name in state or name not in graph:
            return
        state[name] = 1
        for other in sorted(graph[name]):
            visit(other, (*trail, name))
        state[name] = 2

    for name in graph:
        visit(name, ())


def test_the_files_beside_the_packages_are_the_seven():
    flat = {path.stem for path in (ROOT / "pipeline").glob("*.py")}
    assert flat == FLAT


def test_the_one_module_beside_the_package_is_its_short_name():
    """`import heatlift` is what users type; it only passes on names of `pipeline`."""
    assert [path.name for path in ROOT.glob("*.py")] == ["heatlift.py"]
    text = (ROOT / "heatlift.py").read_text()
    assert {place for place in named("heatlift", ast.parse(text)) if "." in place} == {
        "export.motion.Motion",
        "predict.heatlift.Heatlift",
    }


def test_every_package_is_planned_and_none_is_deeper_than_two():
    assert {name.split(".")[0] for name in FILES} - FLAT <= LEVELS.keys()
    assert max(name.count(".") for name in FILES) == 1
    assert not {part for name in FILES for part in name.split(".")} & JUNK


def test_stages_have_the_same_files_inside():
    for stage in ("heatmap", "integral", "pretrain", "lift"):
        assert {f"{stage}.module", f"{stage}.data"} <= FILES.keys()


def oversized(tree: ast.AST) -> list[str]:
    """Classes and functions that are too long."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            limit = LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION
            found += [f"{node.name}: {lines}"] if lines > limit else []
    return found


@pytest.mark.parametrize("module", FILES)
def test_files_classes_and_functions_stay_short(module):
    assert len(FILES[module].splitlines()) <= LONGEST_FILE
    assert not oversized(TREES[module])


def test_no_private_name_is_imported_from_another_file():
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline"):
                private = [a.name for a in node.names if re.match(r"_(?!_)", a.name)]
                assert not private, f"{module} imports {private} from {node.module}"


def lines_of_the_tree() -> dict[str, str]:
    """Module -> the line that ARCHITECTURE.md has for it."""
    tree = re.search(r"```tree\n(.*?)```", TEXT, re.S)[1]
    found, package = {}, ""
    found["__init__"] = tree.splitlines()[0].split(None, 1)[1]
    for line in tree.splitlines()[1:]:
        match = re.match(r"([│├└─ ]*)([\w/.]+)\s+(.*)", line)
        depth, name, text = len(match[1]), match[2], match[3]
        if name.endswith("/"):
            package = name.rstrip("/")
            found[package] = text
        else:
            stem = name.removesuffix(".py")
            found[f"{package}.{stem}" if depth > 4 else stem] = text
    return found


def test_the_tree_in_the_architecture_page_is_that_of_the_files():
    documented = lines_of_the_tree()
    first = {name: ast.get_docstring(tree).splitlines()[0] for name, tree in TREES.items()}
    assert documented == first


def test_the_order_in_the_architecture_page_is_the_one_that_is_checked():
    assert ORDER in " ".join(TEXT.replace("`", "").split())


def test_every_package_is_in_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {f"pipeline.{name}" for name in PACKAGES} <= set(listed)
