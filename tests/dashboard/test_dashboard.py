from __future__ import annotations

import csv
import json
import logging
import re
import shlex
import time
from pathlib import Path

import cv2
import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from pipeline.dashboard import (
    callback,
    catalog,
    charts,
    panels,
    show,
    skeletons,
    wandb_logger,
)
from pipeline.dashboard.wandb_logger import make_wandb_loggers
from pipeline.errors import UsageError
from pipeline.metrics.motion_table import QUANTITIES, PoseErrorTable
from pipeline.skeleton import H36M17
from pipeline.training.metrics_file import MetricsFile
from pipeline.training.transfer import WeightsReport

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

DOCS = Path(__file__).parents[2] / "docs" / "dashboards.md"
WALK = np.random.default_rng(0).normal(0, 0.3, (12, 17, 3)).astype(np.float32)


class Line(pl.LightningModule):
    """Learns one weight; shows `panels` at the end of a test."""

    def __init__(self, panels=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.panels = panels

    def training_step(self, batch, index):
        loss = (self.weight * batch[0]).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("val/mpjpe_mm", (self.weight * batch[0]).abs().mean())

    def test_step(self, batch, index):
        self.log("test/mpjpe_mm", torch.tensor(61.375))

    def on_test_epoch_end(self):
        if self.panels:
            self.panels(self.trainer)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer_in(folder, *loggers):
    return pl.Trainer(
        default_root_dir=folder,
        logger=[MetricsFile(folder / "metrics.csv"), *loggers],
        callbacks=[callback.Dashboard()],
        max_epochs=2,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def batches():
    data = torch.utils.data.TensorDataset(torch.linspace(1, 2, 12))
    return torch.utils.data.DataLoader(data, batch_size=4)


@pytest.fixture
def trainer(tmp_path):
    """A trainer of a run folder, without W&B, as the panels see it."""
    return trainer_in(tmp_path / "runs" / "lift" / "demo")


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ERROR_REPORTING", "WANDB_SILENT"):
        monkeypatch.setenv(name, str(tmp_path / "cache") if "DIR" in name else "true")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def wandb_for(folder, **settings):
    names = {"stage": "lift", "name": "demo", "group": "chain", "config": {}} | settings
    return make_wandb_loggers(folder, **names)


def warnings_in(caplog):
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def written_soon(path, text):
    """Content of a file that W&B's own process is still writing."""
    for _ in range(300):
        if text in path.read_bytes():
            break
        time.sleep(0.1)
    return path.read_bytes()


def clip(name, error):
    predicted = WALK + np.float32(error / 1000)
    hidden = (np.arange(17) > 2).astype(np.float32) * np.ones((12, 1), np.float32)
    seen = {"joints2d": WALK[..., :2] + 0.1, "exact2d": WALK[..., :2], "score": hidden}
    return panels.LiftedClip(name, predicted, WALK, error, **seen)


def report():
    table = PoseErrorTable(["walk", "sit"], H36M17.joints)
    table.update(0, WALK + np.float32(0.01), WALK)
    table.update(1, WALK + np.float32(0.03), WALK)
    return table.compute()


# ---- names -------------------------------------------------------------------------------------


def rows_of(heading):
    section = DOCS.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_on_dashboards_lists_every_metric_and_no_other():
    better = {"min": "lower", "max": "higher", None: ""}
    code = [[f"`{m.name}`", m.unit, better[m.goal], m.meaning] for m in catalog.METRICS]
    assert rows_of("Metrics") == code


def test_the_page_on_dashboards_lists_every_panel_and_no_other():
    code = [[f"`{p.name}`", p.kind, p.stage, p.meaning] for p in catalog.PANELS]
    assert rows_of("Panels") == code


def test_every_quantity_of_the_motion_tables_has_a_declared_name_for_both_means():
    names = {metric.name for metric in catalog.METRICS}
    assert len(names) == len(catalog.METRICS)
    for quantity in QUANTITIES:
        assert {f"test/{quantity}_mm", f"val/{quantity}_action_mean_mm"} <= names


# ---- W&B ---------------------------------------------------------------------------------------


def test_an_offline_run_keeps_metrics_images_videos_and_tables_in_its_folder(
    tmp_path, caplog, capsys
):
    folder = tmp_path / "run"
    logger = wandb_for(folder, config={"lr": 0.1, "api_key": "secret-7"})
    trainer = trainer_in(folder, *logger)
    module = Line(lambda trainer: panels.log_lift_panels(trainer, [clip("walk", 30)], report()))
    with caplog.at_level(logging.INFO):
        trainer.fit(module, batches(), batches())
        trainer.test(module, batches(), verbose=False)
        show.log_artifact(trainer, folder / "metrics.csv", "numbers")
        show.finish_wandb(trainer)
    [written] = folder.glob("wandb/offline-run-*")
    assert f"wandb sync {written}" in capsys.readouterr().out
    assert not warnings_in(caplog)
    content = written_soon(next(written.glob("*.wandb")), b"test/worst_clip_1")
    for text in (b"train/loss", b"test/mpjpe_mm", b"chain"):
        assert text in content
    assert b"secret-7" not in content
    assert next(written.rglob("*.webm")).stat().st_size > 1000
    assert len(list(written.rglob("*.table.json"))) == 2


def test_a_server_out_of_reach_means_offline_and_one_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    start = time.perf_counter()
    [logger] = wandb_for(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.finish()
    assert time.perf_counter() - start < 15
    assert list(tmp_path.glob("wandb/offline-run-*"))
    [warning] = warnings_in(caplog)
    assert "127.0.0.1 does not answer" in warning.getMessage()


def test_auto_goes_online_where_key_and_server_are_there(tmp_path, monkeypatch):
    with wandb_logger.socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        assert wandb_for(tmp_path)[0].mode == "offline"
        Path(tmp_path / "netrc").write_text("machine 127.0.0.1 login user password key\n")
        assert wandb_for(tmp_path)[0].mode == "online"
        assert wandb_for(tmp_path, wandb_mode="offline")[0].mode == "offline"
    assert wandb_for(tmp_path, wandb_mode="off") == []


def test_an_unknown_mode_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="WANDB=maybe: no such mode; take auto"):
        wandb_for(tmp_path, wandb_mode="maybe")


def test_a_failing_call_is_the_last_one_and_costs_one_warning(tmp_path, caplog):
    [logger] = wandb_for(tmp_path / "run", wandb_mode="offline")
    (tmp_path / "run").write_text("a file stands where the folder should be")
    for step in range(3):
        logger.log_metrics({"train/loss": 1.0}, step=step)
    logger.declare(catalog.METRICS)
    assert logger.experiment is None
    logger.finish()
    [warning] = warnings_in(caplog)
    assert "this run goes on without it" in warning.getMessage()


def test_secrets_never_reach_the_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k3y")
    settings = {
        "model": {"num_keys": 3, "access_token": "x", "path": Path("/data")},
        "WANDB_API_KEY": "k3y",
        "source": "https://me:pw@host/data",
        "note": ["uses k3y", 0.5, None],
    }
    [logger] = wandb_for(tmp_path, config=settings, wandb_mode="offline")
    assert logger.config == {
        "model": {"num_keys": 3, "path": "/data"},
        "source": "https://***@host/data",
        "note": ["uses ***", 0.5, None],
    }


# ---- the run folder ----------------------------------------------------------------------------


def test_a_run_writes_a_page_with_its_metrics_curves_images_videos_and_tables(trainer, caplog):
    folder = Path(trainer.default_root_dir)
    module = Line(lambda trainer: panels.log_lift_panels(trainer, [clip("walk", 30)], report()))
    trainer.fit(module, batches(), batches())
    trainer.test(module, batches(), verbose=False)
    page = (folder / "index.html").read_text()
    assert "<h1>lift/demo</h1>" in page
    assert "<b>61.38 mm</b>" in page
    assert len(re.findall(r'class="line (?:train|val)"', page)) == 4
    for link in re.findall(r'(?:src|href)="([^"#]+)"', page):
        assert (folder / link).is_file()
    charts = re.findall(r'aria-label="([^"]+) over steps"', page)
    assert charts == ["MPJPE, mm", "loss", "learning rate", "training samples, 1/s"]
    for name in ("poses", "motion", "per_action", "per_joint"):
        assert f'src="images/test-{name}-000006.png"' in page
    assert '<video src="images/test-worst_clip_1-000006.webm"' in page
    for text in (
        "<b>worst clip 1, test split</b>",
        "per action, test split</a>",
        ">MPJPE, mm</th>",
    ):
        assert text in page
    assert "mean over actions" in page
    assert not warnings_in(caplog)
    assert "http" not in re.sub(r"<style>.*</style>", "", page)


def test_what_comes_from_files_is_escaped(tmp_path, trainer):
    folder = Path(trainer.default_root_dir)
    (folder / "images").mkdir(parents=True)
    state = {"name": "<script>alert(1)</script>", "settings": {"a": "</pre><b>"}}
    (folder / "run.json").write_text(json.dumps(state))
    (folder / "metrics.csv").write_text("step,name,value\n1,val/<i>x,0.5\n2,val/<i>x,0.25\n")
    show.log_image(trainer, "val/a", np.zeros((8, 8, 3), np.uint8), "<img onerror=1>")
    show.log_table(trainer, "t", ["<th>"], [["<td>"]])
    page = callback.write_index(folder).read_text()
    for tag in ("<script", "<i>", "</pre><b>", "<img onerror", "<th><th>", "<td><td>"):
        assert tag not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;img onerror=1&gt;" in page


def test_an_empty_run_folder_has_a_page_too(tmp_path):
    (tmp_path / "run.json").write_text('{"name": ')
    assert tmp_path.name in callback.write_index(tmp_path).read_text()


def test_the_page_of_a_chain_leads_to_each_stage(tmp_path, trainer):
    lift = Path(trainer.default_root_dir)
    heatmap = tmp_path / "runs" / "heatmap" / "a b"
    heatmap.mkdir(parents=True)
    (heatmap / "metrics.csv").write_text("step,name,value\n9,test/pck_0.1,0.9125\n")
    show.log_image(trainer, "test/poses", np.zeros((8, 8, 3), np.uint8))
    out = callback.write_chain_index(
        [heatmap, lift],
        tmp_path / "runs" / "index.html",
        titles=["images to <2D>", "2D to 3D"],
        rows=[("joints", "91.2 %", "found")],
        image=tmp_path / "runs" / "demo.png",
    )
    page = out.read_text()
    assert page.index('<img src="demo.png"') < page.index("<h2>1. images to &lt;2D&gt;</h2>")
    assert "91.2 % of the joints are found on the test split" in page
    assert page.index("<h2>2. 2D to 3D</h2>") < page.index("<td>found</td>")
    assert page.index("heatmap/a%20b/index.html") < page.index("lift/demo/index.html")
    assert "<b>91.2 %</b>" in page
    assert 'src="lift/demo/images/test-poses-000000.png"' in page


def test_a_table_is_written_as_csv_with_plain_cells(trainer):
    rows = [["walk", np.float32(12.34567), 3], ["sit", float("nan"), np.int64(4)]]
    show.log_table(trainer, "test/per_action", ["action", "mm", "frames"], rows)
    path = Path(trainer.default_root_dir) / "tables" / "test-per_action.csv"
    read = list(csv.reader(path.read_text().splitlines()))
    assert read == [["action", "mm", "frames"], ["walk", "12.3457", "3"], ["sit", "", "4"]]


def test_the_weights_table_names_the_status_of_each_weight(trainer):
    panels.log_weights_panel(trainer, WeightsReport("file", "d1", ("a", "b"), ("head",), ("old",)))
    table = (Path(trainer.default_root_dir) / "tables" / "weights.csv").read_text()
    assert table.splitlines()[1:] == ["a,loaded", "b,loaded", "head,kept", "old,dropped"]


def test_the_worst_clip_becomes_the_first_video(trainer):
    clips = [clip("good", 5), clip("bad", 80), clip("lost", float("nan")), clip("fair", 20)]
    panels.log_lift_panels(trainer, clips, report(), videos=2)
    folder = Path(trainer.default_root_dir) / "images"
    captions = json.loads((folder / "captions.json").read_text())
    assert captions["test-worst_clip_1-000000.webm"].startswith("lost")
    strip = cv2.imread(str(folder / "test-motion-000000.png"))
    bare = skeletons.draw_motion_strip(clips[2].predicted, clips[2].target, H36M17)
    assert strip.shape[0] == bare.shape[0] + 30  # its title: name and error
    assert captions["test-worst_clip_2-000000.webm"].startswith("bad  80.0 mm")
    video = cv2.VideoCapture(str(folder / "test-worst_clip_2-000000.webm"))
    assert sum(video.read()[0] for _ in range(20)) == len(WALK)


def test_the_2d_stage_and_pretraining_show_their_images(trainer, caplog):
    rng = np.random.default_rng(1)
    example = {
        "image": rng.integers(0, 255, (64, 48, 3), np.uint8),
        "heatmaps": rng.random((17, 16, 12), np.float32),
        "joints2d": rng.uniform(0, 48, (17, 2)),
        "truth": np.full((17, 2), np.nan),
        "score": rng.random(17),
        "name": "7",
    }
    panels.log_heatmap_panels(trainer, [example, example, example], H36M17)
    panels.log_pretrain_panels(trainer, [clip("walk", 30)], H36M17)
    names = sorted(p.name for p in (Path(trainer.default_root_dir) / "images").glob("*.png"))
    shown = ("corruption", "heatmap_sheet", "heatmaps", "recovered")
    assert names == [f"val-{name}-000000.png" for name in shown]
    assert not warnings_in(caplog)


def test_only_the_first_and_the_newest_versions_of_an_image_are_kept(trainer):
    folder = Path(trainer.default_root_dir) / "images"
    folder.mkdir(parents=True)
    for step in range(5, 30):
        (folder / f"val-a-{step:06d}.png").write_bytes(b"")
    (folder / "val-a_b-000001.png").write_bytes(b"")
    (folder / "val-a-000000.webm").write_bytes(b"")
    progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress
    progress.optimizer.step.total.completed = 30
    show.log_image(trainer, "val/a", np.zeros((4, 4, 3), np.uint8))
    steps = sorted(int(p.stem[-6:]) for p in folder.glob("val-a-*.png"))
    assert steps == [5, *range(22, 31)]
    assert len(list(folder.glob("*"))) == 12


def test_an_image_that_cannot_be_written_costs_a_warning(tmp_path, trainer, caplog):
    folder = Path(trainer.default_root_dir)
    folder.mkdir(parents=True)
    (folder / "images").write_text("in the way")
    show.log_image(trainer, "val/a", np.zeros((4, 4, 3), np.uint8))
    show.log_video(trainer, "val/b", [], 25.0)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "the run goes on" in caplog.text


def test_the_callback_shows_the_examples_of_a_2d_stage(trainer):
    module = Line()
    rng = np.random.default_rng(2)
    maps = {"heatmaps": rng.random((17, 8, 8), np.float32), "score": rng.random(17), "name": "1"}
    joints = {"joints2d": rng.uniform(0, 32, (17, 2)), "truth": rng.uniform(0, 32, (17, 2))}
    module.examples = [{"image": np.zeros((32, 32, 3), np.uint8), **joints, **maps}]
    module.skeleton = H36M17
    module.report = {f"pck@0.1/{joint}": 0.5 for joint in H36M17.joints} | {"pck@0.1": 0.25}
    trainer.test(module, batches(), verbose=False)
    names = {path.name for path in (Path(trainer.default_root_dir) / "images").glob("*.png")}
    panels = ("heatmap_sheet", "heatmaps", "pck_per_joint")
    assert names == {f"test-{name}-000000.png" for name in panels}
    folder = Path(trainer.default_root_dir) / "images"
    bars = cv2.imread(str(folder / "test-pck_per_joint-000000.png"))[..., ::-1]
    counted = charts.draw_bars(H36M17.joints, [50.0] * 17, "%", "PCK@0.1", mean=25.0)
    assert np.array_equal(bars, counted)  # the line is where the printed number is


def test_a_call_that_waits_for_the_server_is_abandoned():
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        wandb_logger._call_with_timeout(0.05, lambda run: time.sleep(run), 1.0)


def test_an_error_of_a_call_is_raised_where_it_was_made():
    with pytest.raises(ValueError, match="of its own"):
        wandb_logger._call_with_timeout(5.0, lambda run: int(run), "of its own")


@pytest.mark.parametrize("name", ["mixste_small", "größe 2", "日本", "a b", "x" * 300, "-.", "ä/ß"])
def test_the_artifacts_of_any_name_of_a_run_are_accepted(name):
    import wandb

    found = wandb_logger.artifact_name(name, "checkpoint")
    assert wandb.Artifact(found, type="checkpoint").name.startswith(found)


def test_two_names_are_two_artifacts():
    names = ("größe", "grosse", "groe", "gro-e", "gr e", "gr-e")
    assert len({wandb_logger.artifact_name(name, "cache") for name in names}) == len(names)


def test_all_parts_of_a_resumed_run_are_named_in_order(tmp_path, capsys):
    folder = tmp_path / "größe 2"
    first = folder / "wandb" / "offline-run-20200101_000000-abc"
    first.mkdir(parents=True)  # of the start before
    [logger] = wandb_for(folder, wandb_mode="offline")
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.finish()
    second = max(folder.glob("wandb/offline-run-*"))
    assert second != first
    command = shlex.join(["wandb", "sync", str(first), str(second)])
    assert f"logged offline; `{command}` sends it" in capsys.readouterr().out
