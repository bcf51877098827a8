from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from memorise import memorise
from torch.utils.flop_counter import FlopCounterMode

from pipeline.lift import VideoPose3D
from pipeline.lift.losses import MPJPELoss
from pipeline.lift.videopose3d import gather_frames


@pytest.mark.parametrize(
    ("levels", "parameters"), [(3, 8_555_571), (4, 12_753_971), (5, 16_952_371)]
)
def test_numbers_of_parameters_are_those_published(levels, parameters):
    with torch.device("meta"):
        net = VideoPose3D(widths=(3,) * levels)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert net.receptive_field == net.frames == 3**levels
    assert net.output == "valid"


def small(**options):
    torch.manual_seed(0)
    net = VideoPose3D(**{"widths": (3, 5, 3), "channels": 16} | options)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


def plain_forward(net, clips):
    """The network by torch's dilated convolutions over (B, C, T)."""
    x = F.relu(net.expand_bn(F.conv1d(clips.flatten(2).mT, net.expand_conv.weight)))
    dilation = net.widths[0]
    for i, width in enumerate(net.widths[1:]):
        pad = (width - 1) * dilation // 2
        shift = pad if net.causal else 0
        kept = x[:, :, pad + shift : x.shape[2] - pad + shift]
        y = F.conv1d(x, net.layers_conv[2 * i].weight, dilation=dilation)
        y = F.relu(net.layers_bn[2 * i](y))
        y = F.relu(net.layers_bn[2 * i + 1](net.layers_conv[2 * i + 1](y)))
        x, dilation = kept + y, dilation * width
    return net.shrink(x).mT.unflatten(-1, (17, 3))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("frames", [45, 46, 60])
def test_output_is_that_of_dilated_convolutions(causal, frames):
    net, clips = small(causal=causal), torch.randn(2, frames, 17, 2)
    output = net(clips)
    assert output.shape == (2, frames - 44, 17, 3)
    torch.testing.assert_close(output, plain_forward(net, clips), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_strided_form_on_each_window_is_the_dilated_form_on_the_whole_sequence(causal):
    net, sequence = small(causal=causal), torch.randn(1, 50, 17, 2)
    windows = sequence[0].unfold(0, 45, 1).permute(0, 3, 1, 2)
    torch.testing.assert_close(net(windows)[:, 0], net(sequence)[0], rtol=1e-5, atol=1e-5)


def frame_gradients(net, frames, output):
    """Size of the gradient of one output frame with respect to each input frame."""
    clips = torch.randn(1, frames, 17, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(clips)[0, output].sum(), clips)
    return gradient.abs().sum((0, 2, 3))


def test_output_frame_depends_on_its_receptive_field_only():
    gradients = frame_gradients(small(), 60, 4)
    assert (gradients[4:49] > 0).all()
    assert not gradients[:4].any()
    assert not gradients[49:].any()


@pytest.mark.parametrize("causal", [False, True])
def test_residual_carries_the_centre_frame_or_the_last_if_causal(causal):
    net = small(causal=causal)
    for conv in net.layers_conv:
        torch.nn.init.zeros_(conv.weight)
    for frames in (45, 50):
        used = torch.nonzero(frame_gradients(net, frames, 0)).ravel().tolist()
        assert used == ([42, 43, 44] if causal else [21, 22, 23])


def test_strided_gather_is_a_view():
    features = torch.randn(2, 9, 4)
    taps = gather_frames(features, 3, 1, strided=True)
    assert taps.data_ptr() == features.data_ptr()
    assert torch.equal(taps[1, 2, 0], features[1, 6])


def test_clips_that_are_too_short_and_even_widths_are_errors():
    with pytest.raises(ValueError, match="44 frames are fewer than the 45"):
        small()(torch.zeros(1, 44, 17, 2))
    with pytest.raises(ValueError, match="must be odd"):
        VideoPose3D(widths=(3, 4))


def test_momentum_of_the_norms_decays_from_0_1_to_0_001():
    net = small()
    for done, momentum in ((0.0, 0.1), (0.5, 0.01), (1.0, 0.001)):
        net.set_progress(done)
        assert net.expand_bn.momentum == pytest.approx(momentum)
        assert net.layers_bn[3].momentum == pytest.approx(momentum)


def test_number_of_operations_of_the_strided_form_is_that_measured():
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        VideoPose3D().eval()(torch.zeros(1, 243, 17, 2))
    assert counter.get_total_flops() == pytest.approx(0.35e9, rel=0.01)


def test_eight_clips_are_memorised():
    net = small(widths=(3, 3), channels=64, dropout=0.0).train()
    clips, poses = torch.rand(8, 9, 17, 2) * 2 - 1, torch.randn(8, 1, 17, 3) * 0.3
    loss = MPJPELoss()
    _, last = memorise(net, lambda net: loss(net(clips), poses), 150, 3e-3, amsgrad=True)
    assert last < 0.1 * MPJPELoss()(poses.mean(0, keepdim=True).expand_as(poses), poses)
