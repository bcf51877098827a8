"""The lifter: what a network must be so that room 3 can train, stitch and export it."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pipeline.skeleton import H36M17, Skeleton


class Lifter(nn.Module):
    """Base class of the networks that turn 2D clips into 3D clips.

    Attributes:
        skeleton: The joint set on axis J.
        frames: T, the number of frames it is fed.
        receptive_field: Frames that decide one output frame.
        output: Which frames come out of T: `every` (T' = T), `centre` (T' = 1), or `valid`
            (T' = T - receptive_field + 1).
        causal: Whether no output frame sees frames behind it.
    """

    skeleton: Skeleton = H36M17
    frames: int
    receptive_field: int
    output: Literal["every", "centre", "valid"]
    causal: bool = False

    @property
    def first_frame(self) -> int:
        """Which of the T frames is the first that comes out."""
        around = 0 if self.output == "every" else self.receptive_field - 1
        return around if self.causal else around // 2

    def forward(self, joints2d: Tensor, visible: Tensor | None = None) -> Tensor:
        """Lift clips.

        Args:
            joints2d: Normalised 2D, (B, T, J, C), C = 2 (x, y) or 3 (x, y, score). Where a joint is
                not visible the caller has written the mask token; no NaN arrives here.
            visible: Which joints were seen, (B, T, J); a network may ignore it.

        Returns:
            Root-relative joints in the camera frame, metres, (B, T', J, 3).
        """
        raise NotImplementedError

    def set_progress(self, done: float) -> None:
        """Be told, at the start of each epoch, which share of the training is done, in [0, 1)."""
