"""`heatlift runs`: the table of runs, one run, and the page that compares several."""

from __future__ import annotations

import json
import re

import pytest

from pipeline.__main__ import main
from pipeline.dashboard.comparison import short_names
from pipeline.training.metrics_rows import read_metrics
from pipeline.training.run_folder import write_state


def make_run(folder, *, test=None, val=(), share=None, seconds=None, settings=None, actions=None):
    (folder / "tables").mkdir(parents=True)
    rows = [(10 * (i + 1), "val/mpjpe_mm", value) for i, value in enumerate(val)]
    if test is not None:
        rows.append((40, "test/mpjpe_mm", test))
    if share is not None:
        rows.append((40, "test/of_mean_pose", share))
    text = "step,name,value\n" + "".join(f"{s},{n},{v}\n" for s, n, v in rows)
    (folder / "metrics.csv").write_text(text)
    assert len(read_metrics(folder / "metrics.csv")) == len(rows)
    state = {"settings": settings or {}, "state": "finished" if test is not None else "training"}
    if seconds is not None:
        state["seconds"] = seconds
    write_state(folder, state)
    if actions:
        rows = "".join(f"{name},{value},1\n" for name, value in actions.items())
        (folder / "tables" / "actions.csv").write_text("action,mpjpe_mm,frames\n" + rows)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = {"source": {"class_path": "pipeline.mocap.Synthetic"}, "detections": "exact"}
    make_run(
        tmp_path / "runs/lift/a",
        test=37.41,
        share=0.168,
        val=(60.0, 45.0),
        seconds=95.0,
        settings={"data": source, "seed": 1, "model": {"net": {"dim": 8}}},
        actions={"walk": 30.25, "wave": 44.5},
    )
    make_run(
        tmp_path / "runs/lift/b",
        test=41.5,
        share=0.186,
        val=(70.0, 50.0),
        settings={"data": source, "seed": 2, "model": {"net": {"dim": 8}}},
        actions={"walk": 33.75, "wave": 49.0},
    )
    make_run(tmp_path / "runs/pretrain/c", val=(80.5,))
    return tmp_path


def test_the_table_has_all_runs(runs, capsys):
    assert main(["runs", "ls"]) == 0
    rows = [re.split(r" *\| *", line) for line in capsys.readouterr().out.splitlines()]
    assert rows[2][:2] == ["pretrain/c", "step 10"]
    assert rows[2][3] == "val/mpjpe_mm 80.50 mm"
    assert rows[3] == [
        "lift/a",
        "finished",
        "Synthetic, exact",
        "test/mpjpe_mm 37.41 mm",
        "16.8 %",
        "2 min",
    ]
    assert rows[4][0] == "lift/b"


def test_a_run_is_shown_with_its_baseline(runs, capsys):
    assert main(["runs", "show", "lift/a"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "A predicted joint is 37.4 mm from its true place on the test split, on average. That is "
        "17 % of the error of always guessing the mean pose (222.7 mm)."
    )
    assert main(["runs", "show", str(runs / "runs/pretrain/c")]) == 0
    assert "Not finished: step 10 so far." in capsys.readouterr().out


def test_the_comparison_has_numbers_settings_curves_and_tables(runs, capsys):
    assert main(["runs", "compare", "lift/a", "runs/lift/b", "--out", "page.html"]) == 0
    page = (runs / "page.html").read_text()
    assert '<a href="runs/lift/a/index.html">a</a>' in page
    assert "<b>37.41 mm</b>" in page
    assert "41.50 mm" in page
    assert "<b>41.50 mm</b>" not in page
    assert "<td>seed</td><td>1</td><td>2</td>" in page
    assert "model.net.dim" not in page
    assert page.count("<svg") == 1
    assert 'class="line line0"' in page
    assert 'class="line line1"' in page
    assert re.search(r"<td>wave</td><td[^>]*>44.50</td><td[^>]*>49.00</td>", page)
    assert "http" not in re.sub(r"http-equiv", "", page)


@pytest.mark.parametrize(
    ("second", "differ"), [("; weights: last (step 9)", False), ("; 2D noisy; weights: best", True)]
)
def test_numbers_of_different_tests_are_not_ranked(second, differ, runs):
    for name, end, value in (("p", "; weights: best", 10.25), ("q", second, 11.5)):
        make_run(runs / f"runs/lift/{name}", test=value)
        path = runs / f"runs/lift/{name}/run.json"
        state = {**json.loads(path.read_text()), "protocol": f"test split of some{end}"}
        path.write_text(json.dumps(state))
    assert main(["runs", "compare", "lift/p", "lift/q"]) == 0
    page = (runs / "comparison.html").read_text()
    assert ("numbers are not comparable" in page) == differ
    assert ("<b>10.25 mm</b>" in page) != differ
    assert ("<p>Protocol: test split of some</p>" in page) != differ
    assert ("<td>test split of some; 2D noisy; weights: best</td>" in page) == differ


def test_losses_that_differ_are_not_in_one_chart(runs):
    for name, loss in (("p", "A"), ("q", "B"), ("r", "B")):
        make_run(runs / f"runs/lift/{name}", settings={"model": {"loss": loss}})
        rows = "".join(f"{step},train/loss,{step / 3}\n" for step in (1, 2, 3))
        with (runs / f"runs/lift/{name}/metrics.csv").open("a") as file:
            file.write(rows)
    assert main(["runs", "compare", "lift/p", "lift/q", "--out", "a.html"]) == 0
    assert main(["runs", "compare", "lift/q", "lift/r", "--out", "b.html"]) == 0
    charts = [(runs / page).read_text().count("<svg") for page in ("a.html", "b.html")]
    assert charts[1] == charts[0] + 1


MISTAKES = {
    ("compare", "lift/a", "lift/x"): "lift/x: is no run",
    ("compare", "a", "lift/b"): "a: is no run; did you mean lift/a?",
    ("list",): "invalid choice: 'list'",
    (): "required: command",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line(arguments, runs, capsys):
    assert main(["runs", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert MISTAKES[arguments] in err


def test_names_of_runs_are_as_short_as_they_can_be(tmp_path):
    a, b = tmp_path / "x/lift/one", tmp_path / "y/lift/two"
    assert short_names([a, b]) == ["one", "two"]
    assert short_names([tmp_path / "x/lift/one", tmp_path / "y/lift/one"]) == [
        "x/lift/one",
        "y/lift/one",
    ]


def test_digests_are_shown_by_their_beginning(runs):
    for name, digit in (("p", "a"), ("q", "b")):
        make_run(runs / f"runs/lift/{name}", settings={"weights": 12 * digit + 52 * "0"})
    assert main(["runs", "compare", "lift/p", "lift/q"]) == 0
    page = (runs / "comparison.html").read_text()
    assert f"<td>{12 * 'a'}…</td><td>{12 * 'b'}…</td>" in page


def test_html_in_names_and_settings_is_text(runs):
    make_run(
        runs / "runs/lift/<b>x",
        test=1.5,
        settings={"seed": "<script>alert(1)</script>"},
        actions={"<img src=x>": 3.0},
    )
    assert main(["runs", "compare", "lift/<b>x", "lift/a"]) == 0
    page = (runs / "comparison.html").read_text()
    for tag in ("<script", "<img", "<b>x"):
        assert tag not in page


def test_the_state_of_a_run_is_plain_json(runs):
    assert json.loads((runs / "runs/lift/a/run.json").read_text())["settings"]["seed"] == 1
