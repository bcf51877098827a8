"""Muon: which weights each of the two optimizers gets, and that one state holds both."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pipeline.lift import MixSTE
from pipeline.training import Muon
from pipeline.training.muon import orthogonalize


def small_net() -> nn.Module:
    """Matrices of 24 x 34 and 3 x 24, and biases."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(34, 24), nn.GELU(), nn.Linear(24, 3))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    """Make steps on a fixed regression."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        inputs = torch.randn(8, 34, generator=generator)
        loss = (net(inputs) - inputs[:, :3].sin()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Whether all weights are the same bits."""
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_hidden_matrices_get_torchs_muon_and_the_rest_adamw(monkeypatch) -> None:
    """The steps are those of the two optimizers of torch, made by hand, with torch's in float32."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    ours, theirs = small_net(), small_net()
    train(ours, Muon(ours.parameters(), lr=0.01, weight_decay=0.02, momentum=0.9), 5, 7)
    matrix, *rest = theirs.parameters()
    settings = {"lr": 0.01, "weight_decay": 0.02}
    muon = torch.optim.Muon([matrix], **settings, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, **settings, fused=True)

    class Both:
        def zero_grad(self) -> None:
            muon.zero_grad(), adamw.zero_grad()

        def step(self) -> None:
            muon.step(), adamw.step()

    train(theirs, Both(), 5, 7)  # type: ignore[arg-type]
    nets = (ours, theirs, small_net())
    for x, y, start in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
        assert (x - start).abs().max() > 1e-3


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 40, 17), (4, 17, 40), (4, 17, 90)])
def test_singular_values_become_about_one_and_singular_vectors_stay(shape) -> None:
    generator = torch.Generator().manual_seed(5)
    matrices = (
        torch.randn(shape, generator=generator)
        * torch.tensor([1e-4, 3.0, 50, 1])[: shape[0], None, None]
    )
    found = orthogonalize(matrices)
    left, _, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    inside = left.mT @ found.double() @ right.mT  # diagonal: the new singular values
    values = inside.diagonal(dim1=-2, dim2=-1)
    assert values.quantile(0.1) > 0.6
    assert values.max() < 1.3
    torch.testing.assert_close(inside, values.diag_embed(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(32, 288), (288, 32)])
def test_long_matrices_get_the_five_steps_as_written(shape) -> None:
    """Also one of rank 8, where all other singular values are noise; in float64 by hand."""
    generator = torch.Generator().manual_seed(6)
    full = torch.randn(2, *shape, generator=generator)
    full[1] = full[1, :, :8] @ full[1, :8] + 1e-4 * full[1]
    expected = full.double()
    expected = expected / expected.square().sum(dim=(1, 2), keepdim=True).sqrt()
    for _ in range(5):
        gram = expected @ expected.mT
        expected = 3.4445 * expected + (-4.775 * gram + 2.0315 * gram @ gram) @ expected
    difference = (orthogonalize(full).double() - expected).abs().amax(dim=(1, 2))
    assert (difference < torch.tensor([1e-5, 1e-3])).all()


def test_matrices_of_several_shapes_are_trained_as_each_alone() -> None:
    shapes = [(20, 17), (17, 20), (20, 17), (24, 24)]
    generator = torch.Generator().manual_seed(9)
    gradients = [torch.randn(shape, generator=generator) for shape in shapes]

    def trained(group):
        parameters = [nn.Parameter(torch.ones(shapes[n])) for n in group]
        optimizer = Muon(parameters, lr=0.1)
        for _ in range(2):
            for n, parameter in zip(group, parameters, strict=True):
                parameter.grad = gradients[n].clone()
            optimizer.step()
        return parameters

    alone = [trained([n])[0] for n in range(len(shapes))]
    for a, b in zip(trained(range(len(shapes))), alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_a_kernel_of_a_convolution_gets_the_step_of_its_matrix() -> None:
    """Also with channels last in memory. A kernel with a single input per output gets AdamW."""
    gradient = torch.randn(20, 18, 3, 3, generator=torch.Generator().manual_seed(4))
    matrix, kernel, last = (nn.Parameter(torch.ones(20, 18, 3, 3)) for _ in range(3))
    matrix.data = matrix.data.flatten(1)
    last.data = last.data.to(memory_format=torch.channels_last)
    for parameter in (matrix, kernel, last):
        optimizer = Muon([parameter], lr=0.1)
        for _ in range(2):
            parameter.grad = gradient.view_as(parameter).clone()
            optimizer.step()
        torch.testing.assert_close(parameter.flatten(1), matrix, rtol=0, atol=1e-6)
    assert (matrix - 1).abs().mean() > 1e-2
    single = nn.Parameter(torch.ones(20, 1, 3, 3))
    assert [len(group["params"]) for group in Muon([kernel, single]).param_groups] == [1, 1]


def test_a_matrix_without_a_gradient_stays() -> None:
    frozen, trained = nn.Parameter(torch.ones(20, 20)), nn.Parameter(torch.ones(20, 20))
    optimizer = Muon([frozen, trained], lr=0.1)
    trained.sum().backward()
    optimizer.step()
    assert bool((frozen == 1).all())
    assert bool((trained != 1).all())


def test_coordinates_and_positions_are_no_hidden_matrices() -> None:
    net = MixSTE(frames=9, dim=32, depth=2, heads=4)
    optimizer = Muon(net.parameters())
    hidden = {id(p) for p in optimizer.param_groups[0]["params"]}
    shapes = {name: p.shape for name, p in net.named_parameters() if id(p) in hidden}
    assert all(len(shape) == 2 and min(shape) >= 16 for shape in shapes.values())
    assert len(shapes) == 2 * 2 * 4  # two depths of two blocks: qkv, projection, two of the MLP
    trained = sum(len(group["params"]) for group in optimizer.param_groups)
    assert trained == len(list(net.parameters()))


def test_a_restored_optimizer_goes_on_with_the_same_bits() -> None:
    net = small_net()
    optimizer = Muon(net.parameters(), lr=0.01)
    train(net, optimizer, 4, 1)
    restored = small_net()
    restored.load_state_dict(copy.deepcopy(net.state_dict()))
    other = Muon(restored.parameters(), lr=0.5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, optimizer, 4, 2)
    train(restored, other, 4, 2)
    assert equal(net, restored)


def test_a_schedule_changes_the_learning_rate_of_both() -> None:
    net = small_net()
    optimizer = Muon(net.parameters(), lr=0.01, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    train(net, optimizer, 1, 1)
    schedule.step()
    before = copy.deepcopy(net)
    train(net, optimizer, 3, 2)
    assert equal(net, before)
    assert len(optimizer.param_groups) == 2


def test_a_network_of_matrices_or_of_biases_alone_is_trained_too() -> None:
    for parameter in (nn.Parameter(torch.ones(20, 17)), nn.Parameter(torch.ones(9))):
        optimizer = Muon([parameter], lr=0.1)
        (parameter * torch.arange(parameter.numel()).view_as(parameter)).sum().backward()
        optimizer.step()
        assert len(optimizer.param_groups) == 1
        assert bool((parameter != 1).any())
