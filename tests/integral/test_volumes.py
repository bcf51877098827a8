"""Soft-argmax by hand."""

from __future__ import annotations

import pytest
import torch

from pipeline.integral.volumes import VolumeGrid, expectation, volume_loss


def test_expectation_of_a_peak_is_its_cell():
    volume = torch.zeros(1, 2, 4, 6, 8)
    volume[0, 0, 3, 2, 7] = volume[0, 1, 1, 5, 0] = 1000.0
    torch.testing.assert_close(expectation(volume), torch.tensor([[[7.0, 2, 3], [0, 5, 1]]]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_is_that_of_a_softmax_and_its_sums(layout):
    """Against torch's own derivative of the formula in float64, in both memory formats."""
    generator = torch.Generator().manual_seed(4)
    maps = 5 * torch.randn(2, 3 * 4, 6, 5, generator=generator)
    maps = maps.contiguous(memory_format=layout).requires_grad_()
    weights = torch.randn(2, 3, 3, generator=generator)
    found = expectation(maps.unflatten(1, (3, 4)))
    (found * weights).sum().backward()

    exact = maps.detach().double().requires_grad_()
    mass = exact.reshape(2, 3, -1).softmax(2).view(2, 3, 4, 6, 5)
    cells = torch.meshgrid(*(torch.arange(float(n)) for n in (4, 6, 5)), indexing="ij")
    expected = torch.stack([(mass * axis).sum((2, 3, 4)) for axis in reversed(cells)], 2)
    (expected * weights).sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(maps.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def test_expectation_of_two_peaks_is_their_weighted_mean():
    volume = torch.full((1, 1, 4, 6, 8), -1000.0)
    volume[0, 0, 0, 2, 1], volume[0, 0, 3, 4, 5] = 0.0, torch.tensor(3.0).log()
    torch.testing.assert_close(expectation(volume), torch.tensor([[[4.0, 3.5, 2.25]]]))


def test_expectation_is_computed_in_float32_and_passes_gradients():
    volume = torch.randn(1, 1, 4, 6, 8, dtype=torch.bfloat16, requires_grad=True)
    cells = expectation(volume)
    assert cells.dtype == torch.float32
    cells[..., 2].sum().backward()
    assert volume.grad.any()


def test_coordinates_that_are_missing_change_no_gradient():
    generator = torch.Generator().manual_seed(4)
    volumes = torch.randn(1, 3, 4, 8, 8, generator=generator)
    joints2d, depth = torch.tensor([[[9.0, 13.0], [7.0, 21.0], [3.0, 5.0]]]), torch.zeros(1, 3)
    weight, has_depth = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    gradients = []
    for missing in (0.0, torch.nan):
        leaf = volumes.clone().requires_grad_()
        joints2d[0, 1], depth[0, 1:] = missing, missing
        labels = {"weight": weight, "has_depth": has_depth, "grid": VolumeGrid(2.0, 1.5, 0.5)}
        volume_loss(leaf, joints2d, depth, **labels).backward()
        gradients.append(leaf.grad)
    assert gradients[1].isfinite().all()
    assert gradients[1].any()
    assert torch.equal(*gradients)
