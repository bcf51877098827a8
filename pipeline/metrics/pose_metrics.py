"""MPJPE, P-MPJPE, rigid MPJPE, N-MPJPE and MPJVE as torchmetrics classes; exact under DDP."""

from __future__ import annotations

from torch import Tensor

from pipeline.metrics.exact_metric import ExactMean
from pipeline.metrics.functional import (
    MILLIMETRES,
    Poses,
    aligned_errors,
    derivative_errors,
    map_blocks,
    paired_frames,
    rigid_errors,
    scaled_errors,
    visible_errors,
)


class _MeanError(ExactMean):
    """Mean of errors in millimetres, scalar, float64; NaN before the first update."""

    higher_is_better = False
    is_differentiable = False

    def _add_errors(self, errors: Tensor) -> None:
        self.add(errors.sum() * MILLIMETRES, errors.numel())


class MPJPE(_MeanError):
    """`mpjpe` of everything that `update(predicted, target, visible=None)` was called with."""

    def update(self, predicted: Poses, target: Poses, visible: Tensor | None = None) -> None:
        """Add joints.

        Args:
            predicted: Predicted joints, metres, (..., J, 3).
            target: True joints, metres, (..., J, 3).
            visible: Whether a joint counts, (..., J); none for all.
        """
        self._add_errors(visible_errors(predicted, target, visible))


class PMPJPE(_MeanError):
    """`p_mpjpe` of everything that `update(predicted, target)` was called with."""

    def update(self, predicted: Poses, target: Poses) -> None:
        """Add predicted and true frames, metres, (..., J, 3)."""
        self._add_errors(map_blocks(aligned_errors, *paired_frames(predicted, target)))


class RigidMPJPE(_MeanError):
    """`rigid_mpjpe` of everything that `update(predicted, target)` was called with."""

    def update(self, predicted: Poses, target: Poses) -> None:
        """Add predicted and true frames, metres, (..., J, 3)."""
        self._add_errors(map_blocks(rigid_errors, *paired_frames(predicted, target)))


class NMPJPE(_MeanError):
    """`n_mpjpe` of everything that `update(predicted, target)` was called with."""

    def update(self, predicted: Poses, target: Poses) -> None:
        """Add predicted and true frames, metres, (..., J, 3)."""
        self._add_errors(map_blocks(scaled_errors, *paired_frames(predicted, target)))


class MPJVE(_MeanError):
    """`mpjve` of everything that `update(predicted, target)` was called with."""

    def update(self, predicted: Poses, target: Poses) -> None:
        """Add predicted and true clips, metres, (..., T, J, 3)."""
        self._add_errors(derivative_errors(predicted, target, order=1))
