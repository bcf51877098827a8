"""Every network memorises a handful of samples: here, or in the file that is named here."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
import torch
from memorise import memorise

from pipeline.heatmap import SimpleBaseline
from pipeline.heatmap.targets import encode_heatmaps, heatmap_loss
from pipeline.integral import SAN
from pipeline.integral.volumes import expectation
from pipeline.lift import Cascade

TESTS = Path(__file__).parent
MEMORISED_IN = {
    "HRNet": "heatmap/test_module.py",
    "SimpleBaseline": "test_learning.py",
    "SAN": "test_learning.py",
    "MixSTE": "lift/test_mixste.py",
    "PoseFormer": "lift/test_poseformer.py",
    "VideoPose3D": "lift/test_videopose3d.py",
    "CentredLifter": "lift/test_centred.py",
    "StridedLifter": "lift/test_strided.py",
    "Martinez": "lift/test_martinez.py",
    "CombinedDeepLearner": "lift/test_combined.py",
    "Cascade": "test_learning.py",
}
"""Network -> the file with the test that it memorises."""


@pytest.mark.parametrize(("network", "file"), MEMORISED_IN.items())
def test_every_network_has_a_test_that_it_memorises(network, file):
    tree = ast.parse((TESTS / file).read_text())
    tests = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    imported = {
        alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert network in imported
    assert any(name.startswith("test") and "memoris" in name for name in tests)


def test_no_network_is_forgotten():
    public = set()
    for stage in ("heatmap", "integral", "lift"):
        package = importlib.import_module(f"pipeline.{stage}")
        public |= {name for name in package.__all__ if not name.endswith("Module")}
    assert public - {"Lifter"} == set(MEMORISED_IN)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_simple_baseline_memorises_eight_crops():
    torch.manual_seed(0)
    images = torch.rand(8, 3, 32, 32)
    cells = torch.rand(8, 3, 2) * 7
    net = SimpleBaseline(50, 3)
    targets, weight = encode_heatmaps(cells, (8, 8), sigma=1.0), torch.ones(8, 3)
    first, last = memorise(
        net, lambda net: heatmap_loss(net(images), targets, weight), steps=45, rate=1e-3
    )
    assert last < 0.2 * first


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_san_memorises_eight_crops_in_three_dimensions():
    torch.manual_seed(0)
    images = torch.rand(8, 3, 64, 64)
    cells = torch.rand(8, 3, 3) * torch.tensor([15.0, 15.0, 7.0])
    net = SAN(50, 3, 8)
    for part in (net.layer1, net.layer2, net.layer3, net.layer4):
        part.requires_grad_(False)  # the test of the simple baseline trains such layers

    def distance(net):
        return (expectation(net(images)) - cells).abs().mean()

    first, last = memorise(net, distance, steps=80, rate=1e-3)
    assert last < 0.5 * first


def test_a_cascade_memorises_eight_poses():
    torch.manual_seed(0)
    clips, poses = torch.rand(8, 1, 17, 2) * 2 - 1, torch.randn(8, 1, 17, 3) * 0.3
    net = Cascade(2, 128, 1, dropout=0.0).train()
    for progress in (0.0, 0.5):
        net.set_progress(progress)
        _, last = memorise(net, lambda net: (net(clips) - poses).square().mean(), 150, 3e-3)
    assert last < 0.01 * poses.var()
