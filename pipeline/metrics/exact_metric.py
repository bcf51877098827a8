"""Base of the metrics: sums and counts keep their types, whatever the precision of the run."""

from __future__ import annotations

from torchmetrics import Metric

from pipeline.training.private_names import UncastStates


class ExactSumMetric(UncastStates, Metric):
    """A torchmetrics `Metric` whose states are moved between devices and never cast."""

    full_state_update = False
