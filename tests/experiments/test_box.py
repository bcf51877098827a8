"""`heatlift box`: a tiny training is packed, measured, and used by `predict`."""

import json
import re

import numpy as np
import pytest
import torch

from pipeline import Heatlift
from pipeline.__main__ import main
from pipeline.errors import DataError
from pipeline.experiments import box
from pipeline.experiments.box_rows import (
    PLAIN,
    BoxReport,
    compare,
    field_of_view,
    height_of,
    lift_part,
    make_row,
    pitch_of,
)
from pipeline.files.digests import file_digest
from pipeline.lift import LiftModule, MixSTE
from pipeline.lift.any_video import AnyVideo
from pipeline.mocap.synthetic import Synthetic
from pipeline.predict.heatlift import find_lifter
from pipeline.skeleton import H36M17
from pipeline.training.checkpoints import load_module, weights_digest
from pipeline.weights import box_lifter

TINY = {
    "data.source": {
        "class_path": "pipeline.mocap.Synthetic",
        "init_args": {"train": 1, "val": 1, "test": 1, "seconds": 1.0, "actions": ["walk"]},
    },
    "data.video.init_args.also": None,
    "data.video.init_args.rate": 50.0,
    "model.net.init_args.net.init_args": {"frames": 3, "dim": 16, "depth": 1, "heads": 2},
    "trainer.max_steps": 2,
}


@pytest.fixture(autouse=True)
def one_recording(monkeypatch, tmp_path):
    people = Synthetic(train=1, val=1, test=1, seconds=2.0, actions=("walk", "wave"))
    monkeypatch.setattr(box, "test_sequences", lambda root: people.sequences("test"))
    monkeypatch.setattr(box, "find_weights", lambda name: None)
    monkeypatch.setenv("HEATLIFT_RUN", "")
    monkeypatch.delenv("HEATLIFT_RUN")
    monkeypatch.setenv("HEATLIFT_WEIGHTS", str(tmp_path / "weights"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A tiny lifter in the place of the one in the box."""
    torch.manual_seed(3)
    module = LiftModule(MixSTE(frames=9, dim=16, depth=1, heads=2, spread=0.5))
    module.trained_rate = 25.0
    net = {"frames": 9, "dim": 16, "depth": 1, "heads": 2, "spread": 0.5}
    settings = {
        "net": {"class_path": "pipeline.lift.MixSTE", "init_args": net},
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    }
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": settings,
        "heatlift": {"stage": "lift", "format": 1, "origin": {}, "frame_rate": 25.0},
        "optimizer_states": [{"state": {0: torch.zeros(1000)}}],
    }
    torch.save(content, tmp_path / "run.ckpt")
    monkeypatch.setattr(box_lifter, "BOX", tmp_path / "package")
    return box_lifter.pack_lifter(tmp_path / "run.ckpt", tmp_path / "package"), module


@pytest.mark.slow
def test_a_training_of_two_steps_is_packed_measured_and_not_repeated(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    also = " ".join(f"--{name}='{json.dumps(value)}'" for name, value in TINY.items())
    command = ["box", "train", "--runs", "runs", "--out", "out", "--docs", "docs", f"--also={also}"]
    assert main(command) == 0, capsys.readouterr().err
    weights, card = tmp_path / "out" / box_lifter.FILE, tmp_path / "out" / "MODEL_CARD.md"
    digest = file_digest(weights)
    assert box_lifter.box_digest(tmp_path / "out") == digest
    assert digest in card.read_text()
    assert "NSF EIA-0196217" in card.read_text()
    page = (tmp_path / "docs" / "box.md").read_text()
    for name in ("COCO17", "field of view not known", "x 1.5", "Aims", "left_wrist", "walk"):
        assert name in page
    assert "/work" not in page + card.read_text()
    assert "MixSTE in StridedLifter" in card.read_text()
    assert torch.get_num_threads() == 1
    capsys.readouterr()
    assert main(command) == 0
    assert "finished: " in capsys.readouterr().out
    assert file_digest(weights) == digest
    assert len([*(tmp_path / "runs" / "lift").glob("*")]) == 1


def test_the_packed_lifter_is_the_trained_one_without_what_only_training_needs(packed, tmp_path):
    path, module = packed
    loaded = load_module(path, (LiftModule,))
    assert weights_digest(loaded) == weights_digest(module)
    assert loaded.trained_rate == 25.0
    assert "optimizer_states" not in torch.load(path, weights_only=True)
    line = path.with_name(f"{path.name}.sha256").read_text()
    assert re.fullmatch(rf"[0-9a-f]{{64}}  {re.escape(path.name)}\n", line)
    again = box_lifter.pack_lifter(tmp_path / "run.ckpt", tmp_path / "again")
    assert file_digest(again) == file_digest(path)


def test_predict_uses_the_lifter_in_the_box_where_none_is_named(packed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, module = packed
    assert find_lifter() == path
    heatlift = Heatlift.load(device="cpu")
    assert weights_digest(heatlift.lifter) == weights_digest(module)
    with pytest.raises(DataError, match="runs/lift: no trained lifter in this folder yet"):
        Heatlift.load("newest", device="cpu")
    path.unlink()
    with pytest.raises(DataError, match="runs/lift: no trained lifter in this folder yet"):
        find_lifter()


def test_a_damaged_lifter_in_the_box_is_named(packed, capsys):
    path, _ = packed
    content = bytearray(path.read_bytes())
    content[-3000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{box_lifter.FILE}: is damaged .* install heatlift again"):
        find_lifter()
    assert main(["weights", "verify"]) == 4
    assert "mixste-box" in capsys.readouterr().err


def test_weights_lists_the_lifter_in_the_box_with_its_licence(packed, capsys):
    assert main(["weights", "ls"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "mixste-box" in line)
    assert "there" in row
    assert "not there" not in row
    assert "Apache-2.0" in row


def test_what_is_no_lifter_or_too_large_is_not_packed(packed, tmp_path, monkeypatch):
    torch.save({"state_dict": {}, "heatlift": {"stage": "heatmap"}}, tmp_path / "other.ckpt")
    with pytest.raises(DataError, match="is of stage heatmap; give the checkpoint of a lifter"):
        box_lifter.pack_lifter(tmp_path / "other.ckpt", tmp_path / "out")
    monkeypatch.setattr(box_lifter, "LARGEST", 1000)
    with pytest.raises(DataError, match="more than 1,000; train a smaller lifter"):
        box_lifter.pack_lifter(tmp_path / "run.ckpt", tmp_path / "out")
    assert not (tmp_path / "out" / box_lifter.FILE).exists()


def part():
    video = AnyVideo(**PLAIN, joint_sets=("H36M17",), height=(0.4, 0.5), aim=0.3)
    people = Synthetic(train=1, val=1, test=1, seconds=2.0, actions=("walk",))
    return video.record(people.sequences("test")[0], 0, 0)[0]


def test_errors_are_those_of_root_relative_joints_in_the_camera_frame():
    seen = part()
    truth = seen.joints3d - seen.joints3d[:, :1]
    shifted = seen.joints3d * 1.0
    shifted[:, H36M17.index("head")] += [0.0, 0.03, 0.04]
    errors = compare(seen, shifted)
    row = make_row("table", "name", [errors])
    assert row.mpjpe == pytest.approx(50 / 17)
    assert errors.joints[:, H36M17.index("head")] == pytest.approx(50.0)
    larger = make_row("table", "name", [compare(seen, 1.2 * truth)])
    assert larger.mpjpe == pytest.approx(200 * np.linalg.norm(truth, axis=-1).mean())
    assert larger.n_mpjpe == pytest.approx(0, abs=1e-6)
    gone = seen.joints3d * 1.0
    gone[:5] = np.nan
    assert make_row("table", "name", [compare(seen, gone)]).lifted == pytest.approx(
        1 - 5 / len(gone)
    )


def test_a_part_is_lifted_in_the_frame_of_its_camera(packed):
    _, module = packed
    seen = part()
    lifted = lift_part(module.eval(), seen)
    assert lifted.shape == seen.joints3d.shape
    assert np.isfinite(lifted).all()
    assert np.abs(lifted[:, 0]).max() < 1e-9


def test_properties_of_a_camera_are_read_back_from_a_part():
    video = AnyVideo(
        **PLAIN, joint_sets=("H36M17",), height=(0.4, 0.4), aim=0.0, pitch=(-20, -20), fov=(50, 50)
    )
    people = Synthetic(train=1, val=1, test=1, seconds=1.0, actions=("wave",))
    seen = video.record(people.sequences("test")[0], 0, 0)[0]
    assert pitch_of(seen) == pytest.approx(-20)
    assert field_of_view(seen) == pytest.approx(50)
    assert height_of(seen) == pytest.approx(0.4, rel=0.05)


def test_all_rows_have_the_same_cameras(packed):
    _, module = packed
    people = Synthetic(train=1, val=1, test=1, seconds=1.0, actions=("wave",)).sequences("test")
    report = BoxReport(module.eval(), people)
    one, two = report.record(), report.record(joint_sets=("COCO17",), clean=0.0, noise=(1.0, 1.0))
    assert [p.camera.rotation.tolist() for p in one] == [p.camera.rotation.tolist() for p in two]
    assert one[0].joints3d == pytest.approx(two[0].joints3d)


def test_the_shipped_lifter_is_the_one_of_its_card_and_lifts_unknown_people():
    path = box_lifter.BOX / box_lifter.FILE
    card = (box_lifter.BOX / box_lifter.CARD).read_text()
    assert path.stat().st_size < 5e6
    assert find_lifter() == path
    assert f"SHA-256 of the file {file_digest(path)}" in card
    module = load_module(path, (LiftModule,))
    assert weights_digest(module) in card
    people = Synthetic(train=1, val=1, test=2, seconds=2.0, seed=5).sequences("test")[::4]
    video = AnyVideo(**PLAIN, joint_sets=("COCO17",), height=(0.3, 0.6), aim=0.3)
    parts = [part for n, s in enumerate(people) for part in video.record(s, n, 0)]
    errors = [compare(part, lift_part(module.eval(), part)) for part in parts]
    assert make_row("table", "name", errors).mpjpe < 70
