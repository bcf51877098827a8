"""The base class of lifters: what training, stitching and export need to know of a network."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pipeline.skeleton import H36M17, Skeleton


class Lifter(nn.Module):
    """Base class of the networks that turn 2D clips into 3D clips.

    Attributes:
        skeleton: Joint set on axis J.
        frames: T, the number of frames in a training window.
        receptive_field: Number of input frames that one output frame depends on.
        output: Predicted frames among the T: `every` (T' = T), `centre` (T' = 1), or `valid`
            (T' = T - receptive_field + 1).
        causal: Whether an output frame depends on no later frame.
    """

    skeleton: Skeleton = H36M17
    frames: int
    receptive_field: int
    output: Literal["every", "centre", "valid"]
    causal: bool = False

    @property
    def first_frame(self) -> int:
        """Index of the first predicted frame among the T input frames."""
        around = 0 if self.output == "every" else self.receptive_field - 1
        return around if self.causal else around // 2

    def forward(self, joints2d: Tensor, visible: Tensor | None = None) -> Tensor:
        """Lift clips.

        Args:
            joints2d: Normalised 2D, (B, T, J, C), C = 2 (x, y) or 3 (x, y, score). Where a joint is
                not visible the caller has written the mask token; it holds no NaN.
            visible: Visibility of the joints, bool, (B, T, J); a network may ignore it.

        Returns:
            Root-relative joints in the camera frame, metres, (B, T', J, 3).
        """
        raise NotImplementedError

    def set_progress(self, done: float) -> None:
        """Adapt to the progress of training; called before each batch.

        Args:
            done: Share of the training that is done, in [0, 1]; see `Progress.of_network`.
        """

    def check_clips(self, joints2d: Tensor, joints: int, channels: int) -> None:
        """Check the shape of clips for a network that takes no other.

        Raises:
            ValueError: If the clips are not (B, `frames`, joints, channels).
        """
        _, T, J, C = joints2d.shape
        if (self.frames, joints, channels) != (T, J, C):
            raise ValueError(
                f"clips (B, {T}, {J}, {C}) do not fit a {type(self).__name__} built for "
                f"(B, {self.frames}, {joints}, {channels})"
            )
