"""VideoPose3D: convolutions over frames, dilated or strided with the same weights (2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.lift.lifter import Lifter
from pipeline.lift.linear import float_linear, linear


class VideoPose3D(Lifter):
    """VideoPose3D: temporal convolutions without padding, over whole sequences or single windows.

    ====================  ====================================================================
    joints2d              (B, T, J, input_channels), flattened to (B, T, J input_channels)
    expand                (B, T', C): convolution over the first width, norm, ReLU
    each further width    (B, T', C): convolution over it, convolution over 1, skip connection
    shrink                (B, T - R + 1, J, 3) metres, R = product of the widths
    ====================  ====================================================================

    A clip of exactly R frames (training) runs in the strided form, in which every level computes
    only what the one output frame needs. A longer clip (a whole sequence) runs in the dilated form.
    Both are the same function. Every convolution is a matrix product over gathered frames, and
    features stay (B, T, C). Parameters have the names of published checkpoints.

    Args:
        joints: J, number of joints.
        widths: Kernel size of each level's convolution over frames, odd.
        channels: C, number of features per frame.
        causal: Whether an output frame depends only on itself and earlier frames: it is then the
            last of its R frames, not the centre.
        dropout: Share of features dropped in training after each norm.
        input_channels: Input channels per joint: 2 (x, y) or 3 (x, y, score).

    Raises:
        ValueError: If a width is even.

    Source: Pavllo et al., "3D human pose estimation in video", CVPR 2019, sec. 3 and app. A.5:
    8,555,571, 12,753,971 and 16,952,371 parameters for three, four and five levels of 3.
    """

    output: Literal["every", "centre", "valid"] = "valid"

    def __init__(
        self,
        joints: int = 17,
        widths: Sequence[int] = (3, 3, 3, 3, 3),
        channels: int = 1024,
        causal: bool = False,
        *,
        dropout: float = 0.25,
        input_channels: int = 2,
    ) -> None:
        super().__init__()
        if any(width % 2 == 0 for width in widths):
            raise ValueError(f"widths {tuple(widths)} must be odd, so that a level has a centre")
        self.joints, self.causal, self.dropout = joints, causal, dropout
        self.widths = tuple(widths)
        self.frames = self.receptive_field = math.prod(self.widths)
        deeper = self.widths[1:]
        self.expand_bn = nn.BatchNorm1d(channels)
        self.shrink = nn.Conv1d(channels, 3 * joints, 1)
        self.expand_conv = nn.Conv1d(joints * input_channels, channels, widths[0], bias=False)
        self.layers_conv = nn.ModuleList(
            nn.Conv1d(channels, channels, size, bias=False)
            for width in deeper
            for size in (width, 1)
        )
        self.layers_bn = nn.ModuleList(nn.BatchNorm1d(channels) for _ in range(2 * len(deeper)))

    def forward(self, joints2d: Tensor, visible: Tensor | None = None) -> Tensor:
        """Lift clips, (B, T, J, channels) -> (B, T - R + 1, J, 3); see `Lifter.forward`.

        Raises:
            ValueError: If T is shorter than the receptive field.
        """
        B, T, J, _ = joints2d.shape
        if self.receptive_field > T:
            raise ValueError(
                f"{T} frames are fewer than the {self.receptive_field} of the receptive field"
            )
        strided = self.receptive_field == T
        taps = gather_frames(joints2d.flatten(2), self.widths[0], 1, strided)
        features = self._apply_convolution(taps, self.expand_conv, self.expand_bn)
        dilation = self.widths[0]
        for i, width in enumerate(self.widths[1:]):
            taps = gather_frames(features, width, dilation, strided)
            kept = taps[:, :, width - 1 if self.causal else width // 2]
            features = self._apply_convolution(taps, self.layers_conv[2 * i], self.layers_bn[2 * i])
            features = features[:, :, None]
            features = self._apply_convolution(
                features, self.layers_conv[2 * i + 1], self.layers_bn[2 * i + 1]
            )
            features = kept + features
            dilation *= width
        poses = float_linear(features, self.shrink.weight[:, :, 0], self.shrink.bias)
        return poses.view(B, -1, J, 3)

    def set_progress(self, done: float) -> None:
        """Set the momentum of the batch norms, which decays from 0.1 to 0.001 over a run.

        Args:
            done: Share of the training that is done, 0 to 1.

        Source: Pavllo et al. 2019, sec. 5 (batch norm momentum 0.1 to 0.001, exponentially).
        """
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = 0.1 * 0.01**done

    def _apply_convolution(self, taps: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
        """Convolution, norm, ReLU and dropout, (B, T', width, C) -> (B, T', C')."""
        B, T, _, _ = taps.shape
        weight = conv.get_parameter("weight").permute(0, 2, 1).flatten(1)
        rows = linear(taps.reshape(B * T, -1), weight)
        features = F.relu(norm(rows), inplace=True)
        return F.dropout(features, self.dropout, self.training).view(B, T, -1)


def gather_frames(features: Tensor, width: int, dilation: int, strided: bool) -> Tensor:
    """Gather the input frames of each output of a convolution, (B, T, C) -> (B, T', width, C).

    Args:
        features: Features of each frame, (B, T, C).
        width: Kernel size of the convolution.
        dilation: Frames from one input frame to the next, in the dilated form.
        strided: Whether the frames are cut into groups of `width` without overlap (a view).
    """
    B, T, C = features.shape
    if strided:
        return features.view(B, T // width, width, C)
    outputs = T - (width - 1) * dilation
    return torch.stack(
        [features[:, k * dilation : k * dilation + outputs] for k in range(width)], dim=2
    )
