from __future__ import annotations

import pytest
import torch
from memorise import memorise
from torch.utils.flop_counter import FlopCounterMode

from pipeline.lift import PoseFormer
from pipeline.lift.losses import MPJPELoss
from pipeline.lift.poseformer import GroupAttention


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"frames": 9}, 9_563_645),
        ({"frames": 27}, 9_573_455),
        ({"frames": 81}, 9_602_885),
        ({"frames": 243}, 9_691_175),
        ({"frames": 9, "group_attention": True}, 9_822_717),
        ({"frames": 27, "group_attention": True}, 9_832_527),
        ({"frames": 81, "group_attention": True}, 9_861_957),
        ({"frames": 81, "group_attention": True, "groups": "channels"}, 9_626_437),
    ],
)
def test_numbers_of_parameters_are_those_of_the_papers(options, parameters):
    with torch.device("meta"):
        assert count(PoseFormer(**options)) == parameters


def small(**options):
    torch.manual_seed(0)
    return PoseFormer(frames=9, dim=16, depth=2, **options).eval()


def test_the_centre_frame_is_predicted_and_the_attributes_are_set():
    net = small()
    assert net(torch.zeros(2, 9, 17, 2)).shape == (2, 1, 17, 3)
    assert (net.frames, net.receptive_field, net.output) == (9, 9, "centre")


def test_clips_of_another_shape_are_an_error():
    with pytest.raises(ValueError, match="do not fit a PoseFormer"):
        small()(torch.zeros(1, 8, 17, 2))


@pytest.mark.parametrize("position", ["before_attention", "after_attention", "after_mlp"])
@pytest.mark.parametrize("which", [True, "spatial", "temporal"])
@pytest.mark.parametrize("groups", ["joints", "channels"])
def test_group_modules_start_as_the_identity(position, which, groups):
    base, extended = small(), small(group_attention=which, position=position, groups=groups)
    left = extended.load_state_dict(base.state_dict(), strict=False)
    assert left.missing_keys
    assert not left.unexpected_keys
    assert all(".group." in name for name in left.missing_keys)
    clips = torch.randn(2, 9, 17, 2)
    assert torch.equal(extended(clips), base(clips))


def test_positions_of_a_trained_group_module_give_different_outputs():
    nets = [
        small(group_attention=True, position=position)
        for position in ("before_attention", "after_attention", "after_mlp")
    ]
    with torch.no_grad():
        for name, parameter in nets[0].named_parameters():
            if "group.conv2" in name:
                parameter.normal_()
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    clips = torch.randn(1, 9, 17, 2)
    outputs = [net(clips) for net in nets]
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])


def trained_module(**options):
    torch.manual_seed(0)
    module = GroupAttention(8, **options)
    torch.nn.init.normal_(module.conv2.weight)
    return module


def test_group_module_is_the_papers_formula():
    module, tokens = trained_module(width=3, conv_groups=2, norm_groups=4), torch.randn(2, 5, 3, 8)
    rows = tokens[1, :, 2].T[None]
    hidden = torch.nn.functional.gelu(module.conv1(rows))
    expected = (module.conv2(module.norm(hidden)) + rows)[0].T
    torch.testing.assert_close(module(tokens, "frames")[1, :, 2], expected)
    rows = tokens[1, 4].T[None]
    hidden = torch.nn.functional.gelu(module.conv1(rows))
    expected = (module.conv2(module.norm(hidden)) + rows)[0].T
    torch.testing.assert_close(module(tokens, "joints")[1, 4], expected)


def test_dropout_acts_only_in_training():
    net, clips = small(dropout=0.5), torch.randn(2, 9, 17, 2)
    assert torch.equal(net(clips), net(clips))
    net.train()
    assert not torch.equal(net(clips), net(clips))


def test_number_of_operations_is_that_measured():
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        PoseFormer().eval()(torch.zeros(1, 81, 17, 2))
    assert counter.get_total_flops() == pytest.approx(2 * 846.9e6, rel=1e-3)


@pytest.mark.parametrize("group_attention", [False, True])
def test_eight_clips_are_memorised(group_attention):
    torch.manual_seed(0)
    net = PoseFormer(frames=3, dim=16, depth=2, group_attention=group_attention, drop_path=0.0)
    clips, poses = torch.rand(8, 3, 17, 2) * 2 - 1, torch.randn(8, 1, 17, 3) * 0.3
    _, last = memorise(net, lambda net: MPJPELoss()(net(clips), poses), 50, 1e-3)
    assert last < 0.2 * MPJPELoss()(poses.mean(0, keepdim=True).expand_as(poses), poses)
