"""No new unsafe call comes in outside the modules that were reviewed for them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REVIEWED = {
    "pipeline/datasets/archive.py": {"Unpickler"},  # the restricted reader
    "pipeline/datasets/export.py": {"allow_pickle"},  # writes what other people's lifters read
}
"""Module -> what it may do, because it was read for that."""

CALLS = {
    "eval",
    "exec",
    "compile",
    "Unpickler",
    "pickle.load",
    "pickle.loads",
    "dill.load",
    "joblib.load",
    "marshal.loads",
    "shelve.open",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "tempfile.mktemp",
    "torch.hub.load",
    "torch.jit.load",
    "cv2.FileStorage",
    "extractall",
    "extract",
    "add_safe_globals",
    "urllib.request.urlretrieve",
}
OPTIONS = {"allow_pickle": True, "weights_only": False, "shell": True}


def unsafe(source: str) -> set[str]:
    """Names of the unsafe calls and options in a source."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            found |= {dotted(base).rpartition(".")[2] for base in node.bases} & CALLS
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        last = name.rpartition(".")[2]
        method = isinstance(node.func, ast.Attribute) and last in ("eval", "compile", "exec")
        if name in CALLS or (last in CALLS and not method):
            found.add(last if last in CALLS else name)
        if last == "load" and name.startswith("torch") and not safe_load(node):
            found.add("torch.load")
        for option in node.keywords:
            value = getattr(option.value, "value", None)
            if option.arg in OPTIONS and value is OPTIONS[option.arg]:
                found.add(option.arg)
    return found


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def safe_load(node: ast.Call) -> bool:
    """Whether a torch.load says itself that it loads weights only."""
    return any(
        option.arg == "weights_only" and getattr(option.value, "value", None) is True
        for option in node.keywords
    )


SOURCES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("pipeline", "benchmarks", "docs", "notebooks")
    for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("path", SOURCES)
def test_a_source_does_nothing_unsafe_that_was_not_reviewed(path):
    found = unsafe((ROOT / path).read_text())
    assert found <= REVIEWED.get(path, set()), f"{path} uses {found}; see SECURITY.md"


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "np.load(f, allow_pickle=True)",
        "torch.load(f, weights_only=False)",
        "torch.load(f)",
        "pickle.load(f)",
        "yaml.load(f, yaml.Loader)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
        "archive.extractall()",
        "class Mine(pickle.Unpickler): pass",
        "cv2.FileStorage(f, 0)",
    ],
)
def test_an_unsafe_line_would_be_noticed(line):
    assert unsafe(line)


@pytest.mark.parametrize(
    "line",
    [
        "net.eval()",
        "re.compile('a')",
        "np.load(f, allow_pickle=False)",
        "torch.load(f, weights_only=True)",
    ],
)
def test_a_harmless_line_is_let_pass(line):
    assert not unsafe(line)


def test_reviewed_modules_still_need_their_leave():
    for path, may in REVIEWED.items():
        assert unsafe((ROOT / path).read_text()) == may
