"""Muon, an optimizer that orthogonalises the steps of weight matrices, with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of hidden layers, AdamW for all other weights, with one learning rate.

    Both are those of `torch.optim`. Muon has one momentum for each matrix
    (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural
    networks"). Its steps are scaled to the size of those of AdamW (Liu et al. 2025, "Muon is
    scalable for LLM training", equation 4), so that a learning rate fits both.

    Args:
        params: Parameters that are trained.
        lr: Learning rate of both.
        weight_decay: Decoupled weight decay of both.
        momentum: Momentum of Muon.
        smallest: A parameter with two dimensions is a matrix of a hidden layer if both are at least
            this large. Smaller ones take in or give out coordinates.
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
            hidden = parameter.ndim == 2 and min(parameter.shape) >= smallest
            (matrices if hidden else others).append(parameter)
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(
                torch.optim.Muon(
                    matrices,
                    lr=lr,
                    weight_decay=weight_decay,
                    momentum=momentum,
                    adjust_lr_fn="match_rms_adamw",
                )
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
