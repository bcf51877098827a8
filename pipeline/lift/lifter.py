"""The base class of lifters: what training, stitching and export need to know of a network."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.errors import UsageError
from pipeline.skeleton import H36M17, Skeleton

OUTPUTS = ("every", "centre", "valid")
"""Values of `Lifter.output`."""


class Lifter(nn.Module):
    """Base class of the networks that turn 2D clips into 3D clips.

    Attributes:
        skeleton: Joint set on axis J.
        frames: T, the number of frames in a training window.
        receptive_field: Number of input frames that one output frame depends on.
        output: Predicted frames among the T: `every` (T' = T), `centre` (T' = 1), or `valid`
            (T' = T - receptive_field + 1).
        causal: Whether an output frame depends on no later frame.
        slides: Whether a lifter with output `centre` also takes a clip of more than T frames, and
            predicts the centre of every window in it: (B, N, J, C) -> (B, N - T + 1, J, 3).
    """

    skeleton: Skeleton = H36M17
    frames: int
    receptive_field: int
    output: Literal["every", "centre", "valid"]
    causal: bool = False
    slides: bool = False

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


def check_lifter(net: Lifter) -> None:
    """Check the attributes of a lifter, and that clips of its own size give what they promise.

    Two made-up clips are lifted, without gradients; random numbers and modes stay as they were.

    Raises:
        UsageError: If an attribute is missing or wrong, or the output has another shape or is not
            finite.
    """
    name = type(net).__name__
    for attribute in ("frames", "receptive_field", "output"):
        if not hasattr(net, attribute):
            raise UsageError(f"{name}: has no attribute `{attribute}`; set it in __init__")
    if net.output not in OUTPUTS:
        raise UsageError(f"{name}: output is {net.output!r}; give one of {', '.join(OUTPUTS)}")
    longest = math.inf if net.output == "every" else net.frames
    least = net.frames if net.output == "centre" else 1
    if not least <= net.receptive_field <= longest:
        limits = {"every": "at least 1", "centre": f"{net.frames}"}
        limit = limits.get(net.output, f"from 1 to {net.frames}")
        raise UsageError(
            f"{name}: receptive_field is {net.receptive_field}; give {limit} with output "
            f"{net.output!r} and clips of {net.frames} frames"
        )
    J = len(net.skeleton)
    was_training = net.training
    with torch.random.fork_rng(), torch.no_grad():
        clips = torch.linspace(-0.5, 0.5, 2 * net.frames * J * 2).view(2, net.frames, J, 2)
        lifted = net.eval()(clips, torch.ones(2, net.frames, J).bool())
    net.train(was_training)
    T = {"every": net.frames, "centre": 1, "valid": net.frames - net.receptive_field + 1}
    expected = (2, T[net.output], J, 3)
    if tuple(lifted.shape) != expected:
        raise UsageError(
            f"{name}: clips (2, {net.frames}, {J}, 2) give {tuple(lifted.shape)}, and its output "
            f"{net.output!r} needs {expected}; correct forward, or the attributes"
        )
    if not lifted.isfinite().all():
        raise UsageError(f"{name}: gives NaN or infinite numbers; correct forward")
