"""The whole pipeline at a tiny size through the real command line: transfers and output files."""

from __future__ import annotations

import json
import os
import re

import pytest
from runs import USER_CODE

from pipeline.__main__ import main
from pipeline.dashboard.catalog import METRICS, PANELS
from pipeline.heatmap import HeatmapModule
from pipeline.training.metrics_rows import read_metrics

PEOPLE = """
    class_path: pipeline.mocap.Synthetic
    init_args: {train: 2, val: 1, test: 1, actions: [walk, wave], seconds: 0.8, images: 60}
"""
HEATMAP = f"""
model:
  net:
    class_path: pipeline.heatmap.HRNet
    init_args: {{width: 8, stem: 8, planes: 8, blocks: 1, modules: [1, 1, 1]}}
data:
  source: {PEOPLE}
  input_size: [64, 64]
  batch_size: 20
trainer: {{max_epochs: 2, log_every_n_steps: 1}}
"""
MOTION = f"""
model:
  net: {{class_path: pipeline.lift.MixSTE, init_args: {{frames: 9, dim: 16, depth: 1, heads: 2}}}}
data:
  source: {PEOPLE}
trainer: {{max_epochs: 2, log_every_n_steps: 1}}
"""


class Chain:
    """Runs stages in one folder and counts the calls of the detector.

    Args:
        folder: Folder of configs, cache and runs.
        patch: MonkeyPatch, undone after the last test.
    """

    def __init__(self, folder, patch):
        self.folder, self.calls = folder, 0
        self.runs = folder / "runs"
        patch.chdir(folder)
        patch.setenv("HEATLIFT_CACHE", str(folder / "cache"))
        patch.setenv("WANDB", "off")
        patch.setenv("HEATLIFT_RUN", "")
        plain = HeatmapModule.detect

        def counted(module, images):
            self.calls += 1
            return plain(module, images)

        patch.setattr(HeatmapModule, "detect", counted)
        for name, text in (("heatmap", HEATMAP), ("motion", MOTION)):
            (folder / f"{name}.yaml").write_text(text)

    def fit(self, stage, config, *arguments):
        """Run a stage; returns the number of calls of the detector."""
        before = self.calls
        os.environ.pop("HEATLIFT_RUN", None)
        assert main([stage, "fit", "-c", f"{config}.yaml", *arguments]) == 0
        return self.calls - before

    def state(self, stage, name):
        return json.loads((self.runs / stage / name / "run.json").read_text())


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Runs: a 2D stage, two lifters on its detections, pretraining, a lifter started from it."""
    with pytest.MonkeyPatch.context() as patch:
        chain = Chain(tmp_path_factory.mktemp("chain"), patch)
        chain.fit("heatmap", "heatmap", "--name", "eyes")
        chain.calls_per_run = [
            chain.fit("lift", "motion", "--name", "detected", "--data.detections", "newest")
            for _ in range(2)
        ]
        chain.fit("pretrain", "motion", "--name", "before")
        chain.fit("lift", "motion", "--name", "after", "--model.pretrained", "newest")
        yield chain


@pytest.fixture(scope="module")
def folders(chain):
    return sorted(path.parent for path in chain.runs.glob("*/*/run.json"))


def test_detections_are_made_once(chain):
    first, second = chain.calls_per_run
    assert first > 0
    assert second == 0


def test_a_finished_run_is_not_changed_and_the_same_command_starts_another(chain):
    assert chain.state("lift", "detected")["state"] == "finished"
    assert chain.state("lift", "detected-2")["state"] == "finished"
    assert (
        chain.state("lift", "detected")["numbers"] == chain.state("lift", "detected-2")["numbers"]
    )


def test_run_json_of_every_run_has_the_state_finished_and_the_test_metrics(folders):
    assert len(folders) == 5
    for folder in folders:
        state = json.loads((folder / "run.json").read_text())
        assert state["state"] == "finished"
        assert (folder / state["checkpoint"]).is_file()
        assert state["numbers"]
        assert all(name.startswith("test/") for name in state["numbers"])


def test_pretrained_weights_are_transferred_with_a_report(chain):
    report = (chain.runs / "lift" / "after" / "tables" / "weights.csv").read_text()
    assert "mask_token" in report
    settings = chain.state("lift", "after")["settings"]
    assert re.fullmatch(r"[0-9a-f]{64}", settings["model"]["pretrained"])


def test_every_logged_metric_is_declared(folders):
    declared = {metric.name for metric in METRICS}
    for folder in folders:
        logged = {name for _, name, _ in read_metrics(folder / "metrics.csv")}
        assert any(name.startswith("train/") for name in logged)
        assert any(name.startswith("val/") for name in logged)
        assert logged <= declared


def test_every_panel_shown_is_declared(folders):
    declared = {panel.name.replace("<split>/", "").replace("<n>", "1") for panel in PANELS}
    for folder in folders:
        shown = {
            re.fullmatch(r"(?:val-|test-)?(\w+?)(?:_\d)?-\d+", path.stem)[1]
            for path in (folder / "images").glob("*.[pw]*")
        }
        assert shown
        assert shown <= {name.removesuffix("_1") for name in declared}


def test_links_of_every_index_lead_to_files(folders):
    for folder in folders:
        page = (folder / "index.html").read_text()
        links = re.findall(r'(?:src|href)="([^"#]+)"', page)
        assert links
        for link in links:
            assert link.startswith("data:") or (folder / link).exists(), f"{folder}: {link}"


UNEQUAL = '''
import dataclasses

from pipeline.sources import Sequence, Split
from pipeline.mocap import Synthetic


class Unequal(Synthetic):
    """Seven sequences of seven lengths."""

    def sequences(self, split: Split) -> list[Sequence]:
        return [
            dataclasses.replace(sequence, joints3d=sequence.joints3d[: 11 + 4 * i], images=None)
            for i, sequence in enumerate(super().sequences(split)[:7])
        ]
'''


def test_two_processes_measure_what_one_measures(heatlift, tmp_path):
    (tmp_path / "unequal.py").write_text(UNEQUAL)
    (tmp_path / "motion.yaml").write_text(
        MOTION.replace("pipeline.mocap.Synthetic", "unequal.Unequal")
    )
    arguments = ["lift", "test", "--import", "unequal.py", "-c", "motion.yaml", "--name", "unequal"]
    arguments += ["--trainer.accelerator", "cpu", "--untrained"]
    metrics = []
    for devices in ("1", "2"):
        child = heatlift(*arguments, "--runs", f"runs{devices}", "--trainer.devices", devices)
        assert child.wait() == 0, child.stderr
        (path,) = (tmp_path / f"runs{devices}" / "lift" / "unequal").glob("test-*/metrics.csv")
        metrics.append({name: value for _, name, value in read_metrics(path)})
    one, two = metrics
    assert {"test/mpjpe_mm", "test/p_mpjpe_action_mean_mm", "test/mpjve_mm"} <= set(one)
    assert two == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("stage", ["lift", "pretrain"])
def test_recordings_of_one_frame_are_trained_and_tested(stage, heatlift, tmp_path):
    text = MOTION.replace("pipeline.mocap.Synthetic", "own.OneFrame").replace(", images: 60", "")
    (tmp_path / "one.yaml").write_text(text)
    child = heatlift(stage, "fit", "-c", "one.yaml", "--import", USER_CODE)
    assert child.wait() == 0, child.stderr
    (run,) = (tmp_path / "runs" / stage).iterdir()
    numbers = {name for _, name, _ in read_metrics(run / "metrics.csv")}
    assert "test/mpjpe_mm" in numbers
