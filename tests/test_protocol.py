"""What changes a number is in the protocol line of a stage; everything else says why it is not."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from own import Narrow
from runs import COMMANDS, same
from trainers import trainer

from pipeline.cli.configs import shipped_configs
from pipeline.cli.stages import STAGES, load_stage
from pipeline.datasets import (
    Coco,
    Human36M,
    Human36MImages,
    MixedSource,
    MotionBertClips,
    Mpii,
    MpiInf3dhp,
    MpiInf3dhpImages,
)
from pipeline.heatmap import HRNet
from pipeline.lift import MixSTE, PoseFormer
from pipeline.lift.any_video import AnyVideo
from pipeline.lift.evaluation import LiftEvaluation
from pipeline.lift.losses import MPJPELoss
from pipeline.mocap import Mocap
from pipeline.mocap.synthetic import Synthetic
from pipeline.training import checkpoints
from pipeline.training.protocol import (
    NOT_IN_PROTOCOL,
    chosen_by,
    describe_checkpoint,
    trainer_parts,
)
from pipeline.training.run_folder import read_state

__all__ = ["trainer"]

NETS = {
    "heatmap": lambda: HRNet(8, 17, stem=8, planes=8, blocks=1, modules=(1, 1, 1)),
    "integral": Narrow,
    "pretrain": lambda: MixSTE(frames=9, dim=8, depth=1, heads=2),
    "lift": lambda: MixSTE(frames=9, dim=8, depth=1, heads=2),
}
SIZE = {"data.input_size": (64, 64)}
SMALL = {"heatmap": SIZE, "integral": SIZE, "pretrain": {}, "lift": {"data.detections": "exact"}}
"""Stage -> settings of a test that takes a second."""


def people(**changes):
    changes = {"images": 32, "seconds": 1.0, "actions": ("walk", "wave")} | changes
    return Synthetic(1, 1, 1, **changes)


IMAGES = {
    "data.source": people(seed=1),
    "data.input_size": (96, 64),
    "data.padding": 1.5,
    "data.midpoints": False,
    "data.reduced_decoding": True,
    "model.published_cells": True,
    "model.flip_test": True,
}
CHANGES = {
    "heatmap": IMAGES
    | {
        "data.skeleton": "COCO17",
        "model.decode": "argmax",
        "model.sigma": 3.0,
        "model.rounded": True,
    },
    "integral": IMAGES | {"data.skeleton": "H36M17", "model.cube": 3.0},
    "pretrain": {
        "data.source": people(seed=1),
        "data.joint_mask": 0.3,
        "data.frame_mask": 0.4,
        "data.noise": 2.0,
        "data.seed": 5,
    },
    "lift": {
        "data.source": people(seed=1),
        "data.detections": "noisy",
        "data.detector_precision": "bf16-mixed",
        "data.first_frame": 3,
        "data.person": "2",
        "data.video": AnyVideo(rate=50.0),
        "data.seed": 5,
        "model.evaluated": 14,
        "model.root_evaluated": False,
        "model.reroot": False,
        "model.flip_test": False,
        "model.smooth": 2.0,
        "model.frames": "subset",
        "model.overlap": "mixste",
    },
}
"""Stage -> setting that changes a number -> another value than the default."""

BEFORE = {
    ("integral", "data.skeleton"): {"model.net": torch.nn.Identity()},
    ("lift", "data.detector_precision"): {"data.detections": "best.ckpt"},
    ("lift", "data.first_frame"): {"data.detections": str(Path(__file__).parent)},
    ("lift", "data.person"): {"data.detections": str(Path(__file__).parent)},
    ("lift", "data.seed"): {"data.detections": "noisy"},
    ("lift", "model.frames"): {"model.net": PoseFormer(frames=5, dim=8, depth=1, heads=2)},
}
"""Settings under which a change has an effect."""

WITHOUT_EFFECT = {
    "model.optimizer": torch.optim.SGD,
    "model.loss": MPJPELoss(),
    "data.batch_size": 3,
    "data.workers": 1,
    "data.step": 2,
    "data.flip": False,
    "data.joint_mask": 0.5,
    "data.frame_mask": 0.5,
    "data.augment_every": 1,
}


def make(stage, **settings):
    """Module and data module of a stage with these settings, `model.NAME` and `data.NAME`."""
    cls = load_stage(stage)
    settings = {"model.net": None, "data.source": people()} | SMALL[stage] | settings
    arguments = {"model": {}, "data": {}}
    for name, value in settings.items():
        part, _, argument = name.partition(".")
        arguments[part][argument] = value
        if part == "data" and argument in cls.linked_arguments:
            arguments["model"][argument] = value
    torch.manual_seed(0)
    arguments["model"]["net"] = arguments["model"]["net"] or NETS[stage]()
    return cls(**arguments["model"]), cls.data_class(**arguments["data"])


def line(trainer, stage, split="test", **settings):
    """The protocol line of a stage with these settings."""
    module, data = make(stage, **settings)
    module.trainer = trainer
    trainer.datamodule = data
    return module.protocol(split)


def settings_of(stage):
    """All constructor arguments of the module and the data module, linked ones once."""
    cls = load_stage(stage)
    data = {f"data.{name}" for name in inspect.signature(cls.data_class).parameters}
    names = inspect.signature(cls).parameters
    return data | {f"model.{name}" for name in names if name not in cls.linked_arguments}


def in_line(trainer, stage):
    module, data = make(stage)
    module.trainer = trainer
    trainer.datamodule = data
    return set(module.protocol_parts("test"))


@pytest.mark.parametrize("stage", STAGES)
def test_every_argument_is_in_the_protocol_line_or_says_why_it_is_not(stage, trainer):
    named, reasons = in_line(trainer(), stage), load_stage(stage).not_in_protocol
    everything = settings_of(stage)
    assert named <= everything
    assert everything <= named | reasons.keys()
    assert not named & reasons.keys(), "in the line and said to have no effect"
    assert reasons.keys() - NOT_IN_PROTOCOL.keys() <= everything, "no such argument"
    assert all(len(reason) > 10 for reason in reasons.values())


def listed(trainer):
    """The lines of the list in docs/data.md, from the code, with default settings."""
    for stage in STAGES:
        cls = load_stage(stage)
        module, data = cls(NETS[stage]()), cls.data_class(people())
        module.trainer, trainer.datamodule = trainer, data
        parts = {"data.source": "test split of the data set, as it describes itself"}
        parts = module.protocol_parts("test") | parts | trainer_parts(trainer, "test")
        for name, part in (parts | {"weights": f"weights: best {cls.monitor} (epoch n)"}).items():
            yield f"| {stage} | `--{name}` | {part or '-'} |"


def test_the_list_of_what_changes_a_number_is_that_of_the_code(trainer):
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    section = text.partition("## What changes a number")[2].partition("\n## ")[0]
    written = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert written == list(listed(trainer()))


@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_in_the_protocol_line_is_changed_by_a_test(stage, trainer):
    assert in_line(trainer(), stage) == CHANGES[stage].keys()


@pytest.mark.parametrize(
    ("stage", "setting"), [(stage, name) for stage, named in CHANGES.items() for name in named]
)
def test_a_setting_that_changes_a_number_changes_the_protocol_line(stage, setting, trainer):
    value, before = CHANGES[stage][setting], BEFORE.get((stage, setting), {})
    plain = line(trainer(), stage, **before)
    assert line(trainer(), stage, **before | {setting: value}) != plain


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("stage", STAGES)
def test_options_of_the_trainer_that_change_a_number_are_in_the_line(stage, split, trainer):
    plain = line(trainer(), stage, split)
    assert plain.startswith(f"{split} split of ")
    few = line(trainer(**{f"limit_{split}_batches": 3}), stage, split)
    assert "only its first 3 batches" in few
    half = line(trainer(**{f"limit_{split}_batches": 0.5}), stage, split)
    assert "only 0.5 of its batches" in half
    assert "precision bf16-mixed" in line(trainer(precision="bf16-mixed"), stage, split)
    assert "batches" not in plain


SOURCES = {
    Synthetic: {
        "train": 5,
        "val": 5,
        "test": 5,
        "actions": ("wave",),
        "seconds": 2.0,
        "images": 90,
        "share": "lifter",
        "seed": 1,
    },
    Mocap: {
        "root": "b",
        "mapping": "H36M17",
        "splits": "mine.csv",
        "cameras": "human36m",
        "fps": 25.0,
        "seed": 1,
        "bodies": "random_adults",
    },
    Human36M: {"root": "b", "protocol": 2},
    Human36MImages: {
        "root": "b",
        "protocol": 2,
        "train_every": 3,
        "test_every": 7,
        "skip_bad": 2,
    },
    MotionBertClips: {"root": "b"},
    MpiInf3dhp: {"root": "b"},
    MpiInf3dhpImages: {"root": "b"},
    Coco: {"root": "b", "boxes": "found.json", "box_score": 0.5, "skip_bad": 2},
    Mpii: {"root": "b", "skip_bad": 2},
    MixedSource: {"sources": [Mpii("b")], "skeleton": "MPII16", "root": "b"},
}
"""Data source -> its arguments with another value than in `plain_source`."""


def plain_source(cls, **changes):
    arguments = {"root": "a"} if "root" in inspect.signature(cls).parameters else {}
    if cls is MixedSource:
        arguments["sources"] = [Coco("a")]
    if cls is Coco:
        arguments["boxes"] = "b.json"
    return cls(**arguments | changes)


@pytest.mark.parametrize("cls", SOURCES, ids=lambda cls: cls.__name__)
def test_every_argument_of_a_data_source_is_in_the_line(cls):
    plain = plain_source(cls).describe()
    silent = {"images"} if cls is Mocap else set()  # whether they are drawn: no lifter sees them
    assert SOURCES[cls].keys() == inspect.signature(cls).parameters.keys() - silent
    for name, value in SOURCES[cls].items():
        assert plain_source(cls, **{name: value}).describe() != plain, name


def metrics_of(trainer, stage, **settings):
    """Metrics of a test; those that are NaN are left out."""
    module, data = make(stage, **settings)
    tester = trainer()
    tester.test(module, datamodule=data, verbose=False)
    metrics = {name: float(value) for name, value in tester.callback_metrics.items()}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


@pytest.fixture
def no_images(monkeypatch):
    for panel in ("log_lift_panels", "log_pretrain_panels"):
        monkeypatch.setattr(f"pipeline.dashboard.panels.{panel}", lambda *_, **__: None)


@pytest.mark.usefixtures("no_images")
@pytest.mark.parametrize("stage", ["pretrain", "lift"])
def test_a_setting_that_is_not_in_the_line_changes_no_number(stage, trainer):
    plain = metrics_of(trainer, stage)
    settings = settings_of(stage) & load_stage(stage).not_in_protocol.keys()
    changed = {name: WITHOUT_EFFECT[name] for name in settings & WITHOUT_EFFECT.keys()}
    assert settings - changed.keys() == {"model.net", "model.schedule", "model.pretrained"}
    assert metrics_of(trainer, stage, **changed) == plain


@pytest.mark.usefixtures("no_images")
@pytest.mark.parametrize(
    ("stage", "setting"),
    [
        (stage, name)
        for stage in ("pretrain", "lift")
        for name in CHANGES[stage]
        if name not in ("data.detector_precision", "data.first_frame", "data.person")
    ],
)
def test_a_setting_that_is_in_the_line_changes_a_number(stage, setting, trainer):
    before = BEFORE.get((stage, setting), {})
    plain = metrics_of(trainer, stage, **before)
    assert metrics_of(trainer, stage, **before | {setting: CHANGES[stage][setting]}) != plain


def test_what_the_evaluation_of_a_lifter_gets_is_in_the_line_or_follows_from_it():
    known = {
        "sequences": "data.source, data.detections, data.seed",
        "skeleton": "model.net",
        "evaluated": "model.evaluated, model.root_evaluated",
        "for_test": "adds tables and changes no error",
        "with_pck": "adds metrics and changes no error; follows from data.source",
        "device": "the same sums everywhere",
    }
    assert inspect.signature(LiftEvaluation).parameters.keys() == known.keys()


def test_the_line_says_whether_the_test_split_chose_the_weights():
    loops = {"fit_loop": {"epoch_progress": {"current": {"started": 7}}}}
    for source, warning in ((Human36M("h36m"), "; val is the test split"), (people(), "")):
        content = {"chosen": chosen_by("val/mpjpe_mm", source), "loops": loops}
        assert describe_checkpoint(content) == f"best val/mpjpe_mm (epoch 7){warning}"


def test_sources_whose_validation_split_is_the_test_split_say_so():
    mixed = MixedSource([people(), Coco("coco")], skeleton="COCO17")
    for source in (Human36M("a"), Coco("a"), Mpii("a"), MpiInf3dhp("a"), mixed):
        assert source.val_is_test
        assert re.search("val is test|test is the validation", source.describe())


CONFIGS = [
    path.relative_to(shipped_configs()).with_suffix("").as_posix()
    for path in shipped_configs().rglob("*.yaml")
]
PRESETS = re.compile(r"(lift|heatmap|integral)/(?!.*(_mocap|_small|demo|photos|narrow))")


@pytest.mark.parametrize("name", [name for name in CONFIGS if PRESETS.match(name)])
def test_presets_of_papers_take_the_last_weights(name):
    assert yaml.safe_load((shipped_configs() / f"{name}.yaml").read_text())["weights"] == "last"


@pytest.mark.parametrize("weights", ["best", "last"])
def test_a_fit_tests_its_best_or_its_last_weights(heatlift, tmp_path, weights):
    child = heatlift(*COMMANDS["lift"], "--weights", weights)
    assert child.wait() == 0, child.stderr
    (named,) = re.findall("; weights: (.*)", child.stdout)
    assert re.fullmatch(
        {"best": r"best val/mpjpe_mm \(epoch [1-3]\)", "last": r"last \(epoch 3\)"}[weights], named
    )
    run = tmp_path / "runs" / "lift" / "lift"
    state = read_state(run)
    assert state["checkpoint"] == f"checkpoints/{weights}.ckpt"
    assert state["protocol"].endswith(f"; weights: {named}")
    assert state["protocol"] in (run / "index.html").read_text()
    content = torch.load(run / "checkpoints" / f"{weights}.ckpt", weights_only=True)
    newest = torch.load(sorted((run / "checkpoints").glob("step-*"))[-1], weights_only=True)
    assert "optimizer_states" not in content
    if weights == "last":
        assert same(content["state_dict"], newest["state_dict"])


def test_the_line_names_the_weights(trainer, tmp_path):
    module, data = make("lift")
    plugins = [checkpoints.AtomicCheckpointIO()]
    limits = {"max_steps": 2, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    fitted = trainer(plugins=plugins, **limits)
    module.trainer = fitted
    fitted.datamodule = data
    assert module.protocol("test").endswith("; weights: random")
    fitted.fit(module, datamodule=data)
    assert module.protocol("test").endswith("; weights: step 2")
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    fresh, data = make("lift")
    tester = trainer(plugins=plugins, limit_test_batches=1)
    tester.test(fresh, datamodule=data, ckpt_path=str(tmp_path / "a.ckpt"), verbose=False)
    assert fresh.protocol("test").endswith("; weights: step 2 (epoch 1)")
    started, _ = make("lift", **{"model.pretrained": str(tmp_path / "a.ckpt")})
    started.trainer = tester
    started.setup("test")
    digest = started.origin["pretrained"]["digest"][:12]
    assert started.protocol("test").endswith(f"; weights: checkpoint of lift, digest {digest}")
