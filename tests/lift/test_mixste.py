from __future__ import annotations

import pytest
import torch
from memorise import memorise
from torch.utils.flop_counter import FlopCounterMode

from pipeline.lift import MixSTE
from pipeline.lift.losses import MPJPELoss


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 33_783_811),
        ({"frames": 81}, 33_700_867),
        ({"frames": 27}, 33_673_219),
        ({"channels": 3}, 33_784_323),
    ],
)
def test_numbers_of_parameters_are_those_published(options, parameters):
    with torch.device("meta"):
        assert count(MixSTE(**options)) == parameters


def test_state_dict_has_the_204_tensors_of_the_published_one():
    with torch.device("meta"):
        assert len(MixSTE().state_dict()) == 204


def test_every_frame_is_predicted_and_the_attributes_are_set():
    net = MixSTE(frames=9, dim=16, depth=2)
    assert net(torch.zeros(2, 9, 17, 2)).shape == (2, 9, 17, 3)
    assert (net.frames, net.receptive_field, net.output) == (9, 9, "every")
    assert net.skeleton.name == "H36M17"


def test_position_embeddings_start_at_zero():
    net = MixSTE(frames=9, dim=16, depth=2)
    assert not net.Spatial_pos_embed.any()
    assert not net.Temporal_pos_embed.any()


@pytest.mark.parametrize("shape", [(1, 8, 17, 2), (1, 9, 16, 2), (1, 9, 17, 3)])
def test_clips_of_another_shape_are_an_error(shape):
    with pytest.raises(ValueError, match=r"do not fit a MixSTE built for \(B, 9, 17, 2\)"):
        MixSTE(frames=9, dim=16, depth=2)(torch.zeros(shape))


def test_drop_path_acts_only_in_training():
    torch.manual_seed(0)
    net = MixSTE(frames=9, dim=16, depth=3, drop_path=0.9)
    clips = torch.randn(2, 9, 17, 2)
    assert not torch.equal(net(clips), net(clips))
    net.eval()
    assert torch.equal(net(clips), net(clips))


def test_clips_of_a_batch_do_not_depend_on_each_other():
    torch.manual_seed(0)
    net = MixSTE(frames=9, dim=16, depth=2).eval()
    clips = torch.randn(3, 9, 17, 2)
    torch.testing.assert_close(net(clips)[1:2], net(clips[1:2]), rtol=1e-5, atol=1e-6)


def test_number_of_operations_is_that_measured():
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        MixSTE().eval()(torch.zeros(1, 243, 17, 2))
    assert counter.get_total_flops() == pytest.approx(294.9e9, rel=1e-3)


def test_eight_clips_are_memorised():
    torch.manual_seed(0)
    net = MixSTE(frames=2, dim=32, depth=2, drop_path=0.0)
    clips, poses = torch.rand(8, 2, 17, 2) * 2 - 1, torch.randn(8, 1, 17, 3) * 0.3
    poses = poses.expand(8, 2, 17, 3)
    _, last = memorise(net, lambda net: MPJPELoss()(net(clips), poses), 220, 3e-3)
    assert last < 0.25 * MPJPELoss()(poses.mean(0, keepdim=True).expand_as(poses), poses)


def test_spread_makes_the_first_output_differ_between_joints_and_frames():
    clip = 0.2 * torch.randn(1, 9, 17, 2, generator=torch.Generator().manual_seed(0))

    def deviation(spread):
        torch.manual_seed(0)
        net = MixSTE(frames=9, dim=16, depth=2, spread=spread).eval()
        return [net(same).std(dim).mean() for same, dim in ((0 * clip, 2), (clip, 1))]

    for plain, spread in zip(deviation(0.0), deviation(0.5), strict=True):
        assert spread > 2 * plain
