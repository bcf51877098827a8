"""Base of the metrics: sums and counts keep their types, whatever the precision of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric


class ExactSumMetric(Metric):
    """A torchmetrics `Metric` whose states are moved between devices and never cast."""

    full_state_update = False

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        return super()._apply(lambda state: state.to(fn(state).device), exclude_state)
