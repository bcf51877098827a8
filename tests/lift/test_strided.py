"""Groups of frames become one, and the frames between the predicted ones are interpolated."""

from __future__ import annotations

import pytest
import torch
from memorise import memorise
from scipy.interpolate import CubicHermiteSpline

from pipeline.lift import CentredLifter, Lifter, MixSTE, PoseFormer, StridedLifter, VideoPose3D
from pipeline.lift.clips import lift_in_windows
from pipeline.lift.lifter import check_lifter
from pipeline.lift.strided import interpolation_weights


class Rays(Lifter):
    """Returns each joint as its input at depth 1, and records its input."""

    output = "every"

    def __init__(self, frames):
        super().__init__()
        self.frames = self.receptive_field = frames

    def forward(self, joints2d, visible=None):
        self.received, self.visible = joints2d, visible
        return torch.cat([joints2d[..., :2], torch.ones_like(joints2d[..., :1])], -1)


def clips(B, T, C=2):
    return torch.randn(B, T, 17, C, generator=torch.Generator().manual_seed(3))


def test_each_group_is_the_mean_of_its_visible_frames():
    joints2d, visible = torch.zeros(1, 6, 17, 2), torch.ones(1, 6, 17, dtype=torch.bool)
    joints2d[0, :, 4, 0] = torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0, 90.0])
    visible[0, 5, 4] = False
    joints2d[0, 3:, 7, 1] = 0.25  # the mask token of a joint that no frame shows
    visible[0, 3:, 7] = False
    net = Rays(2)
    StridedLifter(net)(joints2d, visible)
    assert net.received[0, :, 4, 0].tolist() == [3.0, 15.0]
    assert net.received[0, :, 7, 1].tolist() == [0.0, 0.25]
    assert net.visible[0, :, [4, 7]].tolist() == [[True, True], [True, False]]
    assert net.visible.sum() == 2 * 17 - 1


def test_frames_between_two_predictions_lie_on_a_cubic_curve():
    """Weights of 4 groups of 3 frames, against scipy's curve with the same slopes."""
    values = torch.tensor([2.0, 5.0, 3.0, -1.0])
    middles = torch.tensor([1.0, 4.0, 7.0, 10.0])
    slopes = torch.tensor([3.0, 0.5, -3.0, -4.0]) / 3
    curve = torch.from_numpy(CubicHermiteSpline(middles, values, slopes)(range(1, 11))).float()
    expected = torch.cat([torch.tensor([1.0]), curve, torch.tensor([-7 / 3])])
    assert interpolation_weights(4, 3) @ values == pytest.approx(expected, abs=1e-6)


def test_a_network_in_bfloat16_is_interpolated_with_exact_weights():
    net = StridedLifter(Rays(9), stride=5).to(torch.bfloat16)
    assert (net(clips(2, 45))[..., 2] - 1).abs().max() < 1e-6


def test_autocast_does_not_round_coordinates():
    net = StridedLifter(Rays(9), stride=5)
    ramp = (0.83 + 0.0004 * torch.arange(45.0)).view(1, 45, 1, 1).expand(1, 45, 17, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = net(ramp)
    assert found.dtype == torch.float32
    assert (found[..., 0].diff(dim=1) - 0.0004).abs().max() < 1e-5


@pytest.mark.parametrize(("groups", "stride"), [(1, 5), (2, 3), (4, 2), (9, 1)])
def test_a_constant_velocity_is_kept(groups, stride):
    frames = torch.arange(groups * stride, dtype=torch.float32)
    means = frames.view(groups, stride).mean(1)
    expected = frames if groups > 1 else means.expand(stride)
    assert interpolation_weights(groups, stride) @ means == pytest.approx(expected, abs=1e-5)


def test_a_stride_of_one_changes_nothing():
    torch.manual_seed(0)
    net = MixSTE(frames=5, dim=8, depth=1, heads=2).eval()
    joints2d, visible = clips(2, 5), torch.ones(2, 5, 17, dtype=torch.bool)
    torch.testing.assert_close(StridedLifter(net, stride=1)(joints2d, visible), net(joints2d))


@pytest.mark.parametrize("causal", [False, True])
def test_one_window_and_a_long_clip_give_the_same_frames(causal):
    torch.manual_seed(0)
    net = VideoPose3D(widths=(3, 3), channels=8, causal=causal).eval()
    whole, joints2d = StridedLifter(net), clips(2, 37)
    visible = torch.rand(2, 37, 17) < 0.7
    windows = [whole(joints2d[:, t : t + 27], visible[:, t : t + 27]) for t in range(11)]
    torch.testing.assert_close(whole(joints2d, visible), torch.cat(windows, 1), atol=1e-5, rtol=0)
    assert whole.first_frame == (26 if causal else 13)
    assert whole.frames == whole.receptive_field == 27


def test_a_window_of_single_predictions_sees_its_groups():
    net = Rays(3)
    net.output = "centre"
    joints2d = clips(2, 9)
    StridedLifter(net)(joints2d)
    torch.testing.assert_close(net.received, joints2d.view(2, 3, 3, 17, 2).mean(2))


def test_poseformer_slides_over_a_clip_as_over_its_windows():
    torch.manual_seed(0)
    net = PoseFormer(frames=3, dim=8, depth=1, heads=2).eval()
    lifter = CentredLifter(StridedLifter(net))
    joints2d, visible = clips(1, 25)[0], torch.rand(25, 17) < 0.8
    with torch.no_grad():
        pieces = lift_in_windows(lifter, lifter, joints2d, visible, at_once=8)
        lifter.slides = False
        windows = lift_in_windows(lifter, lifter, joints2d, visible, at_once=8)
    assert pieces.std() > 0.01
    torch.testing.assert_close(pieces, windows, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(
    "net",
    [
        MixSTE(frames=4, dim=8, depth=1, heads=2),
        PoseFormer(frames=3, dim=8, depth=1, heads=2),
        VideoPose3D(widths=(3, 3), channels=8),
    ],
    ids=lambda net: net.output,
)
def test_it_keeps_the_promises_of_a_lifter(net):
    lifter = CentredLifter(StridedLifter(net))
    check_lifter(lifter)
    assert lifter.frames == 3 * net.frames
    clip, visible = clips(1, 50)[0], torch.ones(50, 17, dtype=torch.bool)
    with torch.no_grad():
        assert lift_in_windows(lifter.eval(), lifter, clip, visible).shape == (50, 17, 3)


def test_weights_in_half_precision_are_interpolated_in_float32():
    net = StridedLifter(Rays(3), stride=2).to(torch.bfloat16)
    lifted = net(clips(1, 6).to(torch.bfloat16))
    assert lifted.dtype == torch.float32
    assert lifted.shape == (1, 6, 17, 3)
    assert lifted[..., 2].allclose(torch.ones(()), atol=1e-6)


def test_the_score_channel_is_averaged():
    net = Rays(2)
    joints2d = clips(1, 6, 3)
    StridedLifter(net)(joints2d)
    torch.testing.assert_close(net.received[..., 2], joints2d.view(1, 2, 3, 17, 3).mean(2)[..., 2])


def test_a_lifter_that_cannot_be_strided_is_an_error():
    with pytest.raises(ValueError, match="stride 0"):
        StridedLifter(Rays(3), stride=0)
    with pytest.raises(ValueError, match=r"stride 2 .*valid"):
        StridedLifter(VideoPose3D(widths=(3,), channels=8), stride=2)
    causal = Rays(3)
    causal.causal = True
    with pytest.raises(ValueError, match="causal"):
        StridedLifter(causal)
    with pytest.raises(ValueError, match="8 frames do not fit a lifter of 9"):
        StridedLifter(Rays(3))(torch.zeros(1, 8, 17, 2))


def test_progress_reaches_the_wrapped_lifter():
    net = VideoPose3D(widths=(3,), channels=8)
    StridedLifter(net).set_progress(1.0)
    assert net.expand_bn.momentum == pytest.approx(0.001)


def test_a_wrapped_lifter_memorises_eight_clips():
    torch.manual_seed(0)
    net = StridedLifter(MixSTE(frames=3, dim=16, depth=1, heads=2, spread=0.5))
    inputs = clips(8, 9) * 0.3
    poses = (0.3 * torch.randn(8, 3, 1, 17, 3)).expand(8, 3, 3, 17, 3).flatten(1, 2)
    poses = (interpolation_weights(3, 3) @ poses[:, 1::3].flatten(2)).view(8, 9, 17, 3)
    first, last = memorise(net, lambda net: (net(inputs) - poses).norm(dim=-1).mean(), 300, 1e-2)
    assert last < 0.3 * first


def test_a_frame_with_a_hidden_root_is_predicted_like_its_neighbours():
    """A person who stands still at the edge of the image; the root is missing in one frame."""
    torch.manual_seed(5)
    lifter = StridedLifter(CentredLifter(MixSTE(frames=9, dim=16, depth=1, heads=2))).eval()
    joints2d = (0.8 + 0.1 * clips(1, 1)).repeat(1, 27, 1, 1)
    visible = torch.ones(1, 27, 17, dtype=torch.bool)
    with torch.no_grad():
        expected = lifter(joints2d, visible)
        joints2d[:, 13, 0], visible[:, 13, 0] = 0.0, False
        found = lifter(joints2d, visible)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
