from __future__ import annotations

import pytest
import torch
from memorise import memorise

from pipeline.lift import Martinez
from pipeline.lift.losses import ZScoredMSE
from pipeline.lift.martinez import ResidualMLP, Statistics
from pipeline.training.precision import NetworkHalfPrecision, network_type


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("sizes", "parameters"),
    [
        ((32, 48, 1024, 2), 4_291_632),
        ((34, 48, 1024, 2), 4_293_680),
        ((34, 51, 1024, 2), 4_296_755),
        ((34, 51, 1024, 3), 6_400_051),
    ],
)
def test_numbers_of_parameters_are_those_published(sizes, parameters):
    with torch.device("meta"):
        assert count(ResidualMLP(*sizes)) == parameters


def test_lifter_maps_34_to_48_coordinates():
    with torch.device("meta"):
        assert count(Martinez()) == 4_293_680


def test_every_frame_is_lifted_on_its_own_and_the_root_is_zero():
    torch.manual_seed(0)
    net = Martinez(16).eval()
    clips = torch.randn(2, 5, 17, 2)
    poses = net(clips)
    assert poses.shape == (2, 5, 17, 3)
    assert (net.frames, net.receptive_field, net.output) == (1, 1, "every")
    assert not poses[:, :, 0].any()
    torch.testing.assert_close(net(clips[1:, 3:4])[0, 0], poses[1, 3], rtol=1e-5, atol=1e-6)


def statistics():
    torch.manual_seed(1)
    deviation3d = torch.rand(17, 3) + 0.05
    deviation3d[0] = 0
    mean3d = torch.randn(17, 3)
    mean3d[0] = 0
    return Statistics(torch.randn(17, 2), torch.rand(17, 2) + 0.1, mean3d, deviation3d)


def test_statistics_shift_and_scale_input_and_output():
    torch.manual_seed(0)
    plain, net, known = Martinez(16).eval(), Martinez(16).eval(), statistics()
    net.load_state_dict(plain.state_dict())
    net.set_statistics(known)
    zscored = torch.randn(3, 1, 17, 2)
    expected = plain(zscored) * known.deviation3d + known.mean3d
    result = net(zscored * known.deviation2d + known.mean2d)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_deviation_of_the_root_counts_as_one():
    net = Martinez(16)
    net.set_statistics(statistics())
    assert (net.deviation3d[0] == 1).all()
    assert torch.equal(net.deviation3d[1:], statistics().deviation3d[1:])


def test_statistics_are_part_of_the_state_dict():
    net, other = Martinez(16), Martinez(16)
    net.set_statistics(statistics())
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.mean2d, statistics().mean2d)


def test_pixels_and_normalised_input_give_the_same_output_after_z_scoring():
    torch.manual_seed(0)
    net, known = Martinez(16).eval(), statistics()
    net.set_statistics(known)
    clips = torch.randn(2, 1, 17, 2)
    normalised = net(clips)
    net.set_statistics(
        Statistics(
            known.mean2d * 500 + 480, known.deviation2d * 500, known.mean3d, known.deviation3d
        )
    )
    torch.testing.assert_close(net(clips * 500 + 480), normalised, rtol=1e-3, atol=1e-4)


def test_an_unseen_joint_changes_nothing():
    net = Martinez(16, unseen=["nose"]).eval()
    assert net.mlp.w1.in_features == 32
    clips = torch.randn(1, 1, 17, 2)
    moved = clips.clone()
    moved[..., net.skeleton.index("nose"), :] += 1
    assert torch.equal(net(moved), net(clips))


def test_the_score_channel_is_ignored():
    net = Martinez(16).eval()
    clips = torch.randn(1, 1, 17, 3)
    assert torch.equal(net(clips), net(clips[..., :2]))


def test_eight_poses_are_memorised():
    torch.manual_seed(0)
    net = Martinez(128, dropout=0.0)
    clips, poses = torch.rand(8, 1, 17, 2) * 2 - 1, torch.randn(8, 1, 17, 3) * 0.3
    poses[:, :, 0] = 0
    net.set_statistics(
        Statistics(clips.mean((0, 1)), clips.std((0, 1)), poses.mean((0, 1)), poses.std((0, 1)))
    )
    loss = ZScoredMSE(root=False)
    _, last = memorise(net, lambda net: loss(net(clips), poses), 150, 3e-3)
    assert last < 0.01 * poses.var()


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
def test_statistics_and_joints_stay_float32_where_the_weights_are_in_half_precision(
    precision, wrapped
):
    net = Martinez(width=8, blocks=1).eval()
    J = len(net.skeleton)
    mean2d = torch.full((J, 2), 0.30005)  # bf16 has 0.3008, float16 0.3000
    mean3d = torch.full((J, 3), 1.23456)
    net.set_statistics(Statistics(mean2d, torch.full((J, 2), 0.01), mean3d, torch.ones(J, 3)))
    with torch.no_grad():
        net.mlp.w1.weight.zero_()
        net.mlp.w2.weight.zero_()
        net.mlp.w2.bias.zero_()
    outer = torch.nn.Sequential(net) if wrapped else net
    NetworkHalfPrecision(precision).convert_module(outer)
    assert net.mlp.w1.weight.dtype in (torch.bfloat16, torch.float16)
    assert network_type(outer) == torch.float32
    seen = []
    net.mlp.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    assert torch.equal(net(mean2d[None, None] + 0.02)[0, 0], mean3d)
    assert seen[0].float().allclose(torch.tensor(2.0), atol=1e-2)
