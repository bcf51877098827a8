import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from pipeline.errors import UsageError
from pipeline.lift import MixSTE, VideoPose3D
from pipeline.lift.clips import window_starts
from pipeline.lift.sequences import flip_joints
from pipeline.mocap.synthetic import Synthetic
from pipeline.pretrain import PretrainDataModule, PretrainModule
from pipeline.pretrain.data import ProjectedClips
from pipeline.skeleton import H36M17, Skeleton


def projections(**changes):
    motions = [s.joints3d for s in Synthetic(1, 1, 1, seconds=1.0).sequences("train")[::4]]
    options = {"frames": 9, "step": 3, "seed": 2, "joint_mask": 0.05, "frame_mask": 0.1}
    options |= {"noise": 1.0, "flip": True} | changes
    return ProjectedClips(motions, [np.ones(len(m), bool) for m in motions], H36M17, **options)


def test_a_clip_is_a_pure_function_of_seed_epoch_and_index():
    one, again = projections(), projections()
    together, alone = one[3, np.arange(10)], again[3, np.array([6])]
    for name in together:
        assert torch.equal(together[name][6], alone[name][0]), name


@pytest.mark.parametrize("changes", [{"seed": 4}, {}])
def test_another_seed_or_epoch_gives_a_clip_another_camera(changes):
    one = projections()[0, np.arange(4)]["exact2d"]
    other = projections(**changes)[int(not changes), np.arange(4)]["exact2d"]
    assert (one - other).abs().amax((1, 2, 3)).min() > 0.01


def test_the_given_shares_of_joints_and_whole_frames_are_hidden():
    clips = projections(step=1, joint_mask=0.2, frame_mask=0.25)
    visible = clips[0, np.arange(len(clips))]["visible"]
    frames = visible.any(-1)
    assert 1 - frames.float().mean() == pytest.approx(0.25, abs=0.02)
    assert 1 - visible[frames].float().mean() == pytest.approx(0.2, abs=0.01)


def test_hidden_joints_are_zero_and_visible_ones_are_near_the_exact_2d():
    batch = projections(joint_mask=0.3)[0, np.arange(30)]
    assert not batch["joints2d"][~batch["visible"]].any()
    error = (batch["joints2d"] - batch["exact2d"])[batch["visible"]].norm(dim=-1)
    assert 0.001 < error.median() < 0.03
    assert error.max() < 0.1


def test_without_noise_2d_is_the_projection_of_the_3d_joints():
    batch = projections(noise=0.0, joint_mask=0.0, frame_mask=0.0)[0, np.arange(8)]
    assert torch.equal(batch["joints2d"], batch["exact2d"].float())
    assert not batch["joints3d"][:, :, H36M17.root].any()
    # The position of the root is unknown: found by least squares over the joints of a frame.
    for clip2d, clip3d in zip(batch["exact2d"].double(), batch["joints3d"].double(), strict=True):
        xy, (x, y, z) = clip2d[0], clip3d[0].unbind(-1)
        f = 2.3  # focal lengths lie between 2.2 and 2.4
        rows = torch.stack(
            [
                torch.stack([torch.full_like(x, f), torch.zeros_like(x), -xy[:, 0]], -1),
                torch.stack([torch.zeros_like(x), torch.full_like(x, f), -xy[:, 1]], -1),
            ]
        ).flatten(0, 1)
        right = torch.cat([xy[:, 0] * z - f * x, xy[:, 1] * z - f * y])
        root = torch.linalg.lstsq(rows, right[:, None]).solution[:, 0]
        again = f * (clip3d[0, :, :2] + root[:2]) / (z + root[2])[:, None]
        assert (again - xy).abs().max() < 0.01
        assert root[2] > 2.0


def test_all_joints_are_in_the_image_and_in_front_of_the_camera():
    clips = projections(step=1)
    exact2d = clips[1, np.arange(len(clips))]["exact2d"]
    assert exact2d.isfinite().all()
    assert exact2d.abs().max() <= 1.0 + 1e-5


def test_mirrored_clips_are_mirror_images():
    plain, flipped = projections(flip=False), projections()
    one, two = plain[0, np.arange(20)], flipped[0, np.arange(20)]
    same = (one["exact2d"] == two["exact2d"]).flatten(1).all(1)
    assert 3 < same.sum() < 17
    for name in ("exact2d", "joints3d"):
        assert torch.equal(flip_joints(one[name][~same], H36M17.swap), two[name][~same])


def test_a_recording_with_four_cameras_is_used_once(trainer):
    source = Synthetic(1, 1, 1, seconds=1.0, actions=("walk", "wave"))
    data = PretrainDataModule(source)
    data.trainer = trainer()
    data.trainer.strategy.connect(PretrainModule(MixSTE(frames=9, dim=16, depth=1, heads=2)))
    data.trainer.state.fn = TrainerFn.FITTING
    data.setup("fit")
    assert len(data.train_set.world.starts) == 2 == len(source.sequences("train")) // 4
    assert set(data.evaluation_sets) == {"val"}


def test_each_frame_of_a_recording_is_evaluated_once(trainer):
    """Recordings of 24 frames in clips of 9: the last clip has 3 new frames, 3 + 1 steps less."""
    source = Synthetic(1, 1, 1, seconds=0.96, actions=("walk", "wave"))
    data = PretrainDataModule(source, batch_size=2)
    module = PretrainModule(MixSTE(frames=9, dim=16, depth=1, heads=2))
    for metric in module.errors.values():
        metric.reset = lambda: None  # Lightning would reset it at the end
    trainer().validate(module, data, verbose=False)
    frames = len(source.sequences("val")[0].joints3d)
    starts = window_starts(frames, 9, 9)
    assert (frames, starts.tolist()) == (24, [0, 9, 15])
    assert module.errors["mpjpe"].count == 2 * frames * 17
    assert module.errors["mpjve"].count == 2 * (frames - 3)
    valid = data.evaluation_set("val").valid
    assert valid.sum(1).tolist() == [9, 9, 6] * 2
    assert data.training_set().valid.all()


def test_padding_of_a_short_recording_is_not_evaluated():
    clips = projections(frames=99, step=99, once=True, flip=False)
    (length, *_) = {len(s.joints3d) for s in Synthetic(1, 1, 1, seconds=1.0).sequences("train")}
    assert clips.valid.sum(1).tolist() == [length] * len(clips)


def test_a_lifter_of_single_frames_is_not_pretrained():
    with pytest.raises(UsageError, match="VideoPose3D predicts single frames"):
        PretrainModule(VideoPose3D(widths=(3, 3), channels=8))


@pytest.mark.parametrize("noise", [1.0, 0.0])
def test_another_joint_set_is_pretrained_without_noise_only(noise, trainer):
    legs = Skeleton("LEGS", H36M17.joints[:7], H36M17.parents[:7])
    net = MixSTE(joints=7, frames=9, dim=16, depth=1, heads=2)
    net.skeleton = legs
    data = PretrainDataModule(Synthetic(1, 1, 1, seconds=1.0, actions=("walk",)), noise=noise)
    data.trainer = trainer()
    data.trainer.strategy.connect(PretrainModule(net))
    data.trainer.state.fn = TrainerFn.FITTING
    if noise:
        with pytest.raises(UsageError, match="not for LEGS"):
            data.setup("fit")
    else:
        data.setup("fit")
        batch = data.train_set[0, np.array([0, 1])]
        assert batch["joints2d"].shape == (2, 9, 7, 2)
        seen = batch["visible"]
        assert torch.equal(batch["joints2d"][seen], batch["exact2d"][seen])
