"""The pose errors as torchmetrics classes with exact sums under DDP."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric

from pipeline.metrics.functional import (
    MILLIMETRES,
    Poses,
    aligned_errors,
    map_blocks,
    motion_errors,
    paired_frames,
    scaled_errors,
    visible_errors,
)


class ExactMetric(Metric):
    """A metric that keeps the types of its sums, whatever the precision of the run."""

    full_state_update = False

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        return super()._apply(lambda state: state.to(fn(state).device), exclude_state)


class _MeanError(ExactMetric):
    """Sum and count of errors in float64, added up over processes."""

    higher_is_better = False
    is_differentiable = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, errors: Tensor) -> None:
        self.total += errors.sum().to(self.total.device) * MILLIMETRES
        self.count += errors.numel()

    def compute(self) -> Tensor:
        """Millimetres, float64; NaN if nothing came."""
        return self.total / self.count


class MPJPE(_MeanError):
    """`mpjpe` over everything that `update(predicted, target, visible=None)` was given."""

    def update(self, predicted: Poses, target: Poses, visible: Tensor | None = None) -> None:
        """Add joints, metres, (..., J, 3); those that count, (..., J), or all."""
        self._add(visible_errors(predicted, target, visible))


class PMPJPE(_MeanError):
    """`p_mpjpe` over everything that `update(predicted, target)` was given."""

    def update(self, predicted: Poses, target: Poses) -> None:
        """Add frames, metres, (..., J, 3)."""
        self._add(map_blocks(aligned_errors, *paired_frames(predicted, target)))


class NMPJPE(_MeanError):
    """`n_mpjpe` over everything that `update(predicted, target)` was given."""

    def update(self, predicted: Poses, target: Poses) -> None:
        """Add frames, metres, (..., J, 3)."""
        self._add(map_blocks(scaled_errors, *paired_frames(predicted, target)))


class MPJVE(_MeanError):
    """`mpjve` over everything that `update(predicted, target)` was given."""

    def update(self, predicted: Poses, target: Poses) -> None:
        """Add clips, metres, (..., T, J, 3)."""
        self._add(motion_errors(predicted, target, order=1))
