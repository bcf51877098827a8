"""Training losses of lifters: position, smoothness, velocity, scale-free and z-scored."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.lift.martinez import SMALLEST_3D, Statistics
from pipeline.skeleton import H36M17

WEIGHTS = {
    "knee": 2.5,
    "ankle": 2.5,
    "head": 1.5,
    "shoulder": 1.5,
    "elbow": 4.0,
    "wrist": 4.0,
}
"""MixSTE's weight of each joint by what it is; those of the torso, and the nose, have 1."""

MIXSTE_WEIGHTS = tuple(WEIGHTS.get(name.rpartition("_")[2], 1.0) for name in H36M17.joints)
"""MixSTE's weights in the order of H36M17."""


def mean_over_frames(error: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of an error, (B, T, ...), over the frames that count, (B, T); 0 if none does."""
    if valid is None:
        return error.mean() if error.numel() else error.sum()
    per_frame = error.flatten(2).mean(-1) if error.dim() > 2 else error
    # where, not a product: what stands in a frame that does not count may be anything
    kept = torch.where(valid, per_frame, per_frame.new_zeros(()))
    return kept.sum() / valid.sum().clamp(min=1)


def pairs(valid: Tensor | None) -> Tensor | None:
    """Which neighbouring frames count, (B, T) -> (B, T-1): those where both do."""
    return None if valid is None else valid[:, 1:] & valid[:, :-1]


def position_error(predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean Euclidean distance of (B, T, J, 3), metres: MPJPE."""
    distance = torch.linalg.vector_norm(predicted.float() - target.float(), dim=-1)
    return mean_over_frames(distance, valid)


def scale_free_error(predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean distance after scaling each predicted frame to fit: N-MPJPE.

    The scale is s = <target, predicted> / <predicted, predicted>; the gradient goes through it.

    Source: Rhodin et al., CVPR 2018.
    """
    predicted, target = predicted.float(), target.float()
    overlap = (predicted * target).sum((-2, -1), keepdim=True)
    length = predicted.square().sum((-2, -1), keepdim=True)
    return position_error(overlap / length.clamp(min=1e-12) * predicted, target, valid)


def velocity_error(predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean distance between steps from frame to frame, metres; 0 for a single frame."""
    steps = predicted.float().diff(dim=1), target.float().diff(dim=1)
    return position_error(*steps, pairs(valid))


class MPJPELoss(nn.Module):
    """Mean distance between predicted and true joints, metres.

    Source: the loss of VideoPose3D and PoseFormer.
    """

    def forward(self, predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Error of clips.

        Args:
            predicted: Metres, (B, T, J, 3), in any precision; computed in float32.
            target: Metres, (B, T, J, 3).
            valid: Frames that count, (B, T); all if none is given.
        """
        return position_error(predicted, target, valid)


class MixSTELoss(nn.Module):
    """MixSTE's three terms, over joints weighted by how freely they move.

    position * mean w_j |p - g|  +  smooth * mean w_j (Δp)^2  +  velocity * mean |Δp - Δg|,
    where the second mean is over frames, joints and coordinates. The weights are those of
    Human3.6M's joints.

    Args:
        position: Factor of the weighted distance.
        smooth: Factor of the squared step of the prediction, weighted likewise.
        velocity: Factor of the distance between predicted and true step.

    Source: MixSTE (Zhang et al. 2022), eq. 8-10; weights and factors of its published code.
    Differs from the paper: its code scales the gradient by the value of the loss; this one does
    not.
    """

    weights: Tensor

    def __init__(self, position: float = 1.0, smooth: float = 0.5, velocity: float = 2.0) -> None:
        super().__init__()
        self.position, self.smooth, self.velocity = position, smooth, velocity
        self.register_buffer("weights", torch.tensor(MIXSTE_WEIGHTS), persistent=False)

    def forward(self, predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Error of clips; arguments as in `MPJPELoss.forward`, J = 17.

        Raises:
            ValueError: If J is not 17.
        """
        J = predicted.shape[-2]
        if len(self.weights) != J:
            raise ValueError(
                f"MixSTELoss has weights for the {len(self.weights)} joints of H36M17, not for {J}"
            )
        predicted, target = predicted.float(), target.float()
        distance = torch.linalg.vector_norm(predicted - target, dim=-1)
        loss = self.position * mean_over_frames(distance * self.weights, valid)
        step, true_step = predicted.diff(dim=1), target.diff(dim=1)
        squared = step.square() * self.weights[:, None]
        drift = torch.linalg.vector_norm(step - true_step, dim=-1)
        loss = loss + self.smooth * mean_over_frames(squared, pairs(valid))
        return loss + self.velocity * mean_over_frames(drift, pairs(valid))


class PretrainLoss(nn.Module):
    """position * MPJPE + scale * N-MPJPE + velocity * velocity error.

    Args:
        position: Factor of the mean distance.
        scale: Factor of the mean distance after scaling each frame.
        velocity: Factor of the mean distance between steps.

    Source: MotionBERT (Zhu et al. 2023), eq. 4 and the factors of its pretraining config.
    """

    def __init__(self, position: float = 1.0, scale: float = 0.5, velocity: float = 20.0) -> None:
        super().__init__()
        self.position, self.scale, self.velocity = position, scale, velocity

    def forward(self, predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Error of clips; arguments as in `MPJPELoss.forward`."""
        return (
            self.position * position_error(predicted, target, valid)
            + self.scale * scale_free_error(predicted, target, valid)
            + self.velocity * velocity_error(predicted, target, valid)
        )


class ZScoredMSE(nn.Module):
    """Mean squared error of coordinates in units of their deviation over the training split.

    It is in square metres until `set_statistics` is called, as the data module does for the lifters
    too.

    Args:
        root: Whether the root is in the mean: yes for a lifter that predicts it (51 numbers), no
            for `Martinez` (48).

    Source: the loss of Martinez et al. 2017 and of EvoSkeleton (Li et al. 2020).
    """

    deviation3d: Tensor

    def __init__(self, root: bool = True) -> None:
        super().__init__()
        self.root = root
        self.register_buffer("deviation3d", torch.ones(len(H36M17), 3))

    def set_statistics(self, statistics: Statistics) -> None:
        """Take the statistics of a training split; deviations below a millimetre count as 1."""
        deviation = torch.as_tensor(statistics.deviation3d)
        self.deviation3d.copy_(
            torch.where(deviation < SMALLEST_3D, torch.ones_like(deviation), deviation)
        )

    def forward(self, predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Error of clips; arguments as in `MPJPELoss.forward`, J = 17."""
        squared = ((predicted.float() - target.float()) / self.deviation3d).square()
        if not self.root:
            squared = squared[..., [j for j in range(squared.shape[-2]) if j != H36M17.root], :]
        return mean_over_frames(squared, valid)
