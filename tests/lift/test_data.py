import dataclasses
import functools

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from pipeline.camera import project, world_to_camera
from pipeline.errors import DataError, UsageError
from pipeline.lift import LiftDataModule, LiftModule, MixSTE, VideoPose3D
from pipeline.lift.augmentation import RerenderedWindows, rerender
from pipeline.lift.lifter import Lifter
from pipeline.lift.sequences import exact_joints2d, flip_joints, prediction_facts, prepare_sequence
from pipeline.lift.windows import TrainingWindows
from pipeline.mocap.synthetic import Synthetic
from pipeline.skeleton import H36M17
from pipeline.training.loader import make_loader

ROOT = H36M17.root


def lifter(output="every", frames=5):
    net = Lifter()
    net.output, net.frames, net.receptive_field = output, frames, frames
    return net


@functools.cache
def sequences():
    return Synthetic(1, 1, 1, seconds=1.0, actions=("walk", "wave")).sequences("train")


def numbered_sequences(seqs=None):
    """Prepared sequences whose 2D is 1000 times the sequence number plus the frame number."""
    numbered = []
    for n, s in enumerate(seqs or sequences()):
        number = 1000.0 * n + np.arange(len(s))
        prepared = prepare_sequence(s, H36M17, exact_joints2d(s), np.ones((len(s), 17)))
        numbers = np.broadcast_to(number[:, None, None], prepared.joints2d.shape)
        numbered.append(dataclasses.replace(prepared, joints2d=numbers.astype(np.float32)))
    return numbered


def windows(seqs=None, net=None, **changes):
    options = {"step": 2, "flip": False, "seed": 3} | changes
    return TrainingWindows(numbered_sequences(seqs), net or lifter(), **options)


def test_prepared_sequences_hold_normalised_2d_and_root_relative_metres_in_the_camera_frame():
    s = sequences()[1]
    prepared = prepare_sequence(s, H36M17, exact_joints2d(s), np.ones((len(s), 17)))
    in_camera = world_to_camera(s.joints3d, s.camera)
    assert np.allclose(prepared.joints3d, in_camera - in_camera[:, ROOT, None], atol=1e-6)
    width, height = s.camera.size
    pixels = project(in_camera, s.camera)
    x, y = prepared.joints2d[..., 0], prepared.joints2d[..., 1]
    assert np.allclose(x, pixels[..., 0] / width * 2 - 1, atol=1e-6)
    assert np.allclose(y, pixels[..., 1] / width * 2 - height / width, atol=1e-6)


def test_a_joint_without_position_or_score_is_not_visible_and_holds_zeros():
    s = sequences()[0]
    joints2d, score = exact_joints2d(s), np.ones((len(s), 17))
    joints2d[2, 5] = np.nan
    score[3, 6] = 0.0
    prepared = prepare_sequence(s, H36M17, joints2d, score)
    assert np.argwhere(~prepared.visible).tolist() == [[2, 5], [3, 6]]
    assert not prepared.joints2d[~prepared.visible].any()


def test_3d_that_is_not_finite_is_an_error_unless_its_frame_is_marked():
    s = sequences()[0]
    broken = s.joints3d.copy()
    broken[4, 2] = np.nan
    bad = dataclasses.replace(s, joints2d=exact_joints2d(s).astype(np.float32), joints3d=broken)
    with pytest.raises(DataError, match="frame 4 has a 3D joint that is not finite"):
        prepare_sequence(bad, H36M17, bad.joints2d, np.ones((len(s), 17)))
    marked = dataclasses.replace(bad, valid=np.arange(len(s)) != 4)
    assert not prepare_sequence(marked, H36M17, bad.joints2d, np.ones((len(s), 17))).valid[4]


@pytest.mark.parametrize("output", ["every", "centre", "valid"])
def test_no_window_holds_frames_of_two_sequences(output):
    batches = windows(net=lifter(output))
    joints2d = batches[0, np.arange(len(batches))]["joints2d"][..., 0, 0]
    assert ((joints2d // 1000) == (joints2d[:, :1] // 1000)).all()


@pytest.mark.parametrize(("output", "expected"), [("every", range(5)), ("valid", [2])])
def test_targets_are_the_frames_that_the_lifter_predicts(output, expected):
    batches = windows(net=lifter(output))
    batch = batches[0, np.arange(len(batches))]
    starts = batch["joints2d"][:, 0, 0, 0] if output == "every" else None
    for b in range(0, len(batches), 7):
        centre = int(batch["joints2d"][b, 2, 0, 0])
        truth = numbered_sequences()[centre // 1000].joints3d
        frames = [centre % 1000 - 2 + k for k in expected]
        assert np.array_equal(batch["joints3d"][b].numpy(), truth[frames])
    assert starts is None or (starts >= 0).all()


def test_invalid_frames_are_in_no_training_target():
    s = sequences()[0]
    valid = np.ones(len(s), bool)
    valid[10:13] = False
    marked = [dataclasses.replace(s, valid=valid)]
    for output in ("every", "valid"):
        batches = windows(marked, lifter(output), step=1)
        batch = batches[0, np.arange(len(batches))]
        assert batch["valid"].all()
        centres = batch["joints2d"][:, :, 0, 0] if output == "every" else batch["joints2d"][:, 2, 0]
        assert not np.isin(centres.numpy(), [10, 11, 12]).any()
    assert set(batches.first.tolist()) == {
        t - 2 + int(batches.joints2d.starts[0]) for t in np.flatnonzero(valid)
    }


def test_a_clip_shorter_than_a_window_gives_one_window():
    short = [dataclasses.replace(s, joints3d=s.joints3d[:3]) for s in sequences()[:2]]
    frames = windows(short)[0, np.array([1])]["joints2d"][0, :, 0, 0]
    assert frames.tolist() == [1000, 1000, 1001, 1002, 1002]


def test_mirroring_negates_x_and_exchanges_the_sides():
    joints = torch.randn(2, 17, 3)
    mirrored = flip_joints(joints, H36M17.swap)
    right, left = H36M17.index("right_knee"), H36M17.index("left_knee")
    assert torch.equal(mirrored[:, right], joints[:, left] * torch.tensor([-1.0, 1.0, 1.0]))
    assert torch.equal(flip_joints(mirrored, H36M17.swap), joints)


def test_half_of_the_windows_are_mirrored_and_each_epoch_draws_them():
    plain, flipped = windows(), windows(flip=True)
    indices = np.arange(len(plain))
    unchanged = []
    for epoch in (0, 1):
        one, two = plain[epoch, indices], flipped[epoch, indices]
        same = (one["joints3d"] == two["joints3d"]).flatten(1).all(1)
        assert torch.equal(flip_joints(one["joints3d"][~same], H36M17.swap), two["joints3d"][~same])
        assert torch.equal(flip_joints(one["joints2d"][~same], H36M17.swap), two["joints2d"][~same])
        unchanged.append(same)
    assert 0.25 < unchanged[0].float().mean() < 0.75
    assert not torch.equal(*unchanged)


def test_a_sample_does_not_depend_on_its_batch():
    batches = windows(flip=True)
    whole = batches[4, np.arange(12)]
    alone = batches[4, np.array([7])]
    for name in ("joints2d", "joints3d", "visible", "valid"):
        assert torch.equal(whole[name][7], alone[name][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_for_any_number_of_workers(workers):
    batches = list(make_loader(windows(flip=True), 8, shuffle=True, seed=5, workers=workers))
    expected = list(make_loader(windows(flip=True), 8, shuffle=True, seed=5))
    assert len(batches) == len(expected) > 4
    for one, two in zip(batches, expected, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in two)


def test_training_masks_hide_the_given_shares_and_leave_zeros():
    batches = windows(step=1, joint_mask=0.2, frame_mask=0.25)
    batch = batches[0, np.arange(len(batches))]
    frames = batch["visible"].any(-1)
    assert 1 - frames.float().mean() == pytest.approx(0.25, abs=0.03)
    assert 1 - batch["visible"][frames].float().mean() == pytest.approx(0.2, abs=0.02)
    assert not batch["joints2d"][~batch["visible"]].any()
    assert windows(step=1)[0, np.arange(len(batches))]["visible"].all()


def bones(joints3d):
    return np.linalg.norm(joints3d[:, 1:] - joints3d[:, list(H36M17.parents[1:])], axis=-1)


def test_rerendered_motion_keeps_the_directions_of_bones_but_not_lengths_and_cameras():
    before = sequences()[:4]
    after = rerender(before, 0, 1)
    assert [s.name for s in after] == [s.name for s in before]
    assert all(s.joints3d is after[0].joints3d for s in after)
    assert len({tuple(s.camera.centre) for s in (*before, *after)}) == 8
    one, two = before[0].joints3d, after[0].joints3d
    assert np.ptp(bones(two), axis=0).max() < 1e-5
    assert np.abs(bones(one) - bones(two)).max() > 0.002
    knee, hip = H36M17.index("left_knee"), H36M17.index("left_hip")
    thighs = [(s[:, knee] - s[:, hip]) / bones(s)[:, knee - 1, None] for s in (one, two)]
    assert np.allclose(*thighs, atol=1e-5)


def test_a_rendering_depends_on_its_number_only():
    one, again, other = (rerender(sequences()[4:8], 0, rendering) for rendering in (1, 1, 2))
    assert np.array_equal(one[2].joints3d, again[2].joints3d)
    assert np.array_equal(one[2].camera.centre, again[2].camera.centre)
    assert not np.array_equal(one[2].camera.centre, other[2].camera.centre)


def test_motion_without_3d_cannot_be_rerendered():
    flat = dataclasses.replace(sequences()[0], joints3d=None)
    with pytest.raises(DataError, match="has no 3D joints, so it cannot be re-rendered"):
        rerender([flat], 0, 1)


def test_a_rendering_is_used_for_the_given_number_of_epochs():
    renderings = []

    def make_windows(rendering):
        renderings.append(rendering)
        return windows()

    rerendered = RerenderedWindows(make_windows, 2)
    for epoch in (0, 1, 2, 2, 5, 0):
        assert len(rerendered[epoch, np.arange(3)]["index"]) == 3
    assert renderings == [0, 1, 2, 0]


def test_rerendered_windows_have_noise_of_their_own(trainer):
    net = MixSTE(frames=9, dim=16, depth=1, heads=2)
    data = prepared(trainer, LiftDataModule(source(), "noisy", batch_size=4, augment_every=1), net)
    batches = [data.train_set[epoch, np.arange(6)] for epoch in (0, 1, 0)]
    assert torch.equal(batches[0]["joints2d"], batches[2]["joints2d"])
    assert not torch.equal(batches[0]["joints2d"], batches[1]["joints2d"])
    assert not torch.equal(batches[0]["joints3d"], batches[1]["joints3d"])


def test_detections_cannot_be_rerendered():
    with pytest.raises(UsageError, match="set augment_every to 0"):
        LiftDataModule(source(), "best.ckpt", augment_every=1)


def prepared(trainer, data, net):
    """The data module, set up for a lifter as `fit` does it."""
    data.trainer = trainer()
    data.trainer.strategy.connect(LiftModule(net))
    data.trainer.state.fn = TrainerFn.FITTING
    data.setup("fit")
    return data


def source():
    return Synthetic(1, 1, 1, seconds=1.0, actions=("walk", "wave"))


def test_the_lifter_sets_the_length_of_windows(trainer):
    net = MixSTE(frames=9, dim=16, depth=1, heads=2)
    data = prepared(trainer, LiftDataModule(source(), batch_size=4), net)
    batch = next(iter(data.train_dataloader()))
    assert batch["joints2d"].shape == (*batch["joints3d"].shape[:3], 2) == (4, 9, 17, 2)
    data = prepared(
        trainer, LiftDataModule(source(), batch_size=4), VideoPose3D(widths=(3, 3), channels=8)
    )
    batch = next(iter(data.train_dataloader()))
    assert (batch["joints2d"].shape, batch["joints3d"].shape) == ((4, 9, 17, 2), (4, 1, 17, 3))


def test_statistics_leave_invalid_frames_out(trainer):
    data = prepared(
        trainer, LiftDataModule(source(), batch_size=4), MixSTE(frames=9, dim=16, depth=1, heads=2)
    )
    before = data.statistics()
    sequence = data.prepared["train"][0]
    sequence.joints3d[:5] = 100.0
    valid = np.arange(len(sequence.valid)) >= 5
    data.prepared["train"][0] = dataclasses.replace(sequence, valid=valid)
    after = data.statistics()
    assert after.mean3d.abs().max() < 2
    assert (after.deviation3d - before.deviation3d).abs().max() < 0.1


def test_statistics_of_2d_are_over_frames_with_the_joint_visible(trainer):
    data = prepared(
        trainer, LiftDataModule(source(), batch_size=4), MixSTE(frames=9, dim=16, depth=1, heads=2)
    )
    before = data.statistics()
    sequences = data.prepared["train"]
    for n, s in enumerate(sequences):
        s.visible[: 7 + n, 4] = s.visible[:, 6] = False
        s.joints2d[~s.visible] = 0.0
    visible = np.concatenate([s.joints2d[7 + n :, 4] for n, s in enumerate(sequences)])
    after = data.statistics()
    assert np.allclose(after.mean2d[4], visible.mean(0), atol=1e-6)
    assert np.allclose(after.deviation2d[4], visible.std(0), atol=1e-6)
    assert not after.mean2d[6].any()
    assert not after.deviation2d[6].any()
    others = [j for j in range(17) if j not in (4, 6)]
    assert torch.equal(after.mean2d[others], before.mean2d[others])
    assert torch.equal(after.deviation2d[others], before.deviation2d[others])
    assert torch.equal(after.mean3d, before.mean3d)


def test_noisy_2d_is_the_same_in_every_run_and_differs_by_seed(trainer):
    def first_sequence(seed):
        data = LiftDataModule(source(), "noisy", batch_size=4, seed=seed)
        prepared(trainer, data, MixSTE(frames=9, dim=16, depth=1, heads=2))
        return data.prepared["train"][0]

    one, again, other = first_sequence(1), first_sequence(1), first_sequence(2)
    assert np.array_equal(one.joints2d, again.joints2d)
    assert not np.array_equal(one.joints2d, other.joints2d)
    assert np.array_equal(one.joints3d, other.joints3d)


def test_a_file_of_predictions_has_the_2d_input_in_pixels_and_what_its_numbers_mean():
    (sequence, *_) = Synthetic(1, 1, 1, seconds=1.0, actions=("walk",)).sequences("test")
    exact = exact_joints2d(sequence)
    score = np.full(exact.shape[:2], 0.25)
    score[3, 5], exact[4, 6] = 0.0, np.nan
    facts = prediction_facts(prepare_sequence(sequence, H36M17, exact, score), H36M17)
    missing = np.zeros(score.shape, bool)
    missing[3, 5] = missing[4, 6] = True
    assert np.array_equal(np.isnan(facts["joints2d"]).all(-1), missing)
    assert facts["joints2d"][~missing] == pytest.approx(exact[~missing], abs=1e-3)
    assert np.array_equal(facts["score"], np.where(missing, 0, np.float32(0.25)))
    assert facts["joints"][:2] == ("pelvis", "right_hip")
    assert facts["parents"][:2] == (-1, 0)
    assert (facts["skeleton"], facts["unit"], facts["fps"]) == ("H36M17", "m", 50.0)
    assert facts["frame"] == "camera: x right, y down, z forward; relative to pelvis"
    assert facts["time"][:3].tolist() == [0.0, 0.02, 0.04]
    assert np.array_equal(facts["camera_centre"], sequence.camera.centre)
    assert facts["camera_size"] == sequence.camera.size


def test_the_scores_of_exact_2d_take_no_memory():
    (sequence, *_) = Synthetic(1, 1, 1, seconds=1.0, actions=("walk",)).sequences("test")
    exact = exact_joints2d(sequence)
    prepared = prepare_sequence(sequence, H36M17, exact, np.ones(exact.shape[:2]))
    assert prepared.score.strides == (0, 0)
    assert (prepared.score == 1).all()
