"""Base of the metrics: sums and counts keep their types, whatever the precision of the run."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from pipeline.training.private_names import UncastStates


class ExactSumMetric(UncastStates, Metric):
    """A torchmetrics `Metric` whose states are moved between devices and never cast."""

    full_state_update = False


class ExactMean(ExactSumMetric):
    """A mean: its sum and its count in float64, summed over processes; NaN if a part is NaN."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, total: Tensor, count: Tensor | float) -> None:
        """Add a sum of `count` numbers, scalar."""
        self.total += total.to(self.total.device)
        self.count += torch.as_tensor(count, dtype=torch.float64, device=self.count.device)

    def compute(self) -> Tensor:
        """The mean, scalar, float64; NaN before the first update."""
        return self.total / self.count


class WeightedMean(ExactMean):
    """Mean of numbers with weights."""

    def update(self, value: Tensor, weight: Tensor | float) -> None:
        """Add a number, scalar, with its weight."""
        self.add(value.detach().double() * weight, weight)
