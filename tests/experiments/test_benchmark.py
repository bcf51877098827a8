import json
import re
from pathlib import Path

import pytest
import yaml

from pipeline import lift
from pipeline.cli.configs import find_config
from pipeline.errors import UsageError
from pipeline.experiments import benchmark, benchmark_page, robustness
from pipeline.experiments.benchmark import Benchmark
from pipeline.experiments.benchmark_page import MARK, ROWS
from pipeline.experiments.budget import Plan, cpu_seconds_used, plan_steps, read_calibration
from pipeline.experiments.robustness import Point
from pipeline.lift import LiftModule
from pipeline.training.run_folder import newest_finished_run, write_state

SYNTHETIC = {
    "class_path": "pipeline.mocap.Synthetic",
    "init_args": {"train": 1, "val": 1, "test": 1, "seconds": 1.0, "actions": ["walk", "wave"]},
}


@pytest.mark.parametrize(
    ("seconds", "step", "start", "most"),
    [(5.0, 0.05, 0.0, 400), (420.0, 0.05, 0.0, 400), (60.0, 0.6, 3.0, 100), (840.0, 0.6, 3.0, 100)],
)
def test_a_plan_uses_the_budget_and_ends_with_a_validation(seconds, step, start, most):
    found = plan_steps(seconds, step, start, most)
    cost = found.epochs * (start + found.batches * step)
    assert cost <= seconds
    assert cost > 0.8 * seconds - found.epochs * step
    assert found.epochs >= 4
    assert found.batches <= most
    assert found.epochs % found.validate_every == 0


def test_a_budget_that_is_too_small_raises_an_error():
    with pytest.raises(UsageError, match="give more --seconds"):
        plan_steps(1.0, 0.5, 1.0, 100)


def test_a_short_run_gives_the_costs_of_steps_and_epochs():
    clock, metrics = 0.0, [(0, "train/batches_per_pass", 50.0)]
    for step in range(40):
        clock += 0.25 + (2.0 if step in (0, 20) else 0.0)
        metrics.append((step, "train/cpu_s", clock))
    assert read_calibration(metrics) == pytest.approx((0.25, 2.0, 50))
    assert cpu_seconds_used(metrics) == pytest.approx(14.0)


def test_too_few_steps_raise_an_error():
    with pytest.raises(UsageError, match="results needs more data"):
        read_calibration([(0, "train/batches_per_pass", 1.0), (0, "train/cpu_s", 1.0)])


def test_every_2d_input_has_the_main_rows_at_equal_budgets():
    for detections in ("noisy", "exact"):
        rows = [row for row in ROWS if row.detections == detections]
        others = [2, 2, 2, 2] if detections == "noisy" else []
        assert [row.share + bool(row.pretraining) for row in rows] == [1, 1, 1, 2, 2, *others]
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_has_the_size_of_its_config_and_evaluates_frames_of_its_lifter(row):
    named = yaml.safe_load(find_config(row.config).read_text())["model"]["net"]
    named = named["init_args"].get("net", named)  # the lifter inside Centred
    lifter = getattr(lift, named["class_path"].rpartition(".")[2])(**named["init_args"])
    arguments = named["init_args"]
    for unit, key in (("frames", "frames"), ("channels", "dim"), ("channels", "width")):
        if key in arguments:
            assert f"{arguments[key]} {unit}" in row.size
    assert row.frames == ("subset" if lifter.output == "centre" else "all")
    smooth = float(row.arguments()[-2].removeprefix("--model.smooth="))
    LiftModule(lifter, smooth=smooth, frames=row.frames)
    assert smooth or row.frames == "subset"


def test_an_unknown_row_raises_an_error(tmp_path):
    with pytest.raises(UsageError, match="no row best; there are videopose3d-noisy"):
        benchmark.results(SYNTHETIC, rows=["best"], runs=str(tmp_path), docs=str(tmp_path))


def test_options_of_the_source_become_its_arguments(tmp_path):
    given = {"class_path": "pipeline.mocap.Mocap", "init_args": {"seed": 3}}
    source = benchmark._merge_options({**given, "root": "there"})
    assert source["init_args"] == {"seed": 3, "root": "there"}
    with pytest.raises(UsageError, match="give -c data/mocap"):
        benchmark._merge_options({"root": "there"})


def test_a_row_is_trained_on_the_bodies_that_it_is_tested_on(tmp_path):
    """The config of the row asks for random adults, the own recordings do not."""
    own = {"class_path": "pipeline.mocap.Mocap", "init_args": {"root": "there"}}
    bench = benchmark.Benchmark(own, 7.0, tmp_path, tmp_path)
    stored = yaml.safe_load(bench.data_config.read_text())["data"]["source"]["init_args"]
    assert (stored["root"], stored["bodies"]) == ("there", "recorded")


def test_comments_and_max_epochs_of_a_config_do_not_change_the_name_of_the_run(tmp_path):
    text = find_config("lift/martinez_mocap").read_text()
    bench = benchmark.Benchmark(SYNTHETIC, 7.0, tmp_path, tmp_path)
    names = []
    for change in (("", ""), ("max_epochs: 40", "max_epochs: 3"), ("#", "# not"), ("1024", "512")):
        (tmp_path / "other.yaml").write_text(text.replace(*change))
        names.append(bench.run_name("martinez", str(tmp_path / "other.yaml")))
    assert names[0] == names[1] == names[2] != names[3]


def _named(numbers):
    return [(key.removeprefix("test/"), value) for key, value in numbers.items()]


def finished(bench, row, error):
    """Make the run folder of a finished row."""
    folder = bench.runs / "lift" / bench.run_name(row.name, row.config)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.ckpt").touch()
    numbers = {f"test/{key}_mm": error for key in ("mpjpe", "p_mpjpe", "n_mpjpe", "mpjve")}
    numbers |= {"test/mpjpe_seen_mm": error - 1, "test/mpjpe_unseen_mm": error + 2}
    numbers |= {f"test/subset_{key}": value + 10 for key, value in _named(numbers)}
    numbers |= {f"test/mean_pose_{key}_mm": 200.5 for key in ("mpjpe", "p_mpjpe", "mpjve")}
    state = {"state": "finished", "numbers": numbers, "checkpoint": "checkpoints/best.ckpt"}
    write_state(folder, state)
    lines = ["step,name,value", "9,train/cpu_s,5.0", "9,val/mpjpe_mm,80.0", "19,train/cpu_s,10.0"]
    (folder / "metrics.csv").write_text("\n".join([*lines, "19,val/mpjpe_mm,60.0", ""]))
    points = [Point("joints hidden", level, error + 10 * level, 5.0) for level in (0.0, 0.2, 0.4)]
    robustness.write_points(folder, points)
    return folder


def test_the_page_has_a_line_per_row_and_keeps_its_last_part(tmp_path):
    bench = Benchmark(SYNTHETIC, 30.0, tmp_path / "runs", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "results.md"
    page.write_text(f"old numbers\n{MARK}\n## What was tried\n\nThis and that.\n")
    finished(bench, ROWS[0], 44.25)
    finished(bench, ROWS[2], 50.0)
    finished(bench, ROWS[3], 48.0)
    finished(bench, next(row for row in ROWS if row.frames == "subset"), 52.5)
    bench.write_page()
    text = page.read_text()
    assert "old numbers" not in text
    assert text.endswith(f"{MARK}\n## What was tried\n\nThis and that.\n")
    whole, rest = text.split("## Exact 2D")
    few = rest.split("## All lifters on the frame subset, noisy 2D")[1]
    numbers = r"30 \| 10 \| 44\.2 .* \| 43\.2 / 46\.2 \| 46\.2 \| 48\.2 \|"
    assert re.search(r"\| VideoPose3D \| 27 frames, 512 channels \| " + numbers, whole)
    assert re.search(
        r"VideoPose3D \| [^|]* \| 30 \| 10 \| 54\.2 .* 54\.25 \| 53\.2 / 56\.2 \|", few
    )
    assert re.search(
        r"MixSTE pretrained \| [^|]* \| 30 \+ 30 \| 10 \+ pretraining \| 48\.0 ", whole
    )
    assert re.search(r"\| PoseFormer † \| 27 frames[^|]* \| 60 \| 10 \| 52\.5 ", whole)
    assert re.search(r"\| PoseFormer † \| 27 frames[^|]* \| 60 \| 10 \| 62\.5 ", few)
    assert "| mean training pose | - | - | - | 200.5 |" in text
    noisy = [row for row in ROWS if row.detections == "noisy"]
    assert text.count("not yet") == len(ROWS) - 4 + len(noisy) - 4
    assert len({line.count("|") for line in few.splitlines() if line.startswith("|")}) == 1
    assert "whole chain" not in text
    assert "have 30 each" in text
    assert "have 60 and" in text
    assert (tmp_path / "docs" / "results_learning.png").stat().st_size > 1000
    assert (tmp_path / "docs" / "results_robustness.png").stat().st_size > 1000


def test_other_data_or_another_budget_give_other_runs(tmp_path):
    row = ROWS[0]
    names = {
        Benchmark(source, seconds, tmp_path, tmp_path).run_name(row.name, row.config)
        for source in (SYNTHETIC, {**SYNTHETIC, "init_args": {"seed": 1}})
        for seconds in (30.0, 60.0)
    }
    assert len(names) == 4


def test_a_finished_row_is_not_trained_again(tmp_path):
    bench = Benchmark(SYNTHETIC, 30.0, tmp_path / "runs", tmp_path / "docs")
    folder = finished(bench, ROWS[0], 44.25)
    before = sorted(folder.iterdir())
    bench.train(ROWS[0])
    assert sorted(folder.iterdir()) == before


def test_metrics_on_the_frame_subset_are_added_to_those_of_the_run(tmp_path):
    folder = finished(Benchmark(SYNTHETIC, 30.0, tmp_path, tmp_path), ROWS[0], 44.25)
    (folder / benchmark_page.SUBSET_FILE).write_text('{"test/subset_mpjpe_mm": 41.5}')
    found = benchmark_page.run_numbers(folder)
    assert (found["test/mpjpe_mm"], found["test/subset_mpjpe_mm"]) == (44.25, 41.5)


def test_a_calibration_is_not_a_finished_run(tmp_path):
    bench = Benchmark(SYNTHETIC, 30.0, tmp_path / "runs", tmp_path / "docs")
    row = next(row for row in ROWS if row.config == "lift/mixste_mocap")
    small = ["frames=3", "dim=8", "depth=1", "heads=2"]
    small = [f"--model.net.init_args.net.init_args.{argument}" for argument in small]
    planned = bench._plan("lift", row.name, row.config, 1.0, [*row.arguments(), *small])
    assert planned.batches > 0
    assert newest_finished_run(bench.runs, "lift", lambda settings: True) is None


@pytest.mark.slow
def test_a_missing_test_on_the_frame_subset_is_made_once_and_stored_in_the_run_folder(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HEATLIFT_RUN", "")
    bench = Benchmark(SYNTHETIC, 30.0, tmp_path / "runs", tmp_path / "docs")
    row = next(row for row in ROWS if row.frames == "subset")
    small = ["frames=3", "dim=8", "depth=1", "heads=2"]
    small = [f"--model.net.init_args.net.init_args.{argument}" for argument in small]
    arguments = [*row.arguments(), *small]
    name = bench.run_name(row.name, row.config)
    bench._run("lift", name, row.config, Plan(1, 2, 1), bench.runs, arguments)
    folder = bench.finished("lift", row.name, row.config)
    state = json.loads((folder / "run.json").read_text())
    given = {key: v for key, v in state["numbers"].items() if "subset" in key}
    state["numbers"] = {key: v for key, v in state["numbers"].items() if "subset" not in key}
    write_state(folder, state)
    robustness.write_points(folder, [Point("joints hidden", 0.0, 44.25, 5.0)])
    bench.train(row)
    assert json.loads((folder / benchmark_page.SUBSET_FILE).read_text()) == pytest.approx(given)
    assert len(given) == 4
    bench.write_page()
    shown = f"| {given['test/subset_mpjpe_mm']:.1f} | {given['test/subset_p_mpjpe_mm']:.1f} |"
    assert (bench.docs / "results.md").read_text().count(shown) == 2


def test_other_data_have_another_page_than_the_benchmark(tmp_path):
    mocap = {
        "class_path": "pipeline.mocap.Mocap",
        "init_args": {"root": str(tmp_path)},
    }
    assert benchmark._page_folder(mocap, tmp_path / "runs") == Path("docs")
    assert benchmark._page_folder(SYNTHETIC, tmp_path / "runs") == tmp_path / "runs" / "results"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_row_is_trained_measured_and_written_within_its_budget(tmp_path):
    people = {"train": 4, "val": 1, "test": 1, "seconds": 3.0}
    benchmark.results(
        {**SYNTHETIC, "init_args": people},
        seconds=6.0,
        rows=["martinez-exact"],
        runs=str(tmp_path / "runs"),
        docs=str(tmp_path / "docs"),
    )
    line = next(
        line
        for line in (tmp_path / "docs" / "results.md").read_text().splitlines()
        if line.startswith("| Martinez |") and "not yet" not in line
    )
    spent = float(line.split("|")[4])
    assert 2.0 < spent < 12.0
    assert Plan(
        **json.loads(next((tmp_path / "runs/results").glob("mart*.json")).read_text())["plan"]
    )
