"""Muon, an optimizer that orthogonalises the steps of weight matrices, with AdamW for the rest."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of hidden layers, AdamW for all other weights, with one learning rate.

    Both make the steps of `torch.optim`. Muon has one momentum for each matrix (Jordan et al. 2024,
    "Muon: an optimizer for hidden layers in neural networks"). Its steps are scaled to the size of
    those of AdamW (Liu et al. 2025, "Muon is scalable for LLM training", equation 4), so that a
    learning rate fits both. Matrices of one shape are computed at once and in float32, where torch
    has one after the other in bfloat16, which is slow on CPUs without such instructions. A kernel
    of a convolution of images, (A, B, H, W), is a matrix too, (A, B H W), as in Jordan et al.

    Args:
        params: Parameters that are trained.
        lr: Learning rate of both.
        weight_decay: Decoupled weight decay of both.
        momentum: Momentum of Muon.
        smallest: A matrix is that of a hidden layer if both its sizes are at least this large.
            Smaller ones take in or give out the coordinates of a joint, as in MixSTE; for networks
            that take in or give out all joints at once give more than 3 J.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 2e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        smallest: int = 16,
    ) -> None:
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for parameter in params:
            hidden = parameter.ndim in (2, 4) and min(parameter.flatten(1).shape) >= smallest
            (matrices if hidden else others).append(parameter)
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(
                _MatrixMuon(matrices, lr=lr, weight_decay=weight_decay, momentum=momentum)
            )
        if others:
            adamw = torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, fused=True)
            self._parts.append(adamw)
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Give the two optimizers the settings and the state of this one."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore settings and state; see `torch.optim.Optimizer.load_state_dict`."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make a step; see `torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


class _MatrixMuon(torch.optim.Optimizer):
    """The step of `torch.optim.Muon`, with all matrices of one shape at once."""

    def __init__(
        self, params: list[Tensor], *, lr: float, weight_decay: float, momentum: float
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make a step; the closure was called by `Muon.step`."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[_channels_last(parameter).shape].append(parameter)
            for shape, parameters in shapes.items():
                ahead = torch.stack([self._look_ahead(p, group["momentum"]) for p in parameters])
                steps = orthogonalize(ahead.flatten(2)).view_as(ahead)
                length = group["lr"] * 0.2 * math.sqrt(max(shape[0], shape[1:].numel()))
                for parameter, step in zip(parameters, steps, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    _channels_last(parameter).add_(step, alpha=-length)

    def _look_ahead(self, parameter: Tensor, momentum: float) -> Tensor:
        """Move the running mean of a matrix's gradients, and return Nesterov's mean."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        mean: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return _channels_last(gradient.lerp(mean, momentum))


def _channels_last(kernel: Tensor) -> Tensor:
    """A view of a kernel, (A, B, H, W) -> (A, H, W, B); other tensors stay.

    The 2D stages keep their kernels in this order in memory, so nothing is copied. The order of a
    matrix's columns does not change Muon's step.
    """
    return kernel.movedim(1, -1) if kernel.ndim == 4 else kernel


def orthogonalize(matrices: Tensor) -> Tensor:
    """Make all singular values about 1, with five Newton-Schulz steps in float32.

    Matrices that are four times as long as wide, such as kernels of 3 x 3, are multiplied once: the
    steps are made with their Gram matrix alone, which needs less than half of the multiplications.

    Args:
        matrices: Matrices, (N, A, B).

    Returns:
        Matrices with the same singular vectors, and singular values of about 0.7 to 1.2, (N, A, B).
    """
    a, b, c = 3.4445, -4.775, 2.0315  # Jordan et al. 2024
    found = matrices.float()
    if wide := found.shape[1] < found.shape[2]:
        found = found.mT
    found = found / torch.linalg.matrix_norm(found, keepdim=True).clamp(min=1e-7)
    if found.shape[1] < 4 * found.shape[2]:
        for _ in range(5):
            gram = found.mT @ found
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            found = torch.baddbmm(found, found, factor, beta=a)
    else:
        gram, product = found.mT @ found, None
        for _ in range(5):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=-2, dim2=-1).add_(a)
            product = factor if product is None else product @ factor
            gram = factor @ gram @ factor
        found = found @ product
    return found.mT if wide else found
