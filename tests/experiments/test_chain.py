"""Commands of several stages: everything that can be known is checked before the first step."""

from __future__ import annotations

import json

import pytest
import yaml
from runs import TINY

from pipeline.__main__ import main

pytestmark = pytest.mark.filterwarnings("default")  # `cli.launch` sets the filters

DATA = """
data:
  source:
    class_path: pipeline.mocap.Synthetic
    init_args: {train: 2, val: 1, test: 1, actions: [walk], seconds: 1.0, images: 64}
"""
FILES = {
    "people.yaml": DATA,
    "net.yaml": "model: {net: {class_path: pipeline.lift.Martinez, init_args: {width: 8}}}",
    "odd.yaml": "model: {net: {class_path: pipeline.lift.Martini}}",
    "heatmap.yaml": TINY["heatmap"],
}
TRAINED = ("--pretrained", "none")
EXACT = (*TRAINED, "--detections", "exact")
CHAIN = ("chain", "--lifter", "net.yaml", "--data", "people.yaml", "--detector", "heatmap.yaml")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with configs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB", "off")
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


WRONG = {
    "no pretraining": ((), 2, "no finished pretrain run of this network"),
    "no config": (("--lifter", "lift/none", *TRAINED), 2, "lift/none: no such config"),
    "a wrong network": (("--lifter", "odd.yaml", *TRAINED), 2, "Martini"),
    "a wrong key": (("--also=--data.batch_sise 3", *TRAINED), 2, "did you mean data.batch_size?"),
    "a wrong number": (("--also=--data.batch_size 0", *TRAINED), 2, "batch_size is 0"),
    "a wrong checkpoint": (("--pretrained", "gone.ckpt"), 4, "gone.ckpt"),
    "a wrong device": (("--also=--trainer.accelerator tpus", *TRAINED), 2, "tpus"),
    "a wrong folder": (("--data", "data/human36m", "--root", "x", *EXACT), 4, "x: no such folder"),
    "a wrong detector": (("--detections", "gone.ckpt", *TRAINED), 4, "gone.ckpt"),
    "wrong detections": (("--detections", "exat", *TRAINED), 4, "exat: no such file or folder"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_with_a_lifter_is_found_before_its_2d_stage_is_trained(kind, folder, capsys):
    arguments, code, message = WRONG[kind]
    assert main([*CHAIN, *arguments]) == code
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert message in line
    assert not (folder / "runs").exists()


def test_the_plan_has_all_stages_their_inputs_and_their_folders(folder, capsys):
    assert main([*CHAIN, *TRAINED, "--name", "mine", "--plan", "true"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [line[:12] for line in lines if line[:1] in "12"] == ["1. heatmap: ", "2. lift: tra"]
    assert "into   runs/heatmap/heatmap-people; 2 epochs" in lines
    assert "from   weights fresh, 2D of this 2D stage" in lines
    assert any(line.startswith("into   runs/lift/mine; ") for line in lines)
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_a_chain_trains_the_2d_stage_once_and_lifts_its_detections(folder, capsys):
    also = "--also=--trainer.max_steps 2 --trainer.max_epochs 1"
    assert main([*CHAIN, *TRAINED, also]) == 0, capsys.readouterr().err
    (state,) = [json.loads(path.read_text()) for path in folder.glob("runs/lift/*/run.json")]
    assert state["state"] == "finished"
    assert len(state["settings"]["data"]["detections"]) == 64  # digest of the weights
    assert main([*CHAIN, *TRAINED, also, "--name", "again"]) == 0
    assert "1. lift" in capsys.readouterr().out
    assert len(list(folder.glob("runs/heatmap/*"))) == 1


def test_a_sweep_whose_last_point_is_wrong_trains_none(folder, capsys):
    sweep = {
        "command": ["pipeline", "lift", "fit", "-c", "net.yaml", "-c", "people.yaml", "${args}"],
        "method": "grid",
        "metric": {"name": "val/mpjpe_mm"},
        "parameters": {"data.batch_size": {"values": [4, 0]}},
    }
    (folder / "sizes.yaml").write_text(yaml.safe_dump(sweep))
    assert main(["sweep", "sizes.yaml"]) == 2
    assert "batch_size is 0" in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_results_check_the_detector_before_the_rows(folder, capsys):
    assert main(["results", "-c", "people.yaml", "--detector", "gone.ckpt"]) == 4
    assert "gone.ckpt" in capsys.readouterr().err
    assert not (folder / "runs").exists()
