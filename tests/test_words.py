"""Code, help and docs use one vocabulary, and none of the words that it replaced."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLD = {
    r"\brooms?\b": "stage, package",
    r"\bhouses?\b": "layout",
    r"\bdoors?\b": "boundary, detection cache",
    r"\bfloors\b": "order of the packages",
    r"pictures?(?!sque)": "image, video",
    r"\bfilm(s|ed|ing)?\b|refilm": "video, rendered, recorded",
    r"\bkeeper\b": "checkpoint callback",
    r"\bjudges?\b": "benchmark metric",
    r"\bgivers?\b": "source checkpoint",
    r"loader process(es)?": "DataLoader worker",
    r"hand(ed|s|ing)?[- ]?over": "transfer of weights",
    r"what (a|the) numbers? (of .* )?(is|are) (a )?numbers? of": "evaluation protocol",
    r"\b(says?|said|saying)\b": "log, print, report, state",
    r"(?<!z-)(?<!z_)\bscored\b": "evaluated, labelled, z-scored",
    r"\brefus(e|es|ed|al|als|ing)\b": "raise an error, reject",
    r"\b(amid|anew|lest|manieth|whence|thereof)\b": "plain English",
    r"let_go|die_with|things_in_front|says_that": "a name that can be guessed",
}
"""Pattern, whatever its case -> what stands for it now."""

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "Makefile"]
CODE = [
    path for folder in ("pipeline", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")
]
CONFIGS = [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "notebooks").glob("*.ipynb")]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", sorted([*PAGES, *CODE, *CONFIGS]), ids=name_of)
def test_no_old_word_is_used(path):
    found = []
    text = path.read_text()
    if path.name == "CHANGELOG.md":  # names the options that were renamed
        text = re.sub(r"`[^`]*`", "", text)
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, new in OLD.items():
            if match := re.search(pattern, line, re.IGNORECASE):
                found.append(f"{name_of(path)}:{number}: {match[0]} -> {new}")
    assert not found, "\n".join(found)


def docstrings(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


@pytest.mark.parametrize("path", sorted(CODE), ids=name_of)
def test_no_line_of_arguments_begins_with_of(path):
    """They are printed by `--help`."""
    for text in docstrings(ast.parse(path.read_text())):
        lines = re.findall(r"^\s+(\w+): (Of)\b(.*)", text, re.MULTILINE)
        assert not lines


@pytest.mark.parametrize(
    "line", ["the door caches", "Rooms 1 and 2", "it says which", "is refused"]
)
def test_an_old_word_would_be_found(line):
    assert any(re.search(pattern, line, re.IGNORECASE) for pattern in OLD)
