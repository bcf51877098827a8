"""Tables on the terminal: nothing is truncated, coloured or interpreted as markup."""

from __future__ import annotations

import csv
import io
import logging
import sys

import pytest

from pipeline.__main__ import main
from pipeline.cli.tables import format_table, print_table
from pipeline.dashboard.page import write_index
from pipeline.errors import print_error, printable
from pipeline.files.writing import write_csv
from pipeline.training.console import (
    count_progress,
    escape_log_records,
    print_line,
    print_status,
    progress_bar,
)
from pipeline.training.metrics_file import MetricsFile
from pipeline.training.metrics_rows import read_metrics


def test_long_cells_and_markup_are_printed_as_they_are(capsys):
    name = "[walk, wave] :smile: " + "x" * 300
    print_table(("run", "MPJPE, mm"), [(name, "41.2")], "runs/sweeps", right=("MPJPE, mm",))
    title, header, rule, row = capsys.readouterr().out.splitlines()
    assert title == "runs/sweeps"
    assert header.split("|") == ["run".ljust(len(name) + 1), " MPJPE, mm"]
    assert set(rule) == {"-", "+"}
    assert row == f"{name} |      41.2"


def test_cells_are_folded_to_the_width_of_a_terminal():
    lines = format_table(("a", "b"), [("x" * 30, "1")], width=20).splitlines()
    assert max(map(len, lines)) <= 20
    assert sum(line.count("x") for line in lines) == 30


def test_a_table_without_rows_has_its_columns():
    assert format_table(("a", "b"), []).splitlines()[0] == "a | b"


EVIL = "walk\x1b[2J\r\nheatlift: error: all is lost\u202e\udc80\x9b\u2028"
SHOWN = r"walk\x1b[2J\r\nheatlift: error: all is lost\u202e\udc80\x9b\u2028"


def test_names_with_control_characters_are_shown_as_escapes_everywhere(capsys, caplog):
    print_line(EVIL)
    print_status(EVIL)
    print_table((EVIL, "b"), [(EVIL, "1")], EVIL, right=(EVIL,))
    escape_log_records()
    logging.getLogger("pipeline.mocap.bvh").warning("%s: %s", "a.bvh", EVIL)
    output = capsys.readouterr()
    assert output.err == f"{SHOWN}\n"
    first, title, head, _, row = output.out.splitlines()
    assert [first, title, head, row] == [SHOWN, SHOWN, f"{SHOWN} | b", f"{SHOWN} | 1"]
    assert caplog.messages == [f"a.bvh: {SHOWN}"]


def test_an_error_is_one_line_without_control_characters(capsys):
    assert print_error(f"a.bvh: joint {EVIL}", 4) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.strip().isprintable()


def test_words_of_any_language_stay_as_they_are():
    for text in ("Größe, 歩く, خیلی", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"):
        assert printable(text) == text


def test_progress_shows_no_control_characters_and_no_markup(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert list(progress_bar([1], "[red]a\x1b]0;title\x07")) == [1]
    with count_progress("[red]b\x1b]0;title\x07", 1, "images") as advance:
        advance(1)
    assert "\x1b]0;" not in terminal.getvalue()
    assert "[red]b" in terminal.getvalue()


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", " =", "\uff1d"])
def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe(start, tmp_path):
    write_csv(tmp_path / "a.csv", [[start + "cmd|' /C calc'!A0", -1.5, "-2e-3", "+4", "-", None]])
    with (tmp_path / "a.csv").open(newline="") as file:
        (row,) = csv.reader(file)
    assert row[0][0] in "'\\"  # an apostrophe, or the escape of a control character
    assert row[1:] == ["-1.5", "-2e-3", "+4", "-", ""]


def test_names_of_metrics_cannot_break_or_forge_lines_of_metrics_csv(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"=1+2": -3.5, "val/a\n9,val/mpjpe_mm": 1.0}, step=4)
    assert read_metrics(log.path) == [
        (4, "'=1+2", -3.5),
        (4, r'"val/a\n9,val/mpjpe_mm"', 1.0),
    ]


def test_a_page_shows_no_control_characters_and_no_tags(tmp_path):
    (tmp_path / "tables").mkdir()
    write_csv(tmp_path / "tables" / "a.csv", [["action"], [f"<script>{EVIL}</script>"]])
    (tmp_path / "<b>\x1b.txt").write_text("x")
    page = write_index(tmp_path, []).read_text()
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "<script>walk" not in page
    assert "&lt;b&gt;" in page


@pytest.mark.parametrize("command", [["data", "ls"], ["data", "validate"], ["cache", "rm"]])
def test_a_hostile_argument_or_folder_cannot_forge_a_line(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    assert main([*command, str(tmp_path / "a\nheatlift: error: b\x1b[2J")]) in (2, 4)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.strip().isprintable()
