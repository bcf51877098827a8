"""Tables on the terminal: nothing is truncated, coloured or interpreted as markup."""

from __future__ import annotations

from pipeline.cli.tables import format_table, print_table


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
