"""Numbers of a test of a lifter, worked out by hand, for each way to evaluate."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import DataError, UsageError
from pipeline.lift import LiftDataModule, LiftModule, Martinez, VideoPose3D
from pipeline.lift.lifter import Lifter
from pipeline.lift.sequences import PreparedSequence
from pipeline.metrics.motion_table import QUANTITIES
from pipeline.mocap.synthetic import Synthetic
from pipeline.pretrain import PretrainDataModule, PretrainModule

WRIST = 13


class StillPeople(LiftDataModule):
    """People who stand still, their pelvis at the centre of the image and all joints at depth 0.

    Args:
        lengths: Number of frames of each sequence.
    """

    def __init__(self, *lengths):
        super().__init__(Synthetic(1, 1, 1, seconds=1.0, actions=("walk",)))
        self.lengths = lengths

    def _prepare(self, split):
        sequence = self.source.sequences(split)[0]
        joints2d = np.random.default_rng(0).uniform(-1, 1, (1, 17, 2)).astype(np.float32)
        joints2d[:, 0] = 0.0
        prepared = []
        for number, frames in enumerate(self.lengths):
            named = dataclasses.replace(sequence, name=f"person {number}")
            clip = joints2d.repeat(frames, 0)
            visible, valid = np.ones((frames, 17), bool), np.ones(frames, bool)
            target = np.pad(clip, [(0, 0), (0, 0), (0, 1)])
            prepared.append(
                PreparedSequence(named, clip, visible, target, valid, visible * np.float32(1))
            )
        return prepared


class RootOff(Lifter):
    """Predicts its 2D input at depth 0, with the root off by 3, 4 and 12 mm: 13 mm."""

    frames = receptive_field = 1
    output = "centre"

    def forward(self, joints2d, visible=None):
        lifted = nn.functional.pad(joints2d, (0, 1))
        lifted[:, :, 0] += torch.tensor([0.003, 0.004, 0.012])
        return lifted


class WorseAndWorse(Lifter):
    """Predicts windows of 4 frames; in frame t of a window the wrist is off by t + 1 mm."""

    frames = receptive_field = 4
    output = "every"

    def forward(self, joints2d, visible=None):
        lifted = nn.functional.pad(joints2d, (0, 1))
        lifted[:, :, WRIST, 2] += 0.001 * torch.arange(1.0, 5.0)
        return lifted


@pytest.fixture(autouse=True)
def no_images(monkeypatch):
    """Without images, whose drawing takes most of the time of a short test."""
    monkeypatch.setattr("pipeline.dashboard.panels.log_lift_panels", lambda *_, **__: None)


def metrics_of(trainer, module, *lengths):
    """Metrics of a test on sequences of these lengths."""
    tester = trainer()
    tester.test(module, datamodule=StillPeople(*lengths), verbose=False)
    return {name: float(value) for name, value in tester.callback_metrics.items()}


@pytest.mark.parametrize(
    ("reroot", "root_evaluated", "error"),
    [(True, True, 13 * 16 / 17), (False, True, 13 / 17), (True, False, 13), (False, False, 0)],
)
def test_a_predicted_root_is_moved_to_zero_or_evaluated_as_it_is(
    trainer, reroot, root_evaluated, error
):
    module = LiftModule(RootOff(), flip_test=False, reroot=reroot, root_evaluated=root_evaluated)
    metrics = metrics_of(trainer, module, 5)
    for name in ("test/mpjpe_mm", "test/mpjpe_action_mean_mm", "test/subset_mpjpe_mm"):
        assert metrics[name] == pytest.approx(error, abs=1e-4)
    assert ("re-rooted" in module.protocol("test")) == reroot
    assert ("predicted root kept" in module.protocol("test")) != reroot


@pytest.mark.parametrize("reroot", [True, False])
def test_the_clips_shown_are_as_they_are_evaluated_and_predictions_have_their_root_at_zero(
    trainer, monkeypatch, reroot
):
    shown = []
    monkeypatch.setattr(
        "pipeline.dashboard.panels.log_lift_panels", lambda _, clips, *__: shown.extend(clips)
    )
    module = LiftModule(RootOff(), flip_test=False, reroot=reroot)
    metrics_of(trainer, module, 5)
    expected = np.zeros(3) if reroot else [0.003, 0.004, 0.012]
    assert shown[0].predicted[2, 0] == pytest.approx(expected, abs=1e-7)
    batch = {"joints2d": torch.rand(1, 5, 17, 2), "visible": torch.ones(1, 5, 17).bool()}
    assert not module.predict_step(batch, 0)[:, 0].any()


def test_flip_test_and_smoothing_keep_the_predicted_root():
    module = LiftModule(RootOff(), flip_test=True, reroot=False, smooth=1.5)
    joints2d, visible = torch.zeros(7, 17, 2), torch.ones(7, 17).bool()
    lifted, _ = module.lift_for_evaluation(joints2d, visible)
    # x of the mirror image is negated, so the average has x = 0.
    assert lifted[3, 0].tolist() == pytest.approx([0.0, 0.004, 0.012], abs=1e-7)


def test_all_frames_of_all_windows_count_as_in_the_code_of_mixste(trainer):
    """Windows of 6 frames: 0-3 and 2-5; 3 frames are padded to one window of 4."""
    once = metrics_of(trainer, LiftModule(WorseAndWorse(), flip_test=False), 6, 3)
    assert once["test/mpjpe_mm"] == pytest.approx((10 + 3 + 4 + 6) / 9 / 17, rel=1e-4)
    assert once["test/mpjve_mm"] == pytest.approx(1 / 17, rel=1e-4)
    module = LiftModule(WorseAndWorse(), flip_test=False, overlap="mixste")
    metrics = metrics_of(trainer, module, 6, 3)
    assert module.report.rows[0].frames == 4 + 4 + 4
    assert metrics["test/mpjpe_mm"] == pytest.approx((10 + 10 + 10) / 12 / 17, rel=1e-4)
    # From 4 mm at the end of a window to 1 mm at the start of the next; never between sequences.
    assert metrics["test/mpjve_mm"] == pytest.approx((3 + 3 + 3 + 3) / 10 / 17, rel=1e-4)
    # The frame subset, frames 0 and 1 of each sequence, has every frame once.
    assert metrics["test/subset_mpjpe_mm"] == pytest.approx((1 + 2 + 1 + 2) / 4 / 17, rel=1e-4)


def test_a_sequence_of_whole_windows_has_the_same_number_once_and_as_in_mixstes_code(trainer):
    modules = [
        LiftModule(WorseAndWorse(), flip_test=False, overlap=overlap)
        for overlap in ("once", "mixste")
    ]
    one, other = (metrics_of(trainer, module, 8) for module in modules)
    assert one == other


def test_blended_windows_overlap_by_half_and_weigh_a_frame_by_its_place(trainer):
    """Windows of 6 frames: 0-3 and 2-5, with weights 1, 2, 2, 1 and errors 1, 2, 3, 4 mm."""
    module = LiftModule(WorseAndWorse(), flip_test=False, overlap="blend")
    metrics = metrics_of(trainer, module, 6)
    frames = [1, 2, (2 * 3 + 1 * 1) / 3, (1 * 4 + 2 * 2) / 3, 3, 4]
    assert metrics["test/mpjpe_mm"] == pytest.approx(sum(frames) / 6 / 17, rel=1e-4)
    assert module.report.rows[0].frames == 6


@pytest.mark.parametrize("overlap", ["mixste", "blend"])
def test_lifters_of_single_frames_have_no_windows_that_overlap(overlap):
    with pytest.raises(UsageError, match=f"overlap is {overlap}, but VideoPose3D has no windows"):
        LiftModule(VideoPose3D(widths=[3], channels=8), overlap=overlap)


def test_smoothing_over_repeated_frames_is_an_error():
    with pytest.raises(UsageError, match="overlap is mixste, but smooth is 2"):
        LiftModule(WorseAndWorse(), overlap="mixste", smooth=2.0)


@pytest.mark.parametrize(
    ("lengths", "known"),
    [
        ((1, 1, 1), ["mpjpe", "p_mpjpe", "n_mpjpe"]),
        ((2, 1, 2), ["mpjpe", "p_mpjpe", "n_mpjpe", "mpjve"]),
        ((3, 1), ["mpjpe", "p_mpjpe", "n_mpjpe", "mpjve", "acceleration"]),
    ],
)
def test_single_images_have_no_metrics_of_motion(trainer, lengths, known, capsys):
    metrics = metrics_of(trainer, LiftModule(RootOff(), flip_test=False), *lengths)
    assert all(math.isfinite(value) for value in metrics.values())
    of_all = [name for name in QUANTITIES if f"test/{name}_mm" in metrics]
    assert of_all == known
    assert [name for name in QUANTITIES if f"test/{name}_action_mean_mm" in metrics] == known
    assert [name for name in QUANTITIES if f"test/mean_pose_{name}_mm" in metrics] == []
    assert [name for name in QUANTITIES if f"test/subset_{name}_mm" in metrics] == known[:4]
    assert "nan" not in capsys.readouterr().out


def test_a_network_that_predicts_nan_has_nan_as_its_error(trainer):
    class Broken(RootOff):
        factor = 1.0

        def forward(self, joints2d, visible=None):
            return super().forward(joints2d) * self.factor

    module = LiftModule(Broken(), flip_test=False)
    module.net.factor = math.nan
    metrics = metrics_of(trainer, module, 1, 1)
    assert math.isnan(metrics["test/mpjpe_mm"])
    assert "test/mpjve_mm" not in metrics


def test_a_split_without_a_valid_frame_is_an_error(trainer):
    class Invalid(StillPeople):
        def _prepare(self, split):
            prepared = super()._prepare(split)
            return [dataclasses.replace(p, valid=np.zeros(len(p.valid), bool)) for p in prepared]

    module = LiftModule(RootOff(), flip_test=False)
    with pytest.raises(DataError, match="no frame of its test split can be evaluated"):
        trainer().test(module, datamodule=Invalid(4), verbose=False)


def test_pretraining_of_single_frames_has_no_metrics_of_motion(trainer, monkeypatch):
    monkeypatch.setattr("pipeline.dashboard.panels.log_pretrain_panels", lambda *_, **__: None)
    tester = trainer(limit_test_batches=1)
    source = Synthetic(1, 1, 1, seconds=1.0, actions=("walk",))
    tester.test(PretrainModule(Martinez(width=8)), PretrainDataModule(source), verbose=False)
    assert set(tester.callback_metrics) == {"test/mpjpe_mm", "test/n_mpjpe_mm"}
