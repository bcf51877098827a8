"""Every stage runs every subcommand through the real command line; a new stage needs one line."""

from __future__ import annotations

import dataclasses
import sys
import textwrap

import numpy as np
import pytest
from runs import LIFT, TINY, USER_CODE

from pipeline.__main__ import main
from pipeline.camera import Camera
from pipeline.cli.stages import STAGES, StageEntry, load_stage
from pipeline.training.metrics_rows import read_metrics
from pipeline.training.run_folder import read_state
from pipeline.training.stage import SPLITS, Stage, StageData

pytestmark = pytest.mark.filterwarnings("default")  # the command line decides which to show

MORE = {"integral": ("--import", USER_CODE), "lift": LIFT}
METRICS = {
    "heatmap": {"loss", "pck_0.05", "pck_0.1", "pck_0.2"},
    "integral": {"loss", "pck_0.1", "mpjpe_mm", "p_mpjpe_mm"},
    "pretrain": {"mpjpe_mm", "n_mpjpe_mm", "mpjve_mm"},
    "lift": {"mpjpe_mm", "p_mpjpe_mm", "mpjve_mm", "mpjpe_action_mean_mm"},
}
"""What validation and test log of a stage, at least."""

JOINT_SET = {"index", "joints", "parents", "skeleton", "unit", "frame"}
CAMERA = {f"camera_{field.name}" for field in dataclasses.fields(Camera)}
PREDICTED = {
    "heatmap": JOINT_SET | {"joints2d", "score"},
    "integral": JOINT_SET | {"joints2d", "depth", "score", "joints3d", "unit3d", "frame3d"},
    "pretrain": JOINT_SET | {"joints3d", "normalised2d", "visible"},
    "lift": JOINT_SET
    | CAMERA
    | {"joints3d", "joints2d", "score", "valid", "fps", "time", "name", "subject", "action"},
}
"""The arrays in the files of a prediction."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains a stage when it is first asked for; gives its folder and arguments."""
    known = {}

    def train(stage):
        if stage not in known:
            folder = tmp_path_factory.mktemp(stage)
            (folder / f"{stage}.yaml").write_text(TINY[stage])
            arguments = ["-c", str(folder / f"{stage}.yaml"), *MORE.get(stage, ())]
            arguments += ["--runs", str(folder / "runs"), "--wandb", "off"]
            code = main([stage, "fit", *arguments, "--trainer.max_epochs", "1"])
            known[stage] = (code, folder, arguments)
        return known[stage]

    return train


def run_folder(folder, stage):
    return folder / "runs" / stage / stage


def evaluation(folder, stage, subcommand):
    """Folder of the only evaluation of its kind."""
    (found,) = run_folder(folder, stage).glob(f"{subcommand}-*")
    return found


def logged(folder, split):
    """Names of the metrics of a split in a metrics.csv."""
    rows = read_metrics(folder / "metrics.csv")
    return {name.removeprefix(f"{split}/") for _, name, _ in rows if name.startswith(f"{split}/")}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("subcommand", SPLITS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_runs_every_subcommand(stage, subcommand, trained, capsys):
    code, folder, arguments = trained(stage)
    assert code == 0, capsys.readouterr().err
    if subcommand == "fit":
        state = read_state(run_folder(folder, stage))
        assert state["state"] == "finished"
        assert f"test/{sorted(METRICS[stage])[0]}" in state["numbers"]
        return
    best = run_folder(folder, stage) / "checkpoints" / "best.ckpt"
    assert main([stage, subcommand, *arguments, "--ckpt_path", str(best)]) == 0
    place = evaluation(folder, stage, subcommand)
    if subcommand == "predict":
        files = sorted((place / "predictions").glob("*.npz"))
        assert files
        with np.load(files[0]) as arrays:
            assert set(arrays) - {"ids"} == PREDICTED[stage]
            assert len(arrays["joints"]) == len(arrays["parents"])
            assert np.isfinite(arrays["joints3d" if "joints3d" in arrays else "joints2d"]).any()
        page = (place / "index.html").read_text()
        assert f"{files[0].name}</td>" in page
        assert 'src="images/predict-poses_1-' in page
        assert ("predict-clip_1-" in page) == (stage == "lift")
    else:
        split = {"validate": "val", "test": "test"}[subcommand]
        assert METRICS[stage] <= logged(place, split)
        assert not logged(place, {"val": "test", "test": "val"}[split])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_runs_in_every_precision(stage, precision, trained, capsys):
    _, folder, arguments = trained(stage)
    options = [*arguments, "--trainer.max_epochs", "1", "--trainer.precision", precision]
    if precision != "16-true":
        assert main([stage, "fit", *options, "--name", precision]) == 0, capsys.readouterr().err
    best = run_folder(folder, stage) / "checkpoints" / "best.ckpt"
    for subcommand in ("test", "predict"):
        assert main([stage, subcommand, *options, "--ckpt_path", str(best)]) == 0
    assert "goes on" not in capsys.readouterr().err


@pytest.mark.parametrize("plugin", [pytest.param("bf16-true", marks=pytest.mark.slow), "16-true"])
def test_half_precision_does_not_round_the_truth(plugin, trained, capsys):
    _, folder, arguments = trained("lift")
    best = run_folder(folder, "lift") / "checkpoints" / "best.ckpt"
    numbers = []
    for precision in ("32-true", plugin):
        options = [*arguments, "--ckpt_path", str(best), "--trainer.precision", precision]
        assert main(["lift", "test", *options]) == 0, capsys.readouterr().err
        evaluation = max(
            run_folder(folder, "lift").glob("test-*"), key=lambda p: p.stat().st_mtime_ns
        )
        rows = read_metrics(evaluation / "metrics.csv")
        numbers.append({name: value for _, name, value in rows})
    truth = "test/mean_pose_mpjpe_mm"
    assert numbers[0][truth] == numbers[1][truth]
    assert numbers[0] != numbers[1]  # the network itself is rounded


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_says_everything_about_itself(name):
    stage = load_stage(name)
    assert issubclass(stage, Stage)
    assert stage.stage == name
    assert issubclass(stage.data_class, StageData)
    assert stage.monitor.startswith("val/")
    assert set(stage.weights_from) <= {*STAGES, "weights"}
    for hook in ("validation_step", "test_step", "on_test_epoch_end", "setup"):
        assert getattr(stage, hook) is getattr(Stage, hook), f"{name} writes {hook} on its own"
    assert stage.data_class.val_dataloader is StageData.val_dataloader


FIFTH = {
    "__init__.py": '"""A stage of a test."""\n',
    "data.py": '''
        """Points on a line."""

        import numpy as np

        from pipeline.training.stage import StageData


        class Points:
            """Batches of x and y = 3 x + 0.5."""

            def __len__(self):
                return 64

            def __getitem__(self, key):
                epoch, index = key
                x = (np.asarray(index, np.float32)[:, None] - 32) / 32
                return {"x": x, "y": 3 * x + 0.5, "index": index}


        class Nothing:
            def describe(self):
                return "points on a line"


        class LineData(StageData):
            """Points on a line.

            Args:
                batch_size: Points per batch.
                seed: Seed of shuffling.
            """

            evaluation_batch = 32
            source = Nothing()

            def __init__(self, *, batch_size: int = 16, seed: int = 0) -> None:
                super().__init__(batch_size=batch_size, workers=0, seed=seed)

            def training_set(self):
                return Points()

            def evaluation_set(self, split):
                return Points()
    ''',
    "module.py": '''
        """A line fitted to points."""

        import torch
        from line_stage.data import LineData
        from torchmetrics import MeanAbsoluteError

        from pipeline.training.stage import Stage


        class LineModule(Stage):
            """Learns slope and intercept.

            Args:
                rate: Learning rate.
                pretrained: Checkpoint to start from.
            """

            stage = "line"
            data_class = LineData
            monitor = "val/error"
            example_config = "line.yaml"
            weights_from = ("line",)

            def __init__(self, rate: float = 0.1, pretrained: str | None = None) -> None:
                super().__init__(lambda p: torch.optim.Adam(p, rate), pretrained=pretrained)
                self.net = torch.nn.Linear(1, 1)
                self.errors = MeanAbsoluteError()

            def training_step(self, batch, batch_idx):
                loss = (self.net(batch["x"]) - batch["y"]).square().mean()
                self.log("train/loss", loss)
                return loss

            def begin(self, split):
                self.errors.reset()

            def score(self, split, batch):
                self.errors.update(self.net(batch["x"]), batch["y"])

            def conclude(self, split):
                self.log(f"{split}/error", self.errors.compute())

            def predict_step(self, batch, batch_idx):
                return {"y": self.net(batch["x"])}
    ''',
}


def test_a_fifth_stage_is_a_package_and_one_line(tmp_path, monkeypatch, capsys):
    package = tmp_path / "line_stage"
    package.mkdir()
    for name, text in FIFTH.items():
        (package / name).write_text(textwrap.dedent(text).lstrip("\n"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(STAGES, "line", StageEntry("line_stage.module:LineModule", "fit a line"))
    try:
        assert main(["--help"]) == 0
        assert "line       fit a line" in capsys.readouterr().out
        fit = ["line", "fit", "--name", "a", "--wandb", "off", "--trainer.max_epochs", "40"]
        assert main(fit) == 0, capsys.readouterr().err
        state = read_state(tmp_path / "runs" / "line" / "a")
        assert state["state"] == "finished"
        assert state["numbers"]["test/error"] < 0.05  # 1.6 before training
        best = "runs/line/a/checkpoints/best.ckpt"
        for subcommand in ("validate", "test", "predict"):
            arguments = ["--name", "a", "--wandb", "off", "--ckpt_path", best]
            assert main(["line", subcommand, *arguments]) == 0, capsys.readouterr().err
        more = ["--name", "b", "--wandb", "off", "--model.pretrained", best]
        more += ["--trainer.max_steps", "1"]
        assert main(["line", "fit", *more]) == 0, capsys.readouterr().err
        assert "line: weights" in capsys.readouterr().out
    finally:
        for name in [name for name in sys.modules if name.startswith("line_stage")]:
            del sys.modules[name]
