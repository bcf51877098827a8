"""Strided: any lifter at a lower frame rate, so that the same number of frames spans more time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.lift.lifter import Lifter


class StridedLifter(Lifter):
    """A lifter that sees the means of groups of frames, and predicts all frames.

    ================  ==================================================================
    joints2d          (B, T, J, C)
    mean of groups    (B, T / stride, J, C), over the frames in which a joint is visible
    net               (B, T / stride, J, 3) metres, at the middle of each group
    interpolated      (B, T, J, 3) metres
    ================  ==================================================================

    A joint that is visible in no frame of its group is not visible to the wrapped lifter. That is
    the form for lifters with output `every`. One with output `centre` or `valid` gets groups that
    begin at every frame, as `stride` clips of which each has every `stride`-th group; it predicts
    the frames in the middle of its receptive field (of a causal lifter, the last ones) and nothing
    is interpolated.

    A `CentredLifter` belongs inside, so that all frames of a group are turned by one angle. Outside
    it turns a frame whose root is hidden by another angle than the other frames of its group.

    Args:
        net: The wrapped lifter.
        stride: Frames per group.

    Raises:
        ValueError: If `stride` is below 1, is even although single frames are predicted, or the
            lifter is causal and predicts every frame, which would need later frames.
    """

    def __init__(self, net: Lifter, *, stride: int = 3) -> None:
        super().__init__()
        if stride < 1 or (net.output != "every" and stride % 2 == 0):
            raise ValueError(
                f"stride {stride} must be at least 1, and odd for a lifter with output {net.output}"
            )
        if net.output == "every" and net.causal:
            raise ValueError("a causal lifter that predicts every frame cannot be interpolated")
        self.net, self.stride = net, stride
        self.skeleton, self.output, self.causal = net.skeleton, net.output, net.causal
        self.slides = net.slides
        self.frames = net.frames * stride
        self.receptive_field = net.receptive_field * stride
        with torch.device("cpu"):  # an array and no buffer, which a run in bf16-true would round
            self._between = interpolation_weights(net.frames, stride).numpy()

    def forward(self, joints2d: Tensor, visible: Tensor | None = None) -> Tensor:
        """Lift clips, (B, T, J, C) -> (B, T', J, 3); see `Lifter.forward`.

        Raises:
            ValueError: If a lifter with output `every` gets other clips than of T frames.
        """
        B, T, J, C = joints2d.shape
        seen = torch.ones_like(joints2d[..., 0], dtype=torch.bool) if visible is None else visible
        if self.output == "every":
            if self.frames != T:
                raise ValueError(f"clips of {T} frames do not fit a lifter of {self.frames}")
            groups = (B, T // self.stride, self.stride, J)
            lifted = self.net(*_mean_of_groups(joints2d.view(*groups, C), seen.view(groups)))
            between = torch.from_numpy(self._between).to(lifted.device)
            kind = lifted.device.type.replace("meta", "cpu")  # autocast does not know meta
            with torch.autocast(kind, enabled=False):  # coordinates stay in float32
                flat = between @ lifted.float().flatten(2)
            return flat.view(B, T, J, 3)
        # Groups that begin at every frame, then every stride-th of them in one clip.
        count = T - self.receptive_field + 1
        rounds = math.ceil(count / self.stride)
        starts = (rounds + self.net.receptive_field - 1) * self.stride
        index = (torch.arange(starts)[:, None] + torch.arange(self.stride)).clamp(max=T - 1)
        index = index.to(joints2d.device)
        means, shown = _mean_of_groups(joints2d[:, index], seen[:, index])
        if count == 1:  # one window, as in training: its groups do not overlap
            return self.net(means[:, :: self.stride], shown[:, :: self.stride]).float()
        clips = means.view(B, -1, self.stride, J, C).transpose(1, 2).flatten(0, 1)
        clips_shown = shown.view(B, -1, self.stride, J).transpose(1, 2).flatten(0, 1)
        lifted = self.net(clips, clips_shown).float()
        return lifted.view(B, self.stride, rounds, J, 3).transpose(1, 2).flatten(1, 2)[:, :count]

    def set_progress(self, done: float) -> None:
        """Pass the progress on to the wrapped lifter."""
        self.net.set_progress(done)


def _mean_of_groups(joints2d: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Means of groups of frames, (B, G, S, J, C) -> (B, G, J, C), and their visibility, (B, G, J).

    Only frames in which a joint is visible count; if there are none, all frames do, which hold the
    mask token.
    """
    shown = visible.any(2)
    weight = (visible | ~shown[:, :, None]).to(joints2d.dtype)
    total = (joints2d * weight[..., None]).sum(2)
    return total / weight.sum(2)[..., None], shown


def interpolation_weights(groups: int, stride: int) -> Tensor:
    """Weights that interpolate values at the middle of groups to all frames, (G * stride, G).

    Cubic Hermite interpolation with central differences (Catmull-Rom), with the values continued
    in a straight line beyond both ends. A motion of constant velocity is reproduced exactly.

    Args:
        groups: G, number of groups.
        stride: Frames per group.

    >>> interpolation_weights(2, 2).tolist()
    [[1.25, -0.25], [0.75, 0.25], [0.25, 0.75], [-0.25, 1.25]]
    """
    if groups == 1:
        return torch.ones(stride, 1)
    position = (torch.arange(groups * stride, dtype=torch.float64) - (stride - 1) / 2) / stride
    begin = position.floor().clamp(0, groups - 2).long()
    part = position - begin
    inside = (part >= 0) & (part <= 1)
    cubic = torch.stack(
        [
            ((2 - part) * part - 1) * part / 2,
            ((3 * part - 5) * part * part + 2) / 2,
            ((4 - 3 * part) * part + 1) * part / 2,
            (part - 1) * part * part / 2,
        ],
        -1,
    )
    zero = torch.zeros_like(part)
    line = torch.stack([zero, 1 - part, part, zero], -1)
    # one more value on both sides, continued in a straight line, as combinations of the G values
    values = torch.eye(groups, dtype=torch.float64)
    values = torch.cat([2 * values[:1] - values[1:2], values, 2 * values[-1:] - values[-2:-1]])
    neighbours = values[begin[:, None] + torch.arange(4)]
    weights = torch.where(inside[:, None], cubic, line)
    return (weights[:, None] @ neighbours)[:, 0].float()
