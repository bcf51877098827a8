from __future__ import annotations

import platform

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import pipeline.lift.linear as layers
from pipeline.lift import MixSTE, VideoPose3D
from pipeline.lift.linear import Linear, linear
from pipeline.training.private_names import onednn_product

has_onednn = platform.machine() in ("x86_64", "AMD64") and onednn_product is not None


@pytest.fixture(
    params=[False, pytest.param(True, marks=pytest.mark.skipif(not has_onednn, reason="no oneDNN"))]
)
def either_product(request, monkeypatch):
    """torch's product and oneDNN's, whatever CPU this is."""
    monkeypatch.setattr(layers, "_HAS_ONEDNN", request.param)


@pytest.mark.usefixtures("either_product")
def test_product_and_gradients_are_those_of_torch():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 5, 7), torch.randn(3, 7), torch.randn(3)
    gradient = torch.randn(2, 5, 3)
    results = []
    for function in (linear, F.linear):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        out = function(*inputs)
        results.append([out, *torch.autograd.grad(out, inputs, gradient)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("either_product")
def test_gradients_are_right_where_only_some_are_needed():
    x, weight = torch.randn(4, 3, dtype=torch.float32), torch.randn(2, 3)
    assert not linear(x, weight).requires_grad
    weight.requires_grad_()
    (gradient,) = torch.autograd.grad(linear(x, weight).sum(), weight)
    torch.testing.assert_close(gradient, x.sum(0).expand(2, 3))
    bias = torch.zeros(2, requires_grad=True)
    (gradient,) = torch.autograd.grad(linear(x, weight.detach(), bias).sum(), bias)
    torch.testing.assert_close(gradient, torch.full((2,), 4.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_go_to_torch(dtype):
    x, weight = torch.randn(4, 3, dtype=dtype), torch.randn(2, 3, dtype=dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_autocast_applies():
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.randn(4, 3), torch.randn(2, 3)).dtype == torch.bfloat16


def test_a_flop_counter_counts_the_product():
    with FlopCounterMode(display=False) as counter:
        linear(torch.randn(4, 3), torch.randn(2, 3))
    assert counter.get_total_flops() == 2 * 4 * 3 * 2


def test_an_input_without_rows_is_no_error():
    assert linear(torch.zeros(0, 3), torch.zeros(2, 3)).shape == (0, 2)


def test_layer_has_the_parameter_names_of_torchs_layer():
    assert list(Linear(3, 2).state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("windows", "linux", "intel"),
    [
        ("Intel64 Family 6 Model 154 Stepping 3, GenuineIntel", None, True),
        ("AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD", None, False),
        ("", "processor\t: 0\nvendor_id\t: GenuineIntel\n", True),
        ("x86_64", "processor\t: 0\nvendor_id\t: AuthenticAMD\n", False),
    ],
)
def test_the_maker_of_the_cpu_is_known(windows, linux, intel, monkeypatch):
    def read(path, **options):
        if linux is None:
            raise FileNotFoundError(path)
        return linux

    monkeypatch.setattr(platform, "processor", lambda: windows)
    monkeypatch.setattr("pathlib.Path.read_text", read)
    assert layers._is_intel() == intel


def test_the_last_layer_is_in_float32_in_every_precision():
    """Steps of bfloat16 are 2 to 4 mm for coordinates of 0.25 to 1 m."""
    torch.manual_seed(4)
    for net in (MixSTE(frames=9, dim=16, depth=1, heads=2), VideoPose3D(widths=(3, 3), channels=8)):
        clip = torch.randn(1, 9, 17, 2)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = net.eval()(clip)
        assert mixed.dtype == torch.float32
        assert not torch.equal(mixed, mixed.bfloat16().float())
        assert net.to(torch.bfloat16)(clip.to(torch.bfloat16)).dtype == torch.float32
        assert net.to(torch.float64)(clip.double()).dtype == torch.float64
