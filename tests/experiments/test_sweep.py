from __future__ import annotations

import csv
import json
import shlex

import pytest
from filelock import FileLock

from pipeline.__main__ import main
from pipeline.cli.configs import shipped_configs
from pipeline.errors import UsageError
from pipeline.experiments.sweep import (
    PointError,
    _table_rows,
    read_sweep,
    shorten_value,
    sweep,
)
from pipeline.training.run_changes import describe_mixture
from pipeline.training.run_folder import UNFINISHED, write_state

POINTS = {
    "paper000_branches": 4,
    "paper001_masks": 12,
    "paper001_pretraining": 2,
    "paper002_blocks": 9,
    "paper003_attention": 8,
    "paper003_detectors": 4,
    "paper003_dropout": 4,
    "paper003_frames": 10,
    "paper003_groups": 2,
    "paper003_modules": 4,
    "paper003_positions": 6,
    "paper004_data": 6,
    "paper004_depth": 4,
    "paper004_size": 4,
}
"""Sweep -> how many runs it is."""

TINY = """
model:
  net: {class_path: pipeline.lift.MixSTE, init_args: {frames: 3, dim: 8, depth: 1, heads: 2}}
data:
  source:
    class_path: pipeline.mocap.Synthetic
    init_args: {train: 1, val: 1, test: 1, actions: [walk], seconds: 0.3}
trainer: {max_epochs: 1, log_every_n_steps: 1}
"""
SWEEP = """
program: pipeline
command: ["${env}", "${interpreter}", -m, pipeline, pretrain, fit, -c, TINY, "${args}"]
method: grid
metric: {name: val/mpjpe_mm, goal: minimize}
parameters:
  model.net.init_args.dim: {values: [8, 16]}
  data.batch_size: {value: 4}
"""


def shipped(name):
    return read_sweep(shipped_configs() / "sweeps" / f"{name}.yaml")


def written(folder, text):
    (folder / "tiny.yaml").write_text(TINY)
    path = folder / "sizes.yaml"
    path.write_text(text.replace("TINY", str(folder / "tiny.yaml")))
    return path


def test_no_sweep_is_forgotten():
    assert {path.stem for path in (shipped_configs() / "sweeps").glob("*.yaml")} == set(POINTS)


@pytest.mark.parametrize("name", POINTS)
def test_every_point_of_a_sweep_is_another_run(name):
    found = shipped(name)
    points = found.points()
    assert len(points) == POINTS[name]
    assert len({found.name(point, found.run_arguments(point)) for point in points}) == len(points)
    assert found.metric.startswith("val/")


@pytest.mark.slow
@pytest.mark.parametrize("name", POINTS)
def test_every_point_is_a_command_line(name, capsys):
    found = shipped(name)
    for point in found.points():
        arguments = found.run_arguments(point)
        arguments = [a for a in arguments if a != "--model.pretrained=newest"]
        assert main([found.stage, *arguments, "--print_config"]) == 0, capsys.readouterr().err


def test_the_last_parameter_changes_fastest_and_fixed_ones_stay(tmp_path):
    text = SWEEP.replace("data.batch_size: {value: 4}", "data.flip: {values: [true, false]}")
    found = read_sweep(written(tmp_path, text))
    options = [found.run_arguments(point)[-2:] for point in found.points()]
    assert options == [
        [f"--model.net.init_args.dim={dim}", f"--data.flip={flip}"]
        for dim in (8, 16)
        for flip in ("true", "false")
    ]


def test_two_points_are_trained_once_and_come_out_as_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB", "off")
    path, runs = written(tmp_path, SWEEP), tmp_path / "runs"
    sweep(str(path), ALSO, str(runs))
    rows = list(csv.reader((runs / "sweeps" / "sizes.csv").read_text().splitlines()))
    assert rows[0] == ["dim", "val/mpjpe_mm", "test/mpjpe_mm", "minutes", "run"]
    assert [row[0] for row in rows[1:]] == ["8", "16"]
    state = json.loads((runs / "pretrain" / rows[2][-1] / "run.json").read_text())
    assert state["settings"]["model"]["net"]["init_args"]["dim"] == 16
    assert float(rows[2][2]) == pytest.approx(state["numbers"]["test/mpjpe_mm"], rel=1e-3)
    assert "2 of 2" in capsys.readouterr().out
    sweep(str(path), ALSO, str(runs))
    again = capsys.readouterr().out
    assert "of 2" not in again
    assert rows[2][-1] in again
    assert len(list((runs / "pretrain").iterdir())) == 2


def test_options_of_the_data_reach_the_runs_of_a_sweep(tmp_path, monkeypatch):
    path, runs = written(tmp_path, SWEEP.replace("[8, 16]", "[8]")), tmp_path / "runs"
    monkeypatch.setenv("WANDB", "off")
    also = f"{ALSO} --data.source.init_args.seconds 0.4"
    assert main(["sweep", str(path), "--also", also, "--runs", str(runs)]) == 0
    (state,) = [json.loads(path.read_text()) for path in runs.glob("pretrain/*/run.json")]
    assert state["settings"]["data"]["source"]["init_args"]["seconds"] == 0.4


def test_only_the_split_of_a_metric_is_replaced_for_the_test(tmp_path):
    found = read_sweep(written(tmp_path, SWEEP.replace("val/mpjpe_mm", "train/interval/x")))
    header = _table_rows(found, [])[0]
    assert header[-4:-2] == ["train/interval/x", "train/interval/x"]


def begun(runs, name, **changes):
    """The folder of a run that is there already."""
    folder = runs / "pretrain" / name
    folder.mkdir(parents=True)
    write_state(folder, {"state": UNFINISHED, "settings": {}, "digest": "other", **changes})
    return folder


def one_point(folder):
    """A sweep of one point, and the name of that point."""
    found = read_sweep(path := written(folder, SWEEP.replace("[8, 16]", "[8]")))
    (point,) = found.points()
    return path, found.name(point, found.run_arguments(point, shlex.split(ALSO)))


ALSO = "--trainer.num_sanity_val_steps=0 --wandb=off"


def test_a_point_that_another_process_trains_is_left_to_it(tmp_path, capsys):
    path, name = one_point(tmp_path)
    folder = begun(tmp_path / "runs", name)
    lock = FileLock(folder / ".lock", is_singleton=False)
    with lock, pytest.raises(PointError, match="1 point\\(s\\) without a result") as error:
        sweep(str(path), ALSO, str(tmp_path / "runs"))
    assert error.value.exit_code == 5
    assert f"{folder}: another process trains this point; it is skipped" in capsys.readouterr().out
    assert [other.name for other in folder.parent.iterdir()] == [name]


def test_the_row_of_a_point_is_that_of_the_run_that_trained_it(tmp_path, capsys, monkeypatch):
    path, name = one_point(tmp_path)
    folder = begun(tmp_path / "runs", name)
    (folder / "metrics.csv").write_text("step,name,value\n0,train/loss,1.0\n")
    for _ in range(2):
        sweep(str(path), ALSO, str(tmp_path / "runs"))
    text = (tmp_path / "runs" / "sweeps" / "sizes.csv").read_text()
    assert f",{name}-2\n" in text
    assert "-," not in text
    assert len(list((tmp_path / "runs" / "pretrain").iterdir())) == 2


def test_compared_runs_of_other_data_or_code_are_named(tmp_path):
    def state(order, data, code):
        return {"order": order, "settings": {"inputs": {"a.npz": data}}, "code": {"b.py": code}}

    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    same = {one: state(1, "x", "y"), two: state(2, "x", "y")}
    assert describe_mixture(same) == []
    assert describe_mixture({}) == describe_mixture({one: {}, two: state(1, "x", "y")}) == []
    data, code = describe_mixture({**same, three: state(3, "z", "z")})
    assert f"2 of 3 runs had other data than {three} (the first is {one}: a.npz); remove" in data
    assert f"2 of 3 runs had other code than {three} (the first is {one}: b.py); remove" in code


@pytest.mark.parametrize("given", ["--config=CONFIG", "-c=CONFIG", "-cCONFIG"])
def test_an_edited_config_is_noticed_however_it_was_given(given, tmp_path):
    text = SWEEP.replace("-c, TINY", f'"{given}"').replace("CONFIG", "TINY")
    found = read_sweep(written(tmp_path, text))
    point = found.points()[0]
    before = found.name(point, found.run_arguments(point))
    (tmp_path / "tiny.yaml").write_text(TINY + "# another\n")
    assert found.name(point, found.run_arguments(point)) != before


def test_a_changed_config_makes_other_runs(tmp_path):
    found = read_sweep(written(tmp_path, SWEEP))
    point = found.points()[0]
    before = found.name(point, found.run_arguments(point))
    assert before.startswith("sizes-dim-8-")
    (tmp_path / "tiny.yaml").write_text(TINY + "# another\n")
    assert found.name(point, found.run_arguments(point)) != before
    assert found.name(point, found.run_arguments(point, ["--save_every=3"])) != before


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("method: grid", "method: bayes", "only `grid`"),
        ("metric: {name: val/mpjpe_mm, goal: minimize}", "", "has no metric"),
        ("pipeline, pretrain", "pipeline, lift2", "lift2 is no stage"),
        ('"${args}"', "", "must list `pipeline`"),
        ("command: [", "command: 3 #[", "must list `pipeline`"),
        ("{name: val/mpjpe_mm, goal: minimize}", "val/mpjpe_mm", "metric has no `name`"),
        ("{values: [8, 16]}", "{values: 8}", "values of parameter .*dim are 8; give a list"),
        ("{values: [8, 16]}", "{values: []}", "give a list"),
        ("{value: 4}", "{min: 1, max: 4}", "neither `value` nor `values`"),
        ("method: grid", "method: grid\nmethod: grid", "duplicate key method"),
    ],
)
def test_a_file_that_is_not_a_sweep_is_an_error(tmp_path, before, after, message):
    with pytest.raises(UsageError, match=message):
        read_sweep(written(tmp_path, SWEEP.replace(before, after, 1)))


def test_parameters_without_values_are_an_error(tmp_path):
    text = SWEEP.partition("parameters:")[0] + "parameters: 3"
    with pytest.raises(UsageError, match="parameters are 3; give options with their values"):
        read_sweep(written(tmp_path, text))


def test_classes_are_short_in_tables():
    net = '{"class_path": "pipeline.lift.CombinedDeepLearner", "init_args": {"branches": "gated"}}'
    assert shorten_value(net) == "CombinedDeepLearner branches=gated"
    assert shorten_value("null") == "null"
    assert shorten_value([256, 256]) == "[256, 256]"
