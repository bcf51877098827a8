"""The table of `make soak` in docs/reliability.md: counts, verdicts, rewriting."""

from __future__ import annotations

import json

import pytest
import soak
from soak import BEGIN, END, FAULTS, Soak, Tries


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "reliability.md"
    path.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    return path


def soak_with(**rows):
    """A soak with these rows of (trials, harms), and all others complete."""
    whole = {name: (fault.asked, {}) for name, fault in FAULTS.items()}
    table = Soak()
    for name, (tried, harms) in (whole | rows).items():
        table.add([json.dumps([name, tried, 1.0, harms])])
    return table


def test_a_whole_soak_is_written_between_the_markers_and_nothing_else_changes(page):
    assert soak_with().write(page) == "whole; written into reliability.md"
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n**Whole: ")
    assert text.endswith(f"{END}\nafter\n")
    assert "| 2,870 | - / - / - / - / - / - | < 0.1 % |" in text


def test_the_page_has_the_rows_of_the_code():
    table = soak.PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    rows = [line.strip("| ").split(" | ")[:3] for line in table.splitlines() if line[:3] != "|--"]
    rows = [row for row in rows if len(row) == 3 and row[0] != "fault"]
    assert rows == [[fault.name, fault.stock, fault.ours] for fault in FAULTS.values()]


def test_the_bound_is_the_rule_of_three():
    assert soak_with(death=(80, {"zero": 0})).line("death").endswith("| < 3.8 % |")
    assert soak_with(world=(3, {})).line("world").endswith("| no useful bound |")


def test_a_cut_soak_is_marked_and_does_not_replace_a_longer_one(page):
    cut = soak_with(cache=(28, {"wrong": 0}))
    assert cut.verdict == "cut"
    cut.write(page)
    assert "**Cut: " in page.read_text()
    assert "28 of 2,870 planned" in page.read_text()
    soak_with().write(page)
    before = page.read_text()
    assert cut.write(page) == "cut; reliability.md keeps the figures of a longer soak"
    assert page.read_text() == before


def test_a_harm_is_never_hidden(page):
    soak_with().write(page)
    bad = soak_with(cache=(10, {"wrong": 1, "lost": 0}))
    assert bad.write(page) == "failed; written into reliability.md"
    assert "**FAILED: " in page.read_text()
    assert "| 1 / 0 / - / - / - / - | FAILED |" in page.read_text()


def test_a_test_that_broke_marks_its_row_and_is_named():
    table = Soak()
    table.failed.append("tests/test_soak.py::test_kills")
    table.add([json.dumps(["kill lift", 4, 1.0, {}])], failed=True)
    assert table.verdict == "failed"
    assert table.line("kill lift").endswith("| FAILED |")
    assert "Failed: `tests/test_soak.py::test_kills`" in table.text()


def test_rows_of_several_tests_add_up():
    table = Soak()
    table.add([json.dumps(["hang", 5, 2.0, {"zero": 0}])])
    table.add([json.dumps(["hang", 5, 4.0, {"zero": 1, "orphans": 0}])])
    assert (table.tried("hang"), table.rows["hang"].seconds) == (10, 6.0)
    assert table.rows["hang"].harms == {"zero": 1, "orphans": 0}


def test_tries_end_with_a_verdict_and_a_harm_fails_the_test(monkeypatch):
    monkeypatch.setattr(soak, "SHARE", 0.5)
    row = Tries("death")
    assert list(row.times(6)) == [0, 1, 2]
    bad = Tries("death")
    with pytest.raises(AssertionError, match="'orphans': 2"):
        [bad.look("rank 1", orphans=[77], zero=False) for _ in bad.times(4)]
    assert json.loads(bad.record())[3] == {"orphans": 2, "zero": 0}


def test_no_try_begins_after_the_time_is_up(monkeypatch):
    monkeypatch.setenv("HEATLIFT_SOAK_END", "0")
    row = Tries("death")
    assert list(row.times(10)) == []
    assert row.tried == 0


def test_a_page_without_markers_is_an_error(tmp_path):
    (tmp_path / "page.md").write_text("no marker")
    with pytest.raises(AssertionError, match="lost its marker"):
        soak_with().write(tmp_path / "page.md")
