"""Base of the metrics: sums and counts keep their types, whatever the precision of the run."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from pipeline.training.private_names import UncastStates


class ExactSumMetric(UncastStates, Metric):
    """A torchmetrics `Metric` whose states are moved between devices and never cast."""

    full_state_update = False


class WeightedMean(ExactSumMetric):
    """Mean of numbers with weights, in float64; NaN if one of them is NaN."""

    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: Tensor | float) -> None:
        """Add a number, scalar, with its weight."""
        self.total += (value.detach().double() * weight).to(self.total.device)
        self.weight += torch.as_tensor(weight, dtype=torch.float64, device=self.weight.device)

    def compute(self) -> Tensor:
        """The mean, scalar, float64; NaN before the first update."""
        return self.total / self.weight
