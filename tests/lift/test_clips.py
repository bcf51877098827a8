import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.lift import clips
from pipeline.lift.centred import CentredLifter
from pipeline.lift.clips import (
    PaddedClips,
    frame_subset,
    lift_in_windows,
    lift_overlapping,
    smooth,
    window_starts,
)
from pipeline.lift.lifter import Lifter
from pipeline.lift.mixste import MixSTE
from pipeline.lift.poseformer import PoseFormer
from pipeline.lift.videopose3d import VideoPose3D

T, R = 6, 5


class FrameNumbers(Lifter):
    """Predicts the number that a frame carries as its joints, and records its windows."""

    def __init__(self, output, causal=False):
        super().__init__()
        self.output, self.causal = output, causal
        self.receptive_field = T if output == "every" else R
        self.frames = T if output == "every" else R
        self.windows = []

    def forward(self, joints2d, visible=None):
        around = self.receptive_field - 1
        self.windows += list(joints2d[:, :, 0, 0].int().tolist())
        if self.output == "every":
            kept = joints2d
        else:
            first = around if self.causal else around // 2
            kept = joints2d[:, first : first + joints2d.shape[1] - around]
        return kept[..., :1].expand(*kept.shape[:3], 3) * 1.0


def numbered(frames):
    """A clip whose frame t carries the number t + 1, and its visibility."""
    return torch.arange(1.0, frames + 1)[:, None, None].expand(frames, 2, 2), torch.ones(
        frames, 2, dtype=torch.bool
    )


@pytest.mark.parametrize("frames", [1, T - 1, T, T + 1, 2 * T, 3 * T + 2])
@pytest.mark.parametrize(
    ("output", "causal"), [("every", False), ("centre", False), ("valid", False), ("valid", True)]
)
def test_every_frame_is_predicted_exactly_once(output, causal, frames):
    net = FrameNumbers(output, causal)
    joints2d, visible = numbered(frames)
    lifted = lift_in_windows(net, net, joints2d, visible, at_once=2)
    assert lifted.shape == (frames, 2, 3)
    assert lifted[:, 1, 2].tolist() == list(range(1, frames + 1))


@pytest.mark.parametrize("lift_clip", [lift_in_windows, lift_overlapping])
@pytest.mark.parametrize("output", ["every", "centre"])
def test_a_pass_has_few_frames_however_long_the_clip_is(lift_clip, output):
    net, sizes = FrameNumbers(output), []

    def lift(joints2d, visible):
        sizes.append(joints2d.shape[0] * joints2d.shape[1])
        return net(joints2d)

    lift_clip(lift, net, *numbered(3000))
    assert 900 < max(sizes) <= 1024


def test_a_clip_shorter_than_a_window_is_filled_with_its_last_frame():
    net = FrameNumbers("every")
    lift_in_windows(net, net, *numbered(4))
    assert net.windows == [[1, 2, 3, 4, 4, 4]]


def test_the_last_window_ends_with_the_clip():
    net = FrameNumbers("every")
    lift_in_windows(net, net, *numbered(14))
    assert net.windows == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12], [9, 10, 11, 12, 13, 14]]


def test_a_causal_lifter_gets_no_later_frame():
    net = FrameNumbers("valid", causal=True)
    lift_in_windows(net, net, *numbered(3))
    assert net.windows == [[1, 1, 1, 1, 1, 2, 3]]


def test_a_centre_lifter_gets_each_frame_in_the_middle_of_a_window():
    net = FrameNumbers("centre")
    lift_in_windows(net, net, *numbered(3))
    assert net.windows == [[1, 1, 1, 2, 3], [1, 1, 2, 3, 3], [1, 2, 3, 3, 3]]


@pytest.mark.parametrize(("frames", "expected"), [(1, [0]), (17, [0, 1, 16]), (18, [0, 1, 16, 17])])
def test_the_frame_subset_is_two_successive_frames_of_every_sixteen(frames, expected):
    assert frame_subset(frames).tolist() == expected


def test_a_centre_lifter_lifts_only_the_frames_asked_for():
    net = FrameNumbers("centre")
    lifted = lift_in_windows(net, net, *numbered(9), frames=torch.tensor([1, 6]))
    assert lifted[:, 0, 0].tolist() == [2, 7]
    assert net.windows == [[1, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


@pytest.mark.parametrize("frames", [2, T + 3, 3 * T])
@pytest.mark.parametrize("output", ["every", "centre", "valid"])
def test_frames_asked_for_are_the_same_as_in_the_whole_clip(output, frames):
    net = FrameNumbers(output)
    subset = torch.tensor([0, frames - 1])
    lifted = lift_in_windows(net, net, *numbered(frames), frames=subset)
    assert torch.equal(lifted, lift_in_windows(net, net, *numbered(frames))[subset])


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_windows_cover_a_clip_whose_frames_are_all_valid(length, frames, step):
    step = min(step, frames)
    starts = window_starts(length, frames, step)
    covered = {t for start in starts for t in range(start, start + frames)}
    assert covered >= set(range(length))
    inside = [0 <= start <= length - frames for start in starts]
    assert all(inside) or (length < frames and len(starts) == 1)


def test_windows_with_an_invalid_frame_are_left_out():
    valid = np.array([True] * 5 + [False] + [True] * 5)
    assert window_starts(11, 3, 2, valid).tolist() == [0, 2, 6, 8]


def test_windows_of_padded_clips_repeat_the_first_and_last_frame_of_their_own_clip():
    clips = [np.array([[1], [2]], np.float32), np.array([[7], [8], [9]], np.float32)]
    padded = PaddedClips(clips, 2)
    first = torch.from_numpy(padded.starts + np.array([-2, 1]))
    assert padded.windows(first, 4)[..., 0].tolist() == [[1, 1, 1, 2], [8, 9, 9, 9]]


def test_windows_are_copies():
    padded = PaddedClips([np.zeros((3, 2), np.float32)], 1)
    padded.windows(torch.tensor([1]), 3).fill_(5.0)
    assert not padded.rows.any()


def test_smoothing_keeps_linear_motion_and_reduces_noise():
    line = torch.arange(40.0)[:, None, None].expand(40, 17, 3)
    assert torch.allclose(smooth(line, 2.0)[6:-6], line[6:-6], atol=1e-4)
    noise = torch.randn(400, 17, 3, generator=torch.Generator().manual_seed(0))
    # White noise through a Gaussian of deviation s keeps 1 / (2 s sqrt(pi)) of its variance.
    assert smooth(noise, 2.0).var() == pytest.approx(1 / (4 * np.pi**0.5), rel=0.1)


def test_smoothing_does_not_change_a_single_frame():
    frame = torch.randn(1, 17, 3)
    assert torch.allclose(smooth(frame, 3.0), frame, atol=1e-6)


class _Ramp(torch.nn.Module):
    """A lifter of T frames that returns, for each frame, its 2D x and its place in the window."""

    output, frames = "every", 6

    def __call__(self, joints2d, visible):
        place = torch.arange(6.0).view(1, 6, 1).expand(len(joints2d), 6, 1)
        return torch.stack([joints2d[..., 0], place, joints2d[..., 0] ** 2], -1)


@pytest.mark.parametrize("length", [1, 3, 6, 7, 20, 40])
def test_overlapping_windows_keep_what_all_windows_agree_on(length):
    lifter = _Ramp()
    joints2d = torch.arange(float(length)).view(-1, 1, 1).expand(length, 1, 2).contiguous()
    lifted = lift_overlapping(lifter, lifter, joints2d, torch.ones(length, 1, dtype=torch.bool))
    assert lifted.shape == (length, 1, 3)
    assert torch.allclose(lifted[:, 0, 0], torch.arange(float(length)))


def test_windows_that_disagree_are_blended_without_a_step():
    lifter = _Ramp()
    joints2d = torch.zeros(60, 1, 2)
    visible = torch.ones(60, 1, dtype=torch.bool)
    blended = lift_overlapping(lifter, lifter, joints2d, visible)[6:-6, 0, 1].diff().abs().max()
    stitched = lift_in_windows(lifter, lifter, joints2d, visible)[:, 0, 1].diff().abs().max()
    assert stitched == 5
    assert blended < 1.1


@pytest.mark.parametrize("group_attention", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_poseformer_lifts_a_clip_in_pieces_as_it_lifts_its_windows(group_attention, centred):
    torch.manual_seed(3)
    net = PoseFormer(frames=5, dim=8, depth=2, heads=2, group_attention=group_attention).eval()
    for parameter in net.parameters():  # the group modules begin as the identity
        torch.nn.init.normal_(parameter, std=0.2)
    lifter = CentredLifter(net) if centred else net
    joints2d = torch.rand(19, 17, 2) * 2 - 1
    visible = torch.rand(19, 17) < 0.8
    with torch.no_grad():
        pieces = lift_in_windows(lifter, lifter, joints2d, visible, at_once=8)
        lifter.slides = False
        windows = lift_in_windows(lifter, lifter, joints2d, visible, at_once=8)
    assert pieces.shape == (19, 17, 3)
    assert pieces.std() > 0.01
    torch.testing.assert_close(pieces, windows, atol=2e-6, rtol=2e-6)


def test_poseformer_takes_no_shorter_clip():
    with pytest.raises(ValueError, match="do not fit"):
        PoseFormer(frames=5, dim=8, depth=1, heads=2)(torch.zeros(1, 4, 17, 2))


@pytest.mark.parametrize("causal", [False, True])
def test_long_clips_are_lifted_in_pieces_with_the_same_result(causal, monkeypatch):
    torch.manual_seed(0)
    net = VideoPose3D(widths=(3, 3), channels=16, causal=causal).eval()
    joints2d, visible = torch.rand(50, 17, 2), torch.ones(50, 17, dtype=torch.bool)
    lengths = []

    def lift(clip, visible):
        lengths.append(clip.shape[1])
        return net(clip)

    with torch.no_grad():
        whole = lift_in_windows(lift, net, joints2d, visible)
        monkeypatch.setattr(clips, "_PIECE", 21)
        pieces = lift_in_windows(lift, net, joints2d, visible)
        some = lift_in_windows(lift, net, joints2d, visible, frames=torch.tensor([20, 21, 49]))
    assert lengths[:4] == [58, 29, 29, 16]
    torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=1e-6)
    assert torch.equal(some, pieces[[20, 21, 49]])


@pytest.mark.parametrize("output", ["every", "centre", "valid"])
def test_no_piece_of_a_long_clip_is_kept(output):
    """Each one is copied into the result and freed before the next one is computed."""
    net = {
        "every": MixSTE(frames=9, dim=8, depth=1, heads=2),
        "centre": PoseFormer(frames=9, dim=4, depth=1, heads=2),
        "valid": VideoPose3D(widths=(3, 3), channels=8),
    }[output].eval()
    assert net.output == output
    before: list[weakref.ref[torch.Tensor]] = []

    def lift(joints2d, visible):
        assert not any(piece() is not None for piece in before)
        lifted = net(joints2d, visible).clone()
        before.append(weakref.ref(lifted))
        return lifted

    with torch.no_grad():
        lift_in_windows(lift, net, torch.rand(9000, 17, 2), torch.ones(9000, 17).bool())
    assert len(before) > 2
