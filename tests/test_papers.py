"""docs/papers.md names files and configs that exist, and leaves no row of a paper open."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip("| \n").split(" | ")]
    for line in (ROOT / "docs" / "papers.md").read_text().partition("\n## 000")[2].splitlines()
    if line.startswith("| ") and not re.match(r"\| (\||\d{3} |claim|system)", line)
]
FILES = sorted({name for row in ROWS for name in re.findall(r"`([\w/]+\.py)`", row[1])})
NAMED = sorted(
    {
        (file, name)
        for row in ROWS
        for file, names in re.findall(r"`([\w/]+\.py)` \(([^)]*)\)", row[1])
        for name in re.findall(r"`(\w+)`", names)
    }
)
"""File, and a name that the page says is in it."""

CONFIGS = sorted(
    {name for row in ROWS for name in re.findall(r"`((?:\w+/)?\w+)`", row[2]) if "_" in name}
)


@pytest.mark.parametrize("name", FILES)
def test_files_exist(name):
    assert (ROOT / "pipeline" / name).is_file()


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_names_stand_in_their_files(file, name):
    assert re.search(rf"\b{name}\b", (ROOT / "pipeline" / file).read_text())


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_exist(name):
    places = [ROOT / "configs" / f"{prefix}{name}.yaml" for prefix in ("", "sweeps/")]
    assert any(place.is_file() for place in places)


def test_what_has_no_file_has_a_reason():
    assert len(ROWS) > 45
    for row in ROWS:
        if row[1].strip("- |") == "":
            assert len(row[-1].strip("- |")) > 5, row


def test_every_config_of_a_paper_and_every_sweep_is_named():
    text = (ROOT / "docs" / "papers.md").read_text()
    for path in (ROOT / "configs").rglob("*.yaml"):
        if path.parent.name in ("sweeps", "integral") or "paper" in path.stem:
            assert path.stem in text, path
