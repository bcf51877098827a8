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
from pipeline.lift.sequences import exact_joints2d, flip_joints, prepare_sequence
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


def as_lifted(seqs=None):
    """Tracks whose 2D is the number of its frame, so that a window tells where it comes from."""
    found = []
    for n, s in enumerate(seqs or sequences()):
        number = 1000.0 * n + np.arange(len(s))
        t = prepare_sequence(s, H36M17, exact_joints2d(s), np.ones((len(s), 17)))
        numbers = np.broadcast_to(number[:, None, None], t.joints2d.shape).astype(np.float32)
        found.append(dataclasses.replace(t, joints2d=numbers))
    return found


def windows(seqs=None, net=None, **changes):
    options = {"step": 2, "flip": False, "seed": 3} | changes
    return TrainingWindows(as_lifted(seqs), net or lifter(), **options)


def test_prepared_sequences_hold_normalised_2d_and_root_relative_metres_in_the_camera_frame():
    s = sequences()[1]
    t = prepare_sequence(s, H36M17, exact_joints2d(s), np.ones((len(s), 17)))
    seen = world_to_camera(s.joints3d, s.camera)
    assert np.allclose(t.joints3d, seen - seen[:, ROOT, None], atol=1e-6)
    width, height = s.camera.size
    pixels = project(seen, s.camera)
    assert np.allclose(t.joints2d[..., 0], pixels[..., 0] / width * 2 - 1, atol=1e-6)
    assert np.allclose(t.joints2d[..., 1], pixels[..., 1] / width * 2 - height / width, atol=1e-6)


def test_a_joint_without_position_or_score_is_not_visible_and_holds_zeros():
    s = sequences()[0]
    joints2d, score = exact_joints2d(s), np.ones((len(s), 17))
    joints2d[2, 5] = np.nan
    score[3, 6] = 0.0
    t = prepare_sequence(s, H36M17, joints2d, score)
    assert np.argwhere(~t.visible).tolist() == [[2, 5], [3, 6]]
    assert not t.joints2d[~t.visible].any()


def test_3d_that_is_not_finite_is_refused_unless_marked():
    s = sequences()[0]
    broken = s.joints3d.copy()
    broken[4, 2] = np.nan
    bad = dataclasses.replace(s, joints2d=exact_joints2d(s).astype(np.float32), joints3d=broken)
    with pytest.raises(DataError, match="frame 4 has a 3D joint that is not finite"):
        prepare_sequence(bad, H36M17, bad.joints2d, np.ones((len(s), 17)))
    marked = dataclasses.replace(bad, valid=np.arange(len(s)) != 4)
    assert not prepare_sequence(marked, H36M17, bad.joints2d, np.ones((len(s), 17))).valid[4]


@pytest.mark.parametrize("output", ["every", "centre", "valid"])
def test_no_window_crosses_from_one_video_into_the_next(output):
    found = windows(net=lifter(output))
    joints2d = found[0, np.arange(len(found))]["joints2d"][..., 0, 0]
    assert ((joints2d // 1000) == (joints2d[:, :1] // 1000)).all()


@pytest.mark.parametrize(("output", "expected"), [("every", range(5)), ("valid", [2])])
def test_targets_are_the_frames_that_the_lifter_gives_out(output, expected):
    found = windows(net=lifter(output))
    batch = found[0, np.arange(len(found))]
    starts = batch["joints2d"][:, 0, 0, 0] if output == "every" else None
    for b in range(0, len(found), 7):
        centre = int(batch["joints2d"][b, 2, 0, 0])
        truth = as_lifted()[centre // 1000].joints3d
        frames = [centre % 1000 - 2 + k for k in expected]
        assert np.array_equal(batch["joints3d"][b].numpy(), truth[frames])
    assert starts is None or (starts >= 0).all()


def test_bad_frames_are_in_no_training_target():
    s = sequences()[0]
    valid = np.ones(len(s), bool)
    valid[10:13] = False
    marked = [dataclasses.replace(s, valid=valid)]
    for output in ("every", "valid"):
        found = windows(marked, lifter(output), step=1)
        batch = found[0, np.arange(len(found))]
        assert batch["valid"].all()
        centres = batch["joints2d"][:, :, 0, 0] if output == "every" else batch["joints2d"][:, 2, 0]
        assert not np.isin(centres.numpy(), [10, 11, 12]).any()
    assert set(found.first.tolist()) == {
        t - 2 + int(found.joints2d.starts[0]) for t in np.flatnonzero(valid)
    }


def test_a_clip_shorter_than_a_window_gives_one_window():
    short = [dataclasses.replace(s, joints3d=s.joints3d[:3]) for s in sequences()[:2]]
    found = windows(short)
    assert found[0, np.array([1])]["joints2d"][0, :, 0, 0].tolist() == [
        1000,
        1000,
        1001,
        1002,
        1002,
    ]


def test_mirroring_negates_x_and_exchanges_the_sides():
    joints = torch.randn(2, 17, 3)
    mirrored = flip_joints(joints, H36M17.swap)
    right, left = H36M17.index("right_knee"), H36M17.index("left_knee")
    assert torch.equal(mirrored[:, right], joints[:, left] * torch.tensor([-1.0, 1.0, 1.0]))
    assert torch.equal(flip_joints(mirrored, H36M17.swap), joints)


def test_half_of_the_windows_are_mirrored_others_in_each_epoch():
    plain, flipped = windows(), windows(flip=True)
    indices = np.arange(len(plain))
    taken = []
    for epoch in (0, 1):
        one, two = plain[epoch, indices], flipped[epoch, indices]
        same = (one["joints3d"] == two["joints3d"]).flatten(1).all(1)
        assert torch.equal(flip_joints(one["joints3d"][~same], H36M17.swap), two["joints3d"][~same])
        assert torch.equal(flip_joints(one["joints2d"][~same], H36M17.swap), two["joints2d"][~same])
        taken.append(same)
    assert 0.25 < taken[0].float().mean() < 0.75
    assert not torch.equal(*taken)


def test_a_sample_is_the_same_in_any_company():
    found = windows(flip=True)
    whole = found[4, np.arange(12)]
    alone = found[4, np.array([7])]
    for name in ("joints2d", "joints3d", "visible", "valid"):
        assert torch.equal(whole[name][7], alone[name][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_for_any_number_of_workers(workers):
    batches = list(make_loader(windows(flip=True), 8, shuffle=True, seed=5, workers=workers))
    expected = list(make_loader(windows(flip=True), 8, shuffle=True, seed=5))
    assert len(batches) == len(expected) > 4
    for one, two in zip(batches, expected, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in two)


def test_training_masks_hide_as_much_as_asked_and_leave_zeros():
    found = windows(step=1, joint_mask=0.2, frame_mask=0.25)
    batch = found[0, np.arange(len(found))]
    frames = batch["visible"].any(-1)
    assert 1 - frames.float().mean() == pytest.approx(0.25, abs=0.03)
    assert 1 - batch["visible"][frames].float().mean() == pytest.approx(0.2, abs=0.02)
    assert not batch["joints2d"][~batch["visible"]].any()
    assert windows(step=1)[0, np.arange(len(found))]["visible"].all()


def bones(joints3d):
    return np.linalg.norm(joints3d[:, 1:] - joints3d[:, list(H36M17.parents[1:])], axis=-1)


def test_motion_filmed_anew_keeps_directions_of_bones_and_little_else():
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


def test_a_take_depends_on_its_number_alone():
    one, again, other = (rerender(sequences()[4:8], 0, take) for take in (1, 1, 2))
    assert np.array_equal(one[2].joints3d, again[2].joints3d)
    assert np.array_equal(one[2].camera.centre, again[2].camera.centre)
    assert not np.array_equal(one[2].camera.centre, other[2].camera.centre)


def test_a_take_lasts_as_many_epochs_as_asked():
    made = []
    takes = RerenderedWindows(lambda take: made.append(take) or windows(), 2)
    for epoch in (0, 1, 2, 2, 5, 0):
        assert len(takes[epoch, np.arange(3)]["index"]) == 3
    assert made == [0, 1, 2, 0]


def test_windows_are_filmed_anew_with_noise_of_their_own(trainer):
    net = MixSTE(frames=9, dim=16, depth=1, heads=2)
    data = prepared(trainer, LiftDataModule(source(), "noisy", batch_size=4, augment_every=1), net)
    batches = [data.train_set[epoch, np.arange(6)] for epoch in (0, 1, 0)]
    assert torch.equal(batches[0]["joints2d"], batches[2]["joints2d"])
    assert not torch.equal(batches[0]["joints2d"], batches[1]["joints2d"])
    assert not torch.equal(batches[0]["joints3d"], batches[1]["joints3d"])


def test_detections_cannot_be_filmed_anew():
    with pytest.raises(UsageError, match="set augment_every to 0"):
        LiftDataModule(source(), "best.ckpt", augment_every=1)


def prepared(trainer, data, net):
    """A data module set up for a lifter as `fit` does it."""
    data.trainer = trainer()
    data.trainer.strategy.connect(LiftModule(net))
    data.trainer.state.fn = TrainerFn.FITTING
    data.setup("fit")
    return data


def source():
    return Synthetic(1, 1, 1, seconds=1.0, actions=("walk", "wave"))


def test_the_data_module_asks_the_lifter_for_the_length_of_windows(trainer):
    net = MixSTE(frames=9, dim=16, depth=1, heads=2)
    data = prepared(trainer, LiftDataModule(source(), batch_size=4), net)
    batch = next(iter(data.train_dataloader()))
    assert batch["joints2d"].shape == (*batch["joints3d"].shape[:3], 2) == (4, 9, 17, 2)
    data = prepared(
        trainer, LiftDataModule(source(), batch_size=4), VideoPose3D(widths=(3, 3), channels=8)
    )
    batch = next(iter(data.train_dataloader()))
    assert (batch["joints2d"].shape, batch["joints3d"].shape) == ((4, 9, 17, 2), (4, 1, 17, 3))


def test_statistics_leave_bad_frames_out(trainer):
    data = prepared(
        trainer, LiftDataModule(source(), batch_size=4), MixSTE(frames=9, dim=16, depth=1, heads=2)
    )
    before = data.statistics()
    spoilt = data.prepared["train"][0]
    spoilt.joints3d[:5] = 100.0
    valid = np.arange(len(spoilt.valid)) >= 5
    data.prepared["train"][0] = dataclasses.replace(spoilt, valid=valid)
    after = data.statistics()
    assert after.mean3d.abs().max() < 2
    assert (after.deviation3d - before.deviation3d).abs().max() < 0.1


def test_statistics_of_2d_count_joints_where_they_are_seen(trainer):
    data = prepared(
        trainer, LiftDataModule(source(), batch_size=4), MixSTE(frames=9, dim=16, depth=1, heads=2)
    )
    before = data.statistics()
    for number, t in enumerate(data.prepared["train"]):
        t.visible[: 7 + number, 4] = t.visible[:, 6] = False
        t.joints2d[~t.visible] = 0.0
    seen = np.concatenate([t.joints2d[7 + n :, 4] for n, t in enumerate(data.prepared["train"])])
    after = data.statistics()
    assert np.allclose(after.mean2d[4], seen.mean(0), atol=1e-6)
    assert np.allclose(after.deviation2d[4], seen.std(0), atol=1e-6)
    assert not after.mean2d[6].any()
    assert not after.deviation2d[6].any()
    others = [j for j in range(17) if j not in (4, 6)]
    assert torch.equal(after.mean2d[others], before.mean2d[others])
    assert torch.equal(after.deviation2d[others], before.deviation2d[others])
    assert torch.equal(after.mean3d, before.mean3d)


def test_noisy_2d_is_the_same_in_every_run_and_differs_by_seed(trainer):
    def of(seed):
        data = LiftDataModule(source(), "noisy", batch_size=4, seed=seed)
        return prepared(trainer, data, MixSTE(frames=9, dim=16, depth=1, heads=2)).prepared[
            "train"
        ][0]

    one, again, other = of(1), of(1), of(2)
    assert np.array_equal(one.joints2d, again.joints2d)
    assert not np.array_equal(one.joints2d, other.joints2d)
    assert np.array_equal(one.joints3d, other.joints3d)
