import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import UsageError
from pipeline.heatmap import HRNet, SimpleBaseline
from pipeline.heatmap.attention import PAPER003, POSITIONS, Attention
from pipeline.heatmap.resnet import fold_norms
from pipeline.integral import SAN

GOLDEN = Path(os.environ.get("HEATLIFT_SHARED", "../shared")) / "golden"
NARROW = {"width": 8, "stem": 16, "planes": 8, "blocks": 1, "modules": (1, 1, 1)}


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def golden_weight(name: str, shape: list[int]) -> torch.Tensor:
    """The weight that golden/README.md defines for a name."""
    r = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        value = r.uniform(0.5, 1.5, shape)
    elif name.endswith("running_mean"):
        value = 0.1 * r.standard_normal(shape)
    elif len(shape) >= 2:
        value = r.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        value = 1 + 0.1 * r.standard_normal(shape)
    else:
        value = 0.1 * r.standard_normal(shape)
    return torch.tensor(value, dtype=torch.float32)


def shaken(net: nn.Module) -> nn.Module:
    """Norms as training leaves them, and heatmaps that are not nearly zero."""
    torch.manual_seed(3)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
    nn.init.normal_(net.final_layer.weight)
    return net.eval()


@pytest.mark.parametrize(
    ("file", "network"),
    [("hrnet_w32_coco17_256x192", HRNet), ("simple_baseline_r50_coco17_256x192", SimpleBaseline)],
)
def test_a_network_computes_what_its_published_implementation_computes(file, network):
    path = GOLDEN / f"{file}.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there; set HEATLIFT_SHARED")
    with np.load(path) as golden:
        meta, expected = json.loads(bytes(golden["meta"])), golden["output"]
    net = network().eval()
    shapes = {name: list(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes == dict(meta["keys"])
    net.load_state_dict({name: golden_weight(name, shape) for name, shape in meta["keys"]})
    noise = 0.5 * np.random.RandomState(0).standard_normal(meta["input_shape"])
    with torch.inference_mode():
        output = net(torch.tensor(noise, dtype=torch.float32)).numpy()
    kept = output[tuple(slice(None, None, step) for step in meta["kept"])]
    assert np.abs(kept - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (lambda: HRNet(32, 17), 28_536_113),
        (lambda: HRNet(32, 16), 28_536_080),
        (lambda: HRNet(48, 17), 63_595_745),
        (lambda: HRNet(48, 16), 63_595_696),
        (lambda: HRNet(16, 17, stem=32, planes=16, blocks=1, modules=(1, 1, 1)), 697_601),
        (lambda: SimpleBaseline(50, 16), 33_999_440),
        (lambda: SimpleBaseline(50, 17), 33_999_697),
        (lambda: SimpleBaseline(101, 17), 52_991_825),
        (lambda: SimpleBaseline(152, 17), 68_635_473),
    ],
)
def test_parameters_are_counted_as_published(make, parameters):
    with torch.device("meta"):
        assert count(make()) == parameters


def test_hrnet_has_1754_tensors_and_the_simple_baseline_338():
    with torch.device("meta"):
        assert len(HRNet().state_dict()) == 1754
        assert len(SimpleBaseline().state_dict()) == 338


def test_heatmaps_have_a_quarter_of_the_images_sides():
    net = HRNet(joints=5, **NARROW)
    assert net(torch.zeros(2, 3, 64, 96)).shape == (2, 5, 16, 24)


def test_an_attention_module_costs_what_the_table_implies():
    assert [count(Attention(width)) for width in (32, 64, 128, 256)] == [
        861_088,
        869_312,
        885_760,
        918_656,
    ]


@pytest.mark.parametrize(
    ("places", "millions"),
    [
        ([p for p in POSITIONS if p[1] <= 1], 31.12),
        ([p for p in POSITIONS if p[1] <= 2], 33.73),
        ([p for p in POSITIONS if p[1] <= 3], 35.50),
        (POSITIONS, 36.42),
        ([p for p in POSITIONS if p[0] == 1], 30.27),
        (PAPER003, 31.99),
    ],
)
def test_attention_brings_hrnet_to_the_size_of_the_papers_rows(places, millions):
    with torch.device("meta"):
        assert round(count(HRNet(32, 17, places)) / 1e6, 2) == millions


@pytest.mark.parametrize("place", POSITIONS)
@torch.no_grad()
def test_new_attention_at_any_place_leaves_the_heatmaps_unchanged(place):
    base = shaken(HRNet(joints=3, **NARROW))
    more = HRNet(joints=3, attention=(place,), **NARROW).eval()
    loaded = more.load_state_dict(base.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    assert all(key.startswith("attention.") for key in loaded.missing_keys)
    x = torch.randn(1, 3, 32, 32)
    expected = base(x)
    assert torch.equal(more(x), expected)
    nn.init.normal_(more.attention["_".join(map(str, place))].expand.weight)
    assert not torch.allclose(more(x), expected, atol=1e-3)


def test_attention_where_there_is_no_subnetwork_is_an_error():
    with pytest.raises(UsageError, match=r"\(1, 3\)"):
        HRNet(attention=((1, 3),), **NARROW)


def test_a_resnet_of_unknown_depth_is_an_error():
    with pytest.raises(UsageError, match="ResNet-34"):
        SimpleBaseline(34)


@pytest.mark.parametrize(
    "make",
    [
        lambda: HRNet(joints=3, **NARROW),
        lambda: HRNet(joints=3, attention=((2, 2),), **NARROW),
        lambda: SimpleBaseline(50, 3),
        lambda: SAN(50, 3, 2),
    ],
    ids=["HRNet", "HRNet with attention", "SimpleBaseline", "SAN"],
)
def test_folding_norms_leaves_the_heatmaps_and_the_original(make):
    net = shaken(make())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, output = net(x), fold_norms(net)(x)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fold_norms(net).modules())
    torch.testing.assert_close(output, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_folding_norms_reaches_transposed_convolutions():
    deconvolutions = nn.Sequential(nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6))
    deconvolutions[1].running_var.uniform_(0.5, 1.5)
    deconvolutions.eval()
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(fold_norms(deconvolutions)(x), deconvolutions(x))
