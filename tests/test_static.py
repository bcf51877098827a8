"""Unsafe calls occur only in the modules that were reviewed for them."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REVIEWED = {
    # writes archives of objects, which other lifters read
    "pipeline/mocap/videopose3d_export.py": {"allow_pickle"},
}
"""Module -> unsafe names that a reviewer allowed there."""

NAMES = {
    "eval",
    "exec",
    "compile",
    "pickle.load",
    "pickle.loads",
    "dill.load",
    "dill.loads",
    "joblib.load",
    "pandas.read_pickle",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "runpy.run_module",
    "runpy.run_path",
    "shutil.unpack_archive",
    "yaml.full_load",
    "yaml.full_load_all",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
    "os.popen",
    "os.system",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "tempfile.mktemp",
    "torch.hub.load",
    "torch.jit.load",
    "cv2.FileStorage",
    "urllib.request.urlretrieve",
}
"""Functions that must not be named at all, however they were imported."""

METHODS = {"Unpickler", "add_safe_globals", "extract", "extractall"}
"""Names of methods and classes that must not be called or inherited from, in any module."""

OPTIONS = {"allow_pickle": False, "weights_only": True, "shell": False}
"""Options and the only value that they may have, as a literal."""


def unsafe(source: str) -> set[str]:
    """Names of the unsafe functions and options in a source."""
    tree = ast.parse(source)
    places = imported(tree)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            found |= {dotted(node, places)} & NAMES
        elif isinstance(node, ast.ClassDef):
            found |= {dotted(base, places).rpartition(".")[2] for base in node.bases} & METHODS
        elif isinstance(node, ast.Call):
            name = dotted(node.func, places)
            found |= ({name.rpartition(".")[2]} & METHODS) | unsafe_options(name, node)
    return found


def unsafe_options(name: str, call: ast.Call) -> set[str]:
    """Options of a call that are not the safe literal, and missing options of loaders."""
    given = {option.arg: option.value for option in call.keywords}
    found = {o for o in given.keys() & OPTIONS.keys() if not is_literal(given[o], OPTIONS[o])}
    if name == "torch.load" and "weights_only" not in given:
        found.add("torch.load")
    if name == "numpy.load" and (None in given or any(map(is_unsafe_place, enumerate(call.args)))):
        found.add("allow_pickle")
    return found


def is_unsafe_place(argument: tuple[int, ast.expr]) -> bool:
    """Whether a positional argument of numpy.load may allow pickles: the third, or `*more`."""
    at, value = argument
    return isinstance(value, ast.Starred) or (at == 2 and not is_literal(value, False))


def is_literal(node: ast.expr, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def imported(tree: ast.AST) -> dict[str, str]:
    """Full name of each name that a source imports, at its top or inside a function."""
    places = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            places |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            places |= {a.asname: a.name for a in node.names if a.asname}
    return places


def dotted(node: ast.expr, places: dict[str, str]) -> str:
    """The full name of a function, with its module."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, places)}.{node.attr}".removeprefix("builtins.")
    name = places.get(node.id, node.id) if isinstance(node, ast.Name) else ""
    return name.removeprefix("builtins.")


SOURCES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("pipeline", "benchmarks", "docs", "notebooks")
    for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("path", [path for path in SOURCES if not path.startswith("pipeline/")])
def test_a_script_imports_names_that_exist(path):
    """Scripts are run by hand; a name that was moved would be missed at the next use only."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("path", SOURCES)
def test_a_source_does_nothing_unsafe_that_was_not_reviewed(path):
    found = unsafe((ROOT / path).read_text())
    assert found <= REVIEWED.get(path, set()), f"{path} uses {found}; see SECURITY.md"


OPENERS = {
    "torch.load",
    "numpy.load",
    "zipfile.ZipFile",
    "zipfile.is_zipfile",
    "tarfile.open",
    "gzip.open",
    "pickle.Unpickler",
    "scipy.io.loadmat",
    "cv2.imdecode",
    "cv2.imread",
}
"""Functions that open files of other people."""


def opened(source: str) -> set[str]:
    """Names of the functions in a source that open files of other people."""
    tree = ast.parse(source)
    places = imported(tree)
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute))
    return {dotted(node, places) for node in names} & OPENERS


@pytest.mark.parametrize("path", [path for path in SOURCES if path.startswith("pipeline/")])
def test_files_of_other_people_are_opened_in_the_package_files_alone(path):
    assert path.startswith("pipeline/files/") or not opened((ROOT / path).read_text())


EXITS = {
    "sys.stdout.write": {"pipeline/training/console.py"},
    "sys.stderr.write": {
        "pipeline/errors.py",
        "pipeline/training/console.py",
        "pipeline/training/processes.py",  # lines of another process, which escaped them
        "pipeline/cli/launch.py",  # the traceback of --debug, escaped
    },
    "csv.writer": {"pipeline/files/writing.py", "pipeline/training/metrics_file.py"},
}
"""Where text leaves: the modules that escape it."""


@pytest.mark.parametrize("path", [path for path in SOURCES if path.startswith("pipeline/")])
def test_text_leaves_only_where_it_is_escaped(path):
    tree = ast.parse((ROOT / path).read_text())
    places = imported(tree)
    names = {dotted(node, places) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not [name for name, modules in EXITS.items() if name in names and path not in modules]


def test_an_opened_file_would_be_noticed():
    assert opened("from torch import load; load(f, weights_only=True)") == {"torch.load"}
    assert opened("import zipfile as z; z.ZipFile(f)") == {"zipfile.ZipFile"}


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "np.load(f, allow_pickle=True)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=flag)",
        "import numpy as np; np.load(f, None, True)",
        "import numpy as np; np.load(f, *more)",
        "from numpy import load; load(f, **more)",
        "torch.load(f)",
        "torch.load(f, weights_only=flag)",
        "from torch import load; load(f)",
        "import torch as t; t.load(f)",
        "pickle.load(f)",
        "import pickle as p; p.load(f)",
        "from pickle import load; load(f)",
        "from pickle import load as read; read(f)",
        "def f():\n    from os import system\n    system(x)",
        "from yaml import unsafe_load; unsafe_load(f)",
        "from tempfile import mktemp; mktemp()",
        "from builtins import eval as see; see('1')",
        "builtins.eval('1')",
        "map(eval, lines)",
        "runpy.run_path(f)",
        "shutil.unpack_archive(f)",
        "yaml.load(f, yaml.Loader)",
        "subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=flag)",
        "os.system(x)",
        "archive.extractall()",
        "class Mine(pickle.Unpickler): pass",
        "cv2.FileStorage(f, 0)",
    ],
)
def test_an_unsafe_line_is_found(line):
    assert unsafe(line)


@pytest.mark.parametrize(
    "line",
    [
        "net.eval()",
        "re.compile('a')",
        "np.load(f, allow_pickle=False)",
        "import numpy as np; np.load(f, None, False)",
        "from json import load; load(f)",
        "torch.load(f, weights_only=True)",
    ],
)
def test_a_harmless_line_passes(line):
    assert not unsafe(line)


def test_reviewed_modules_still_need_their_exception():
    for path, allowed in REVIEWED.items():
        assert unsafe((ROOT / path).read_text()) == allowed
