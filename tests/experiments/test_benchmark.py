import dataclasses
import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import yaml

from pipeline import lift
from pipeline.cli.configs import find_config
from pipeline.cli.stages import load_stage
from pipeline.errors import UsageError
from pipeline.experiments import benchmark
from pipeline.experiments.benchmark import Benchmark, StepError, Training, list_trainings
from pipeline.experiments.benchmark_errors import (
    RowErrors,
    average_errors,
    read_errors,
    write_errors,
)
from pipeline.experiments.benchmark_findings import write_findings
from pipeline.experiments.benchmark_page import CHAIN_FILE, MARK, _chain_section, seeds_table
from pipeline.experiments.benchmark_rows import MASKS, ROWS, SMOOTH
from pipeline.experiments.budget import Plan, cpu_seconds_used, plan_steps, read_calibration
from pipeline.experiments.robustness import Point
from pipeline.lift import LiftModule
from pipeline.training.checkpoints import load_module
from pipeline.training.run_folder import newest_finished_run, write_state

SYNTHETIC = {
    "class_path": "pipeline.mocap.Synthetic",
    "init_args": {"train": 1, "val": 1, "test": 1, "seconds": 1.0, "actions": ["walk", "wave"]},
}


def named(name):
    return next(row for row in ROWS if row.name == name)


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
        others = [1, 2, 2, 2, 2] if detections == "noisy" else []
        assert [row.share + bool(row.pretraining) for row in rows] == [1, 1, 1, 2, 2, *others]
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_has_the_size_of_its_config_and_evaluates_frames_of_its_lifter(row):
    given = yaml.safe_load(find_config(row.config).read_text())["model"]["net"]
    stride = 1
    while "net" in given["init_args"]:
        stride *= given["init_args"].get("stride", 1)
        given = given["init_args"]["net"]  # the lifter inside the others
    lifter = getattr(lift, given["class_path"].rpartition(".")[2])(**given["init_args"])
    arguments = given["init_args"]
    frames = "frames" if stride == 1 else f"groups of {stride} frames"
    for unit, key in ((frames, "frames"), ("channels", "dim"), ("channels", "width")):
        if key in arguments:
            assert f"{arguments[key]} {unit}" in row.size
    assert row.frames == ("subset" if lifter.output == "centre" else "all")
    LiftModule(lifter, frames=row.frames)


RUNS = {
    run.config: run for row in ROWS for run in (row.lifting_run(), row.pretraining_run()) if run
}


@pytest.mark.parametrize("run", RUNS.values(), ids=lambda run: run.config)
def test_every_training_hides_the_same_share_of_joints_and_frames(run):
    parameters = inspect.signature(load_stage(run.stage).data_class).parameters
    given = yaml.safe_load(find_config(run.config).read_text())["data"]
    assert {name: given.get(name, parameters[name].default) for name in MASKS} == MASKS
    assert not any("mask" in argument for argument in run.arguments)


def test_smoothing_does_not_choose_the_weights_of_a_row():
    assert all("--model.smooth=0.0" in row.lifting_run().arguments for row in ROWS)
    assert set(SMOOTH) == {row.detections for row in ROWS}


def test_rows_whose_differences_are_discussed_are_trained_with_every_seed():
    pair = [named("mixste-pretrained-noisy"), named("videopose3d-noisy"), named("mixste-noisy")]
    trainings = list_trainings(pair, 3)
    names = [training.run.name for training in trainings]
    assert names[:4] == ["pretraining", *(row.name for row in pair)]
    assert names[4:7] == [
        *("pretraining-seed1", "mixste-pretrained-noisy-seed1", "mixste-noisy-seed1"),
    ]
    assert len(names) == 4 + 2 * 3
    assert trainings[5].needs() == trainings[4].run
    assert "--seed_everything=1" in trainings[5].run.arguments
    assert not any("seed" in word for word in trainings[1].run.arguments)


def test_rows_share_their_pretraining():
    runs = [training.run for training in list_trainings(ROWS, 1)]
    assert len(runs) == len(set(runs)) == len(ROWS) + 1
    assert runs[0].stage == "pretrain"


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0.0}, {"seeds": 0}, {"workers": 0}], ids=lambda wrong: next(iter(wrong))
)
def test_a_number_below_one_raises_an_error(wrong, tmp_path):
    with pytest.raises(UsageError, match=f"--{next(iter(wrong))} 0: give"):
        benchmark.results(SYNTHETIC, runs=str(tmp_path), docs=str(tmp_path), **wrong)


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


def test_the_name_of_a_run_depends_on_everything_that_decides_its_result(tmp_path):
    text = find_config("lift/martinez_mocap").read_text()
    bench = Benchmark(SYNTHETIC, 7.0, tmp_path, tmp_path)
    run = dataclasses.replace(ROWS[1].lifting_run(), config=str(tmp_path / "other.yaml"))

    def name(change=("", ""), **changes):
        (tmp_path / "other.yaml").write_text(text.replace(*change))
        return bench.run_name(dataclasses.replace(run, **changes))

    assert name() == name(("max_epochs: 40", "max_epochs: 3")) == name(("#", "# not"))
    others = [name(("1024", "512")), name(("joint_mask: 0.05", "joint_mask: 0.03"))]
    others += [name(share=2.0), name(arguments=("--model.smooth=3.0",))]
    others += [name(pretraining="pretrain/mixste_mocap"), name(pretraining="pretrain/mixste_small")]
    assert len({name(), *others}) == 7


def errors_of(row, error, *, still=6.5):
    """Errors of a row that smoothing lowers by 1 mm, and that grow with the corruption.

    Blending lowers those of MixSTE by 1.5 mm; the others do not blend.
    """

    def numbers(error, motion):
        found = {f"test/{key}_mm": error for key in ("mpjpe", "p_mpjpe", "n_mpjpe")}
        found |= {"test/mpjve_mm": motion, "test/acceleration_mm": 2 * motion}
        found |= {"test/mpjpe_seen_mm": error - 1, "test/mpjpe_unseen_mm": error + 2}
        found |= {f"test/mean_pose_{key}_mm": 200.5 for key in ("mpjpe", "p_mpjpe")}
        return found | {"test/mean_pose_mpjve_mm": still}

    smooth = SMOOTH[row.detections]
    points = [
        Point(corruption, level, deviation, error - bool(deviation) + 10 * level, 5.0)
        for deviation in (0.0, smooth)
        for corruption in ("joints hidden", "frames dropped")
        for level in (0.0, 0.2, 0.4, 0.6)
    ]
    best, smoothed, last = numbers(error, 12.5), numbers(error - 1, 4.5), numbers(error + 3, 12.75)
    blended = numbers(error - 1.5, 4.0) if row.name.startswith("mixste") else {}
    return RowErrors(27, smooth, best, smoothed, blended, points, last)


def settings_of(config):
    """Settings of a run in its run.json, as the command line completes its config."""
    settings = yaml.safe_load(find_config(config).read_text())
    settings["data"] = {"joint_mask": 0.0, "frame_mask": 0.0, **settings["data"]}
    return settings


def finished(bench, run, errors=None):
    """Make the run folder of a finished run, and of a row with its errors."""
    folder = bench.runs / run.stage / bench.run_name(run)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.ckpt").touch()
    state = {"state": "finished", "numbers": {}, "checkpoint": "checkpoints/best.ckpt"}
    write_state(folder, {**state, "settings": settings_of(run.config)})
    lines = ["step,name,value", "9,train/cpu_s,5.0", "9,val/mpjpe_mm,80.0", "19,train/cpu_s,10.0"]
    (folder / "metrics.csv").write_text("\n".join([*lines, "19,val/mpjpe_mm,60.0", ""]))
    if errors:
        write_errors(folder, errors)
    return folder


def finished_row(bench, row, error):
    return finished(bench, row.lifting_run(), errors_of(row, error))


def cells_of(text, *beginning):
    """Cells of the only line of a table that begins with these cells."""
    (line,) = (
        line for line in text.splitlines() if line.startswith(f"| {' | '.join(beginning)} |")
    )
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def page(tmp_path):
    """The page of five finished rows and a pretraining."""
    bench = Benchmark(SYNTHETIC, 30.0, tmp_path / "runs", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    path = tmp_path / "docs" / "results.md"
    path.write_text(f"old numbers\n{MARK}\n## What was tried\n\nThis and that.\n")
    for row, error in zip(ROWS[2:5], (50.0, 48.0, 51.5), strict=True):
        finished_row(bench, row, error)
    finished(bench, ROWS[3].pretraining_run())
    finished_row(bench, ROWS[0], 44.25)
    finished_row(bench, next(row for row in ROWS if row.frames == "subset"), 52.5)
    bench.write_page()
    return path


def test_the_page_has_a_line_per_output_of_a_row_and_keeps_its_last_part(page):
    text = page.read_text()
    assert "old numbers" not in text
    assert text.endswith(f"{MARK}\n## What was tried\n\nThis and that.\n")
    size = "27 frames, 512 channels"
    noisy = text.split("## Exact 2D")[0]
    line = cells_of(noisy, "VideoPose3D", size)
    numbers = ["44.2", "44.2", "44.2", "12.50", "25.00", "43.2 / 46.2"]
    assert line == ["VideoPose3D", size, "30", "10", "plain", "27", *numbers]
    smoothed = noisy.split(" | ".join(line))[1].splitlines()[1]
    numbers = ["43.2", "43.2", "43.2", "4.50", "9.00", "42.2 / 45.2"]
    cells = ["VideoPose3D", "", "", "", "smoothed", "27 ± 9", *numbers]
    assert [cell.strip() for cell in smoothed.strip("|").split("|")] == cells
    blended = [line for line in noisy.splitlines() if "| blended | 41 | " in line]
    assert [line.split("|")[1].strip() for line in blended] == [row.title for row in ROWS[2:5]]
    assert [line.split("|")[7].strip() for line in blended] == ["48.5", "46.5", "50.0"]
    budget = cells_of(
        noisy, "MixSTE pretrained", "13 groups of 5 frames, 64 channels, 4 pairs of blocks"
    )
    assert budget[2:4] == ["30 + 30", "10 + pretraining"]
    pose = cells_of(text, "mean training pose")
    assert pose[4:10] == ["all", "0", "200.5", "200.5", "-", "6.50"]
    assert text.count("not yet") == len(ROWS) - 5
    assert "whole chain" not in text
    assert "have 30 each" in text
    assert "have 60 and" in text
    for image in ("results_learning.png", "results_robustness.png"):
        assert (page.parent / image).stat().st_size > 1000


def test_every_table_of_the_page_has_as_many_cells_in_each_line(page):
    for table in re.findall(r"(?:^\|.*\n)+", page.read_text(), re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_errors_on_corrupted_2d_are_compared_with_those_on_the_same_videos(page):
    text = page.read_text().split("### Corrupted noisy 2D")[1].split("## ")[0]
    joints, frames = ["46.2", "48.2", "50.2"], ["46.2", "48.2", "50.2"]
    assert cells_of(text, "VideoPose3D", "plain")[2:] == ["44.2", *joints, *frames, "-"]
    assert cells_of(text, "VideoPose3D", "smoothed")[2] == "43.2"


def test_the_page_has_the_settings_that_each_run_was_trained_with(page):
    text = page.read_text()
    row = cells_of(text, "VideoPose3D, noisy")
    assert row[1:] == ["5 %", "0 %", "yes", "MPJPELoss", "AdamW 0.001", "256", "3"]
    pretraining = cells_of(text, "pretraining of MixSTE")
    assert pretraining[1:5] == ["5 %", "0 %", "yes", "PretrainLoss (velocity 2)"]
    assert pretraining[5] == cells_of(text, "MixSTE from scratch, noisy")[5] == "Muon 0.004"
    assert "5 % of the joints and 0 % of the whole frames" in text


def test_the_chain_has_a_line_without_and_a_line_with_smoothing_per_2d_input(tmp_path):
    keys = ("mpjpe", "p_mpjpe", "mpjve", "acceleration")
    numbers = [
        {f"test/{key}_mm": start + n for n, key in enumerate(keys)} for start in (50.5, 40.5)
    ]
    file = tmp_path / CHAIN_FILE
    file.write_text(json.dumps({"digest": "6d5e", "numbers": {"detected": numbers}}))
    (section,) = _chain_section(file)
    assert cells_of(section, "detected", "plain")[2:] == ["50.5", "51.5", "52.5", "53.5"]
    assert cells_of(section, "detected", "smoothed")[2:] == ["40.5", "41.5", "42.5", "43.5"]


def test_errors_of_several_seeds_are_averaged_and_listed():
    row = named("mixste-noisy")
    seeds = [errors_of(row, error) for error in (40.5, 42.5, 44.0)]
    mean = average_errors(seeds)
    assert mean.plain["test/mpjpe_mm"] == pytest.approx(127 / 3)
    assert mean.smoothed["test/mpjpe_mm"] == pytest.approx(124 / 3)
    assert mean.blended["test/mpjpe_mm"] == pytest.approx(122.5 / 3)
    assert average_errors([errors_of(named("martinez-noisy"), 60.0)]).blended == {}
    assert mean.points == seeds[0].points
    (table,) = seeds_table({row: seeds})
    cells = cells_of(table, "MixSTE from scratch", "noisy")
    assert cells[2:4] == ["40.5, 42.5, 44.0", "43.5, 45.5, 47.0"]
    assert cells[4:] == ["12.50, 12.50, 12.50", "12.75, 12.75, 12.75"]


def test_seeds_count_up_to_the_first_that_is_not_finished(tmp_path):
    bench = Benchmark(SYNTHETIC, 30.0, tmp_path / "runs", tmp_path / "docs")
    row = named("mixste-noisy")
    folders = [finished(bench, row.lifting_run(seed), errors_of(row, 40.0)) for seed in (0, 1, 3)]
    assert bench.finished_seeds(row) == {0: folders[0], 1: folders[1]}


class _Process:
    """A process that ends when somebody waits for it, with the exit code of its name."""

    started: ClassVar[list[str]] = []
    codes: ClassVar[dict[str, int]] = {}

    def __init__(self, target, args):
        self.bench, self.training, _ = args
        self.name, self.sentinel, self.exitcode = self.training.run.name, self, None

    def start(self):
        self.started.append(self.name)

    def end(self):
        self.exitcode = self.codes.get(self.name, 0)
        if not self.exitcode:
            row = self.training.row
            errors = None if self.training.pretraining else errors_of(row, 40.0)
            finished(self.bench, self.training.run, errors)

    def terminate(self):
        self.started.append(f"stop {self.name}")

    def join(self):
        pass


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.setattr(benchmark, "get_context", lambda _: SimpleNamespace(Process=_Process))
    monkeypatch.setattr(benchmark, "wait", lambda sentinels: sentinels[0].end())
    monkeypatch.setattr(_Process, "started", [])
    monkeypatch.setattr(_Process, "codes", {})
    return _Process


def test_a_row_waits_for_its_pretraining_and_others_do_not(tmp_path, processes):
    bench = Benchmark(SYNTHETIC, 30.0, tmp_path / "runs", tmp_path / "docs")
    rows = [named("mixste-pretrained-noisy"), named("martinez-noisy")]
    bench.train_all(list_trainings(rows, 1), workers=2)
    assert processes.started == ["pretraining", "martinez-noisy", "mixste-pretrained-noisy"]
    assert (tmp_path / "docs" / "results.md").is_file()
    bench.train_all(list_trainings(rows, 1), workers=2)
    assert len(processes.started) == 3  # all are finished


def test_a_row_that_fails_stops_the_others(tmp_path, processes):
    bench = Benchmark(SYNTHETIC, 30.0, tmp_path / "runs", tmp_path / "docs")
    processes.codes["videopose3d-noisy"] = 4
    rows = [named("videopose3d-noisy"), named("martinez-noisy")]
    with pytest.raises(StepError) as failure:
        bench.train_all(list_trainings(rows, 1), workers=2)
    assert failure.value.exit_code == 4
    assert processes.started[-1] == "stop martinez-noisy"


def test_findings_follow_the_numbers():
    pretrained, scratch = named("mixste-pretrained-noisy"), named("mixste-total-noisy")

    def findings(first, second, still=6.5):
        errors = {
            pretrained: errors_of(pretrained, first, still=still),
            scratch: errors_of(scratch, second, still=still),
        }
        return write_findings(errors)[0]

    better, worse, equal = findings(47.0, 50.5), findings(50.5, 47.0), findings(47.0, 48.5)
    assert cells_of(better, "noisy", "plain", "test split")[3:] == ["47.0", "50.5", "3.5 lower"]
    assert cells_of(better, "noisy", "blended", "test split")[3:] == ["45.5", "49.0", "3.5 lower"]
    assert cells_of(worse, "noisy", "plain", "60 % of frames dropped")[3:] == [
        *("56.5", "53.0"),
        "3.5 higher",
    ]
    assert cells_of(equal, "noisy", "smoothed", "60 % of joints hidden")[5] == "equal"
    best = [cells_of(text, "noisy", "2", "plain")[3:] for text in (better, worse, equal)]
    assert best == [
        ["MixSTE pretrained (47.0)", "-"],
        ["MixSTE from scratch (47.0)", "-"],
        ["MixSTE pretrained (47.0)", "MixSTE from scratch (48.5)"],
    ]
    assert "smoothing changes MPJPE by -1.0 mm and MPJVE by -8.00 mm per frame" in better
    assert "blending windows changes MPJPE by -1.5 mm and MPJVE by -8.50 mm per frame" in better
    assert "(6.50): MixSTE pretrained, MixSTE from scratch x 2." in better
    assert "Rows on noisy 2D, smoothed, with" in better
    assert "(20.00): none." in findings(47.0, 50.5, still=20.0)


def test_goals_are_reached_or_not_by_each_output():
    row = named("mixste-noisy")
    goals = [write_findings({row: errors_of(row, error)})[0] for error in (45.5, 44.0)]
    title = "best row of one budget, noisy 2D, MPJPE"
    assert cells_of(goals[0], title)[1:] == ["45", "no: 45.5", "yes: 44.5", "yes: 44.0"]
    assert cells_of(goals[1], title)[1:] == ["45", "yes: 44.0", "yes: 43.0", "yes: 42.5"]
    assert "exact" not in goals[0]
    assert cells_of(goals[1], "MixSTE from scratch, noisy 2D, MPJVE")[1:] == [
        *("5", "no: 12.5", "yes: 4.5"),
        "yes: 4.0",
    ]


def test_without_a_finished_row_nothing_is_found():
    assert write_findings({}) == []


def test_errors_are_read_as_written_unless_the_smoothing_is_another(tmp_path):
    errors = errors_of(ROWS[0], 44.25)
    assert read_errors(tmp_path, 3.0) is None
    write_errors(tmp_path, errors)
    assert read_errors(tmp_path, 3.0) == errors
    assert read_errors(tmp_path, 2.0) is None


def test_other_data_or_another_budget_give_other_runs(tmp_path):
    run = ROWS[0].lifting_run()
    names = {
        Benchmark(source, seconds, tmp_path, tmp_path).run_name(run)
        for source in (SYNTHETIC, {**SYNTHETIC, "init_args": {"seed": 1}})
        for seconds in (30.0, 60.0)
    }
    assert len(names) == 4


def test_a_finished_row_is_not_trained_again(tmp_path):
    bench = Benchmark(SYNTHETIC, 30.0, tmp_path / "runs", tmp_path / "docs")
    folder = finished_row(bench, ROWS[0], 44.25)
    before = sorted(folder.iterdir())
    bench.train(Training(ROWS[0]))
    bench.train_all([Training(ROWS[0])], workers=1)
    assert sorted(folder.iterdir()) == before


def test_a_calibration_is_not_a_finished_run(tmp_path):
    bench = Benchmark(SYNTHETIC, 30.0, tmp_path / "runs", tmp_path / "docs")
    row = next(row for row in ROWS if row.config == "lift/mixste_mocap")
    small = ["frames=3", "dim=8", "depth=1", "heads=2"]
    small = [f"--model.net.init_args.net.init_args.net.init_args.{argument}" for argument in small]
    run = row.lifting_run()
    planned = bench._plan(run, [*run.arguments, *small])
    assert planned.batches > 0
    assert newest_finished_run(bench.runs, "lift", lambda settings: True) is None


@pytest.mark.slow
def test_a_lifter_of_centre_frames_is_measured_on_all_frames_without_and_with_smoothing(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HEATLIFT_RUN", "")
    bench = Benchmark(SYNTHETIC, 30.0, tmp_path / "runs", tmp_path / "docs")
    row = next(row for row in ROWS if row.frames == "subset")
    run = row.lifting_run()
    small = ["frames=3", "dim=8", "depth=1", "heads=2"]
    small = [f"--model.net.init_args.net.init_args.{argument}" for argument in small]
    bench._run(run, Plan(1, 2, 1), bench.runs, [*run.arguments, *small])
    bench.train(Training(row))
    errors = read_errors(bench.finished(run), SMOOTH["noisy"])
    assert errors.frames == 3
    assert len(errors.points) == 30
    assert errors.smoothed["test/mpjve_mm"] < errors.plain["test/mpjve_mm"]
    assert {"test/acceleration_mm", "test/mean_pose_acceleration_mm"} <= set(errors.plain)
    still = [numbers["test/mean_pose_mpjpe_mm"] for numbers in (errors.plain, errors.smoothed)]
    assert still[0] == still[1]
    module = load_module(bench._checkpoint(bench.finished(run)), (LiftModule,))
    assert (module.frames, module.smooth) == ("subset", 0.0)
    assert errors.plain["test/subset_mpjpe_mm"] != errors.plain["test/mpjpe_mm"]


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
        workers=1,
        runs=str(tmp_path / "runs"),
        docs=str(tmp_path / "docs"),
    )
    line = next(
        line
        for line in (tmp_path / "docs" / "results.md").read_text().splitlines()
        if line.startswith("| Martinez | 1024") and "not yet" not in line
    )
    spent = float(line.split("|")[4])
    assert 2.0 < spent < 12.0
    assert Plan(
        **json.loads(next((tmp_path / "runs/results").glob("mart*.json")).read_text())["plan"]
    )
