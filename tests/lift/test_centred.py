"""The input is rotated towards the person, and the output is rotated back."""

from __future__ import annotations

import math

import pytest
import torch
from memorise import memorise
from scipy.spatial.transform import Rotation

from pipeline.lift import CentredLifter, Lifter, Martinez, MixSTE, VideoPose3D
from pipeline.lift.sequences import flip_joints


class Rays(Lifter):
    """Returns each joint as its input ray at depth 1, and records its input."""

    output = "every"

    def __init__(self, frames=1):
        super().__init__()
        self.frames = self.receptive_field = frames

    def forward(self, joints2d, visible=None):
        self.received = joints2d
        return torch.cat([joints2d[..., :2], torch.ones_like(joints2d[..., :1])], -1)


def people(B, T, spread=0.1):
    generator = torch.Generator().manual_seed(3)
    middle = torch.rand(B, T, 1, 2, generator=generator) - 0.5
    return middle + spread * torch.randn(B, T, 17, 2, generator=generator)


def test_input_is_that_of_a_camera_rotated_with_scipy():
    joints2d = people(1, 1)
    net = Rays()
    CentredLifter(net, focal=2.0, zoom=1.5)(joints2d)
    rays = torch.cat([joints2d[0, 0] / 2, torch.ones(17, 1)], -1).double().numpy()
    yaw = math.atan2(rays[0, 0], rays[0, 2])
    pitch = math.atan2(rays[0, 1], math.hypot(rays[0, 0], rays[0, 2]))
    turned = Rotation.from_euler("yx", [-yaw, pitch]).apply(rays)
    expected = 1.5 * 2 * turned[:, :2] / turned[:, 2:]
    assert expected[0] == pytest.approx([0, 0], abs=1e-6)
    assert net.received[0, 0, 1:].numpy() == pytest.approx(expected[1:], abs=1e-5)
    assert torch.equal(net.received[0, 0, 0], joints2d[0, 0, 0])


def test_output_is_rotated_back_to_the_real_camera():
    joints2d = people(2, 3)
    lifted = CentredLifter(Rays(3), focal=2.0, zoom=0.5)(joints2d)
    # zoom x focal = 1: the net gets rays, and rotated back they are the rays of the input
    expected = joints2d / 2
    assert torch.allclose(
        lifted[..., 1:, :2] / lifted[..., 1:, 2:], expected[..., 1:, :], atol=1e-5
    )


def test_a_frame_without_its_root_is_turned_towards_the_mean_of_its_joints():
    joints2d, visible = people(1, 1), torch.ones(1, 1, 17, dtype=torch.bool)
    visible[..., [0, 5]] = False
    joints2d[..., 5, :] = 9.0
    with_root = joints2d.clone()
    with_root[..., 0, :] = joints2d[visible].mean(0)
    net = Rays()
    CentredLifter(net)(joints2d, visible)
    without_root = net.received
    visible[..., 0] = True
    CentredLifter(net)(with_root, visible)
    assert torch.allclose(without_root[..., 1:, :], net.received[..., 1:, :], atol=1e-6)
    assert torch.equal(without_root[..., 5, :], joints2d[..., 5, :])


def test_a_frame_without_visible_joints_gives_finite_output():
    lifted = CentredLifter(Martinez(width=8))(
        torch.zeros(2, 1, 17, 2), torch.zeros(2, 1, 17).bool()
    )
    assert torch.isfinite(lifted).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_turns_the_output_as_float32_does(dtype):
    joints2d = people(2, 6).to(dtype)

    class Body(Rays):
        def forward(self, joints2d, visible=None):
            points = torch.linspace(-0.5, 0.7, 17, dtype=torch.float32)
            return torch.stack([points, points.flip(0), 2 + points], -1).expand(2, 6, 17, 3)

    net = CentredLifter(Body(6))
    assert net(joints2d).dtype == torch.float32
    torch.testing.assert_close(net(joints2d), net(joints2d.float()), rtol=0, atol=1e-6)
    rays = CentredLifter(Rays(6))
    rays(joints2d)
    assert rays.net.received.dtype == dtype


def test_a_mirrored_image_gives_the_mirrored_rays():
    joints2d, net = people(1, 2), Rays(2)
    swap = list(net.skeleton.swap)
    lifted = CentredLifter(net)(flip_joints(joints2d, swap))
    assert torch.allclose(lifted, flip_joints(CentredLifter(net)(joints2d), swap), atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_each_predicted_frame_is_rotated_back_by_its_own_angles(causal):
    torch.manual_seed(0)
    net = VideoPose3D(widths=[3, 3], channels=8, causal=causal).eval()
    whole, joints2d = CentredLifter(net), people(1, 12)
    one_by_one = torch.cat([whole(joints2d[:, t : t + 9]) for t in range(4)], 1)
    assert torch.allclose(whole(joints2d), one_by_one, atol=1e-5)
    assert whole.first_frame == (8 if causal else 4)


def test_the_score_channel_is_not_changed():
    net = Rays()
    CentredLifter(net)(torch.cat([people(1, 1), torch.full((1, 1, 17, 1), 0.7)], -1))
    assert torch.equal(net.received[..., 2], torch.full((1, 1, 17), 0.7))


def test_attributes_are_those_of_the_wrapped_lifter():
    whole = CentredLifter(MixSTE(frames=5, dim=8, depth=1, heads=2))
    assert (whole.frames, whole.output, whole.skeleton.name) == (5, "every", "H36M17")


def test_a_focal_length_of_zero_is_an_error():
    with pytest.raises(ValueError, match="focal"):
        CentredLifter(Rays(), focal=0.0)


def test_a_wrapped_lifter_memorises_eight_clips():
    torch.manual_seed(0)
    net, clips = CentredLifter(MixSTE(frames=3, dim=16, depth=1, heads=2, spread=0.5)), people(8, 3)
    poses = 0.3 * torch.randn(8, 3, 17, 3)
    first, last = memorise(net, lambda net: (net(clips) - poses).norm(dim=-1).mean(), 300, 1e-2)
    assert last < 0.3 * first
