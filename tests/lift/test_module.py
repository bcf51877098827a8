import dataclasses
import functools
import json
import os
import re
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from pipeline.errors import HeatliftError, UsageError
from pipeline.files import torch_files
from pipeline.lift import LiftDataModule, LiftModule, Martinez, MixSTE, PoseFormer, VideoPose3D
from pipeline.lift.clips import lift_in_windows
from pipeline.lift.lifter import Lifter
from pipeline.lift.losses import MPJPELoss
from pipeline.lift.sequences import PreparedSequence, exact_joints2d, flip_joints, prepare_sequence
from pipeline.mocap.synthetic import Synthetic
from pipeline.pretrain import PretrainDataModule, PretrainModule
from pipeline.training import checkpoints
from pipeline.weights.importing import import_weights


def net(frames=9, **changes):
    torch.manual_seed(0)
    return MixSTE(frames=frames, dim=16, depth=1, heads=2, drop_path=0.0, **changes)


def source(**changes):
    return Synthetic(1, 1, 1, **{"seconds": 1.0, "actions": ("walk", "wave")} | changes)


class Recorder(nn.Module):
    """Records its input and predicts zeros."""

    skeleton, frames, receptive_field, output = net().skeleton, 4, 1, "every"

    def forward(self, joints2d, visible=None):
        self.joints2d, self.visible = joints2d, visible
        return torch.zeros(*joints2d.shape[:3], 3)


@pytest.mark.parametrize("channels", [2, 3])
def test_joints_that_are_not_visible_are_replaced_by_the_mask_token(channels):
    recorder = Recorder()
    module = LiftModule(recorder)
    with torch.no_grad():
        module.mask_token.copy_(torch.tensor([0.25, -0.5]))
    joints2d = torch.randn(2, 4, 17, channels)
    visible = torch.rand(2, 4, 17) < 0.5
    with_nan = joints2d.clone()
    with_nan[..., :2][~visible] = torch.nan
    module(with_nan, visible)
    assert torch.equal(recorder.joints2d[visible], joints2d[visible])
    assert torch.equal(recorder.joints2d[..., 2:], joints2d[..., 2:])
    assert (recorder.joints2d[..., :2][~visible] == torch.tensor([0.25, -0.5])).all()
    assert torch.equal(recorder.visible, visible)


def test_the_mask_token_learns_where_joints_are_hidden():
    module = LiftModule(net())
    visible = torch.ones(2, 9, 17, dtype=torch.bool)
    visible[0, 3, 4] = False
    module(torch.randn(2, 9, 17, 2), visible).square().sum().backward()
    assert module.mask_token.grad.abs().min() > 0


@pytest.mark.parametrize("frames", [3, 9, 22, 1100])
def test_flip_test_is_the_average_of_clip_and_mirror_image(frames):
    module = LiftModule(net(), flip_test=True).eval()
    joints2d, visible = torch.randn(frames, 17, 2), torch.rand(frames, 17) < 0.8
    with torch.no_grad():
        one = lift_in_windows(module, module.net, joints2d, visible)
        swap = module.net.skeleton.swap
        two = lift_in_windows(
            module, module.net, flip_joints(joints2d, swap), visible[:, list(swap)]
        )
        expected = (one + flip_joints(two, swap)) / 2
        lifted = module.lift(joints2d, visible)
    assert torch.allclose(lifted, expected - expected[:, :1], atol=1e-6)


def test_flip_test_of_a_mirror_image_is_the_mirror_image_of_the_flip_test():
    module = LiftModule(net(), flip_test=True).eval()
    joints2d, visible = torch.randn(11, 17, 2), torch.ones(11, 17, dtype=torch.bool)
    swap = module.net.skeleton.swap
    with torch.no_grad():
        one, two = module.lift(joints2d, visible), module.lift(flip_joints(joints2d, swap), visible)
    assert torch.allclose(flip_joints(one, swap), two, atol=1e-6)


def centre_net():
    torch.manual_seed(0)
    return PoseFormer(frames=5, dim=8, depth=1, heads=2, drop_path=0.0).eval()


@pytest.mark.parametrize("flip_test", [False, True])
def test_a_centre_lifter_predicts_the_frame_subset_as_in_the_whole_clip(flip_test):
    whole = LiftModule(centre_net(), flip_test=flip_test)
    subset = LiftModule(whole.net, flip_test=flip_test, frames="subset")
    joints2d, visible = torch.randn(20, 17, 2), torch.rand(20, 17) < 0.8
    with torch.no_grad():
        expected, is_lifted = whole.lift_for_evaluation(joints2d, visible)
        assert is_lifted.all()
        lifted, is_lifted = subset.lift_for_evaluation(joints2d, visible)
    assert is_lifted.nonzero()[:, 0].tolist() == [0, 1, 16, 17]
    assert torch.allclose(lifted[is_lifted], expected[is_lifted], atol=1e-6)
    assert lifted[~is_lifted].isnan().all()


@pytest.mark.parametrize(
    ("lifter", "changes", "message"),
    [
        (net, {}, "MixSTE lifts all frames of a window at once; set all"),
        (centre_net, {"smooth": 2.0}, "smooth is 2, which needs every frame; set it to 0"),
    ],
)
def test_a_frame_subset_with_smoothing_or_without_a_centre_lifter_is_an_error(
    lifter, changes, message
):
    with pytest.raises(UsageError, match=message):
        LiftModule(lifter(), frames="subset", **changes)


def test_lifted_clips_have_their_root_at_zero():
    module = LiftModule(net(), flip_test=False).eval()
    with torch.no_grad():
        lifted = module.lift(torch.randn(5, 17, 2), torch.ones(5, 17, dtype=torch.bool))
    assert not lifted[:, module.net.skeleton.root].any()


@functools.cache
def eight_clips():
    """Eight clips of embedded people: 2D joints, visibility, 3D joints."""
    clips = []
    for s in Synthetic(1, 1, 1, seconds=1.0).sequences("train")[::3][:8]:
        prepared = prepare_sequence(s, s.skeleton, exact_joints2d(s), np.ones((len(s), 17)))
        clips.append((prepared.joints2d[:9], prepared.visible[:9], prepared.joints3d[:9]))
    joints2d, visible, joints3d = (
        torch.from_numpy(np.stack(arrays)) for arrays in zip(*clips, strict=True)
    )
    return joints2d, visible, joints3d


@pytest.mark.parametrize("stage", ["lift", "pretrain"])
def test_eight_clips_are_memorised(stage):
    torch.manual_seed(1)
    joints2d, visible, joints3d = eight_clips()
    centre = joints3d[:, 4:5]
    if stage == "lift":
        module = LiftModule(VideoPose3D(widths=(3, 3), channels=128, dropout=0.0))
    else:  # a lifter that predicts every frame
        module = PretrainModule(Martinez(width=256, dropout=0.0))
        joints2d, visible = joints2d[:, 4:5], visible[:, 4:5]
    optimizer, loss = torch.optim.AdamW(module.parameters(), lr=5e-3), MPJPELoss()
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 150)
        optimizer.zero_grad()
        error = loss(module(joints2d, visible), centre)
        error.backward()
        optimizer.step()
    assert loss(centre.mean(0, keepdim=True).expand_as(centre), centre) > 0.15
    assert error < 0.005


def fit_two_steps(trainer, module, data, **changes):
    """The Trainer, after two optimizer steps."""
    fitted = trainer(max_steps=2, limit_val_batches=1, num_sanity_val_steps=0, **changes)
    fitted.fit(module, datamodule=data)
    return fitted


def test_pretrained_weights_start_the_lifter_and_its_checkpoint_needs_no_other_file(
    trainer, tmp_path
):
    path = tmp_path / "pretrained.ckpt"
    pretrained = PretrainModule(net())
    data = PretrainDataModule(source(), batch_size=4)
    fit_two_steps(trainer, pretrained, data).save_checkpoint(path)
    module = LiftModule(net(), pretrained=str(path))
    with torch.no_grad():
        module.mask_token.fill_(9.0)
    module.trainer = trainer()
    module.setup("fit")
    assert torch.equal(module.mask_token, pretrained.mask_token)
    expected, loaded = pretrained.net.state_dict(), module.net.state_dict()
    assert all(torch.equal(expected[name], loaded[name]) for name in expected)
    report = module.origin["pretrained"]
    assert len(report["digest"]) == 64
    assert set(report["loaded"]) >= {"mask_token", *(f"net.{name}" for name in expected)}
    assert str(path) not in str(report)


def test_weights_of_another_network_are_an_error_and_change_nothing(trainer, tmp_path):
    path = tmp_path / "other.ckpt"
    other = PretrainModule(net(frames=5))
    fit_two_steps(trainer, other, PretrainDataModule(source())).save_checkpoint(path)
    module = LiftModule(net(), pretrained=str(path))
    before = checkpoints.weights_digest(module)
    module.trainer = trainer()
    with pytest.raises(HeatliftError, match="Temporal_pos_embed"):
        module.setup("fit")
    assert checkpoints.weights_digest(module) == before


@pytest.fixture
def no_images(monkeypatch):
    """Without images, whose drawing takes most of the time of a short test."""
    monkeypatch.setattr("pipeline.dashboard.panels.log_lift_panels", lambda *_, **__: None)


STAGES = [(LiftModule, LiftDataModule), (PretrainModule, PretrainDataModule)]


def metrics_of_test(trainer, module, data_class, **changes):
    """Metrics of a test over two batches."""
    tester = trainer(plugins=[checkpoints.AtomicCheckpointIO()], limit_test_batches=2)
    return tester.test(module, data_class(source()), verbose=False, **changes)[0]


@pytest.mark.usefixtures("no_images")
@pytest.mark.parametrize(("module_class", "data_class"), STAGES)
def test_pretrained_weights_have_the_test_metrics_of_their_checkpoint(
    trainer, tmp_path, module_class, data_class
):
    path = tmp_path / "source.ckpt"
    fit_two_steps(trainer, module_class(net()), data_class(source())).save_checkpoint(path)
    expected = metrics_of_test(trainer, module_class(net()), data_class, ckpt_path=str(path))
    pretrained = module_class(net(), pretrained=str(path))
    assert metrics_of_test(trainer, pretrained, data_class) == expected
    untrained = metrics_of_test(trainer, module_class(net()), data_class)
    assert untrained["test/mpjpe_mm"] != pytest.approx(expected["test/mpjpe_mm"], rel=1e-6)


@pytest.mark.usefixtures("no_images")
def test_an_imported_file_is_tested_without_a_mean_pose(trainer, tmp_path):
    published = net()
    torch.nn.init.constant_(published.head[1].bias, 0.25)
    torch.save({"state_dict": published.state_dict()}, tmp_path / "published.bin")
    import_weights(tmp_path / "published.bin", "mixste", tmp_path / "imported.ckpt")
    expected = metrics_of_test(trainer, LiftModule(published), LiftDataModule)
    module = LiftModule(net(), pretrained=str(tmp_path / "imported.ckpt"))
    imported = metrics_of_test(trainer, module, LiftDataModule)
    assert imported == expected
    assert "test/mpjpe_mm" in imported
    assert "test/of_mean_pose" not in imported


@pytest.mark.usefixtures("no_images")
@pytest.mark.parametrize(("module_class", "data_class"), STAGES)
@pytest.mark.parametrize("resumed", [False, True])
def test_a_test_after_a_fit_keeps_the_trained_weights(
    trainer, tmp_path, module_class, data_class, resumed
):
    path = tmp_path / "source.ckpt"
    fit_two_steps(trainer, module_class(net()), data_class(source())).save_checkpoint(path)
    module = module_class(net(), pretrained=str(path))
    longer = trainer(
        max_steps=4,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        plugins=[checkpoints.AtomicCheckpointIO()],
    )
    longer.fit(module, data_class(source()), ckpt_path=str(path) if resumed else None)
    before = checkpoints.weights_digest(module.net)
    metrics_of_test(trainer, module, data_class)
    assert checkpoints.weights_digest(module.net) == before
    assert before != checkpoints.weights_digest(
        {
            name.removeprefix("net."): value
            for name, value in torch_files.read_checkpoint(path)["state_dict"].items()
            if name.startswith("net.")
        }
    )


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_weights_of_a_part_of_a_network_can_be_trained_but_not_evaluated(trainer, tmp_path, stage):
    weights = LiftModule(net()).state_dict()
    weights.pop("net.head.1.bias")
    torch.save({"state_dict": weights, "heatlift": {"stage": "lift"}}, tmp_path / "part.ckpt")
    module = LiftModule(net(), pretrained=str(tmp_path / "part.ckpt"))
    before = checkpoints.weights_digest(module)
    with pytest.raises(
        UsageError, match=r"only a part of this network, without net\.head\.1\.bias; train"
    ):
        getattr(trainer(), stage)(module, LiftDataModule(source()))
    assert checkpoints.weights_digest(module) == before
    module.trainer = trainer()
    module.setup("fit")
    assert module.origin["pretrained"]["kept"] == ["net.head.1.bias"]


def test_a_z_scored_lifter_gets_the_statistics_of_the_training_split(trainer):
    module, data = LiftModule(Martinez(width=32), loss=MPJPELoss()), LiftDataModule(source())
    fit_two_steps(trainer, module, data)
    expected = data.statistics()
    assert torch.equal(module.mean_pose, expected.mean3d)
    assert torch.equal(module.net.mean2d, expected.mean2d)
    assert module.net.deviation3d[0].tolist() == [1.0, 1.0, 1.0]


class UnequalSequences:
    """Five sequences of different lengths, so that no two processes have the same work."""

    skeleton = net().skeleton

    def describe(self):
        return "five sequences of different lengths"

    def sequences(self, split):
        whole = Synthetic(1, 1, 1, seconds=2.0, actions=("walk", "wave")).sequences("test")[:5]
        lengths = [7, 31, 12, 45, 50]
        return [
            dataclasses.replace(s, joints3d=s.joints3d[:n])
            for s, n in zip(whole, lengths, strict=True)
        ]


class FlatLifter(Lifter):
    """Predicts its 2D input at depth 0, for the centre frame."""

    frames = receptive_field = 1
    output = "centre"

    def forward(self, joints2d, visible=None):
        return nn.functional.pad(joints2d, (0, 1))


class DriftingWrists(LiftDataModule):
    """The wrist of one sequence moves by 1 mm per frame in depth, that of another by 2 mm."""

    def _prepare(self, split):
        sequence = self.source.sequences(split)[0]
        prepared = []
        for group, frames, speed in (("seen", 18, 0.001), ("unseen", 17, 0.002)):
            joints2d = np.random.default_rng(0).uniform(-1, 1, (1, 17, 2)).astype(np.float32)
            joints3d = np.pad(joints2d - joints2d[:, :1], [(0, frames - 1), (0, 0), (0, 1)], "edge")
            joints3d[..., 2] = 0.0
            joints3d[:, 13, 2] = speed * np.arange(frames)
            valid = np.ones(frames, bool)
            valid[1] = group == "seen"
            grouped = dataclasses.replace(sequence, group=group)
            visible = np.ones((frames, 17), bool)
            prepared.append(
                PreparedSequence(
                    grouped,
                    joints2d.repeat(frames, 0),
                    visible,
                    joints3d,
                    valid,
                    visible.astype(np.float32),
                )
            )
        return prepared


@pytest.mark.parametrize("frames", ["all", "subset"])
def test_errors_on_the_frame_subset_are_those_worked_out_by_hand(trainer, frames):
    module = LiftModule(FlatLifter(), flip_test=False, frames=frames)
    tester = trainer()
    tester.test(module, datamodule=DriftingWrists(source()), verbose=False)
    metrics = {name: float(value) for name, value in tester.callback_metrics.items()}
    # Frames 0, 1, 16 and 17; and 0 and 16 of the other sequence, whose frame 1 is not valid.
    assert metrics["test/subset_mpjpe_seen_mm"] == pytest.approx((0 + 1 + 16 + 17) / 4 / 17)
    assert metrics["test/subset_mpjpe_unseen_mm"] == pytest.approx((0 + 32) / 2 / 17)
    assert metrics["test/subset_mpjpe_mm"] == pytest.approx((34 + 32) / 6 / 17)
    assert metrics["test/subset_mpjve_mm"] == pytest.approx(1 / 17)
    every = (sum(range(18)) + 2 * (sum(range(17)) - 1)) / 34 / 17
    expected = every if frames == "all" else (34 + 32) / 6 / 17
    assert metrics["test/mpjpe_mm"] == pytest.approx(expected)
    assert ("test/acceleration_mm" in metrics) == (frames == "all")
    counted = "every valid frame" if frames == "all" else "valid frames 0 and 1 of every 16"
    assert f"flip test off; not smoothed; {counted}; once each" in module.protocol("test")
    module.smooth = 1.5
    assert "smoothed (Gaussian of 1.5 frames, +-5)" in module.protocol("test")


def test_a_test_may_change_what_the_table_of_the_protocol_lists():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    table = text.partition("may use other values than its training:")[2].partition("\nA fit")[0]
    listed = {
        name.removeprefix("--model.") for name in re.findall(r"^\| `(--model\.\w+)`", table, re.M)
    }
    assert listed
    assert listed == set(LiftModule.test_settings)


class KnownErrors(DriftingWrists):
    """Twenty sequences whose wrist has a known error in valid frames and another in invalid ones.

    Attributes:
        errors: Error of the wrist in valid frames, millimetres.
    """

    errors = (3, 9, 4, 1, 20, 2, 5, 7, 6, 8, 30, 11, 14, 12, 13, 15, 16, 25, 17, 10)

    def _prepare(self, split):
        template, prepared = super()._prepare(split)[0], []
        for number, error in enumerate(self.errors):
            joints3d, valid = template.joints3d.copy(), template.valid.copy()
            joints3d[:, 13, 2] = error / 1000
            valid[9:] = False
            joints3d[9:, 13, 2] = (100 - error) / 1000
            named = dataclasses.replace(template.sequence, name=f"sequence {number}")
            prepared.append(
                dataclasses.replace(template, sequence=named, joints3d=joints3d, valid=valid)
            )
        return prepared


def test_the_clips_shown_have_the_largest_the_middle_and_the_smallest_evaluated_errors(
    trainer, monkeypatch
):
    shown = []
    monkeypatch.setattr(
        "pipeline.dashboard.panels.log_lift_panels", lambda _, clips, *__: shown.extend(clips)
    )
    module = LiftModule(FlatLifter(), flip_test=False, evaluated=16, root_evaluated=False)
    trainer().test(module, datamodule=KnownErrors(source()), verbose=False)
    assert [clip.name for clip in shown] == [f"sequence {i}" for i in (10, 17, 4, 19, 0, 5, 3)]
    errors = [30, 25, 20, 10, 3, 2, 1]  # of the wrist, one of 15 evaluated joints
    assert [clip.error for clip in shown] == pytest.approx([error / 15 for error in errors])


def results_of_a_test(trainer):
    """Metrics of a test by name, and errors of the clips shown by the names of the clips."""
    module, shown = LiftModule(net(), flip_test=False), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pipeline.dashboard.panels.log_lift_panels", lambda _, clips, *__: shown.extend(clips)
        )
        trainer.test(module, datamodule=LiftDataModule(UnequalSequences(), "noisy"), verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return metrics | {clip.name: clip.error for clip in shown}


def run_rank(rank, folder):
    """Test as one process of two; rank 0 writes the results."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
    strategy = DDPStrategy(init_method=f"file://{folder}/meet", process_group_backend="gloo")
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "use_distributed_sampler": False}
    tester = pl.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, default_root_dir=folder, **settings
    )
    tester.strategy.cluster_environment = TorchElasticEnvironment()
    results = results_of_a_test(tester)
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(results))


def test_errors_of_two_processes_are_those_of_one(trainer, tmp_path, monkeypatch):
    alone = results_of_a_test(trainer())
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(20_000 + os.getpid() % 20_000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads, Python 3.12
        torch.multiprocessing.start_processes(run_rank, (tmp_path,), nprocs=2, start_method="fork")
    together = json.loads((tmp_path / "results.json").read_text())
    assert together == pytest.approx(alone, rel=1e-6)
    assert alone["test/mpjpe_mm"] > 10
    assert len([name for name in alone if "/" not in name]) == 5  # the clips of both ranks
