"""Training losses of lifters: position, smoothness, velocity, scale-free and z-scored."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.errors import UsageError
from pipeline.lift.martinez import SMALLEST_3D, Statistics
from pipeline.skeleton import H36M17

JOINT_WEIGHTS = {
    "knee": 2.5,
    "ankle": 2.5,
    "head": 1.5,
    "shoulder": 1.5,
    "elbow": 4.0,
    "wrist": 4.0,
}
"""MixSTE's weight of each kind of joint; joints of the torso and the nose have 1."""

MIXSTE_WEIGHTS = tuple(JOINT_WEIGHTS.get(name.rpartition("_")[2], 1.0) for name in H36M17.joints)
"""MixSTE's weights of joints in the order of H36M17."""


def mean_over_frames(error: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of an error over valid frames.

    Args:
        error: Error of each frame, (B, T, ...).
        valid: Frames that count, (B, T); None for all.

    Returns:
        The mean, 0 if no frame is valid.
    """
    if valid is None:
        return error.mean() if error.numel() else error.sum()
    per_frame = error.flatten(2).mean(-1) if error.dim() > 2 else error
    # torch.where, not a product: the error of an invalid frame may be NaN
    kept = torch.where(valid, per_frame, per_frame.new_zeros(()))
    return kept.sum() / valid.sum().clamp(min=1)


def fill_invalid(target: Tensor, valid: Tensor | None) -> Tensor:
    """Truth with 0 in place of invalid frames.

    An invalid frame may hold NaN, and the gradient of what is masked later is still 0 * NaN.

    Args:
        target: True joints, (B, T, J, 3).
        valid: Frames that count, (B, T); None for all.
    """
    return target if valid is None else target.masked_fill(~valid[..., None, None], 0.0)


def valid_pairs(valid: Tensor | None) -> Tensor | None:
    """Which pairs of successive frames are valid, (B, T) -> (B, T-1): those with both valid."""
    return None if valid is None else valid[:, 1:] & valid[:, :-1]


def position_error(predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """MPJPE: mean Euclidean distance between joints, (B, T, J, 3), in metres."""
    difference = predicted.float() - fill_invalid(target.float(), valid)
    return mean_over_frames(torch.linalg.vector_norm(difference, dim=-1), valid)


def scale_free_error(predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """N-MPJPE: mean distance after each predicted frame is scaled to fit, in metres.

    The scale is s = <target, predicted> / <predicted, predicted>; the gradient passes through it.

    Source: Rhodin et al., CVPR 2018.
    """
    predicted, target = predicted.float(), fill_invalid(target.float(), valid)
    overlap = (predicted * target).sum((-2, -1), keepdim=True)
    length = predicted.square().sum((-2, -1), keepdim=True)
    return position_error(overlap / length.clamp(min=1e-12) * predicted, target, valid)


def velocity_error(predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean distance between predicted and true steps from frame to frame, in metres per frame.

    It is 0 for a single frame.
    """
    true_step = fill_invalid(target.float(), valid).diff(dim=1)
    steps = predicted.float().diff(dim=1), true_step
    return position_error(*steps, valid_pairs(valid))


class MPJPELoss(nn.Module):
    """MPJPE as a loss: mean distance between predicted and true joints, in metres.

    Source: the loss of VideoPose3D and PoseFormer.
    """

    def forward(self, predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Loss of a batch of clips.

        Args:
            predicted: Predicted root-relative joints, metres, (B, T, J, 3), in any precision; the
                loss is computed in float32.
            target: True joints, metres, (B, T, J, 3).
            valid: Frames that count, (B, T); None for all.
        """
        return position_error(predicted, target, valid)


class MixSTELoss(nn.Module):
    """MixSTE's loss: weighted position, smoothness and velocity.

    position * mean w_j |p - g|  +  smooth * mean w_j (Δp)^2  +  velocity * mean |Δp - Δg|,
    with prediction p, truth g, step Δ from frame to frame and the weight w_j of a joint
    (`MIXSTE_WEIGHTS`). The second mean is over frames, joints and coordinates.

    Args:
        position: Factor of the weighted distance between prediction and truth.
        smooth: Factor of the weighted squared step of the prediction.
        velocity: Factor of the distance between predicted and true step.

    Source: MixSTE (Zhang et al. 2022), eq. 8-10; weights and factors of its published code.
    Differs from the paper: its code multiplies the gradient by the value of the loss; this one does
    not.
    """

    weights: Tensor

    def __init__(self, position: float = 1.0, smooth: float = 0.5, velocity: float = 2.0) -> None:
        super().__init__()
        self.position, self.smooth, self.velocity = position, smooth, velocity
        self.register_buffer("weights", torch.tensor(MIXSTE_WEIGHTS), persistent=False)

    def forward(self, predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Loss of a batch of clips; arguments as in `MPJPELoss.forward`, J = 17.

        Raises:
            UsageError: If J is not 17.
        """
        J = predicted.shape[-2]
        if len(self.weights) != J:
            raise UsageError(
                f"MixSTELoss: has weights for the {len(self.weights)} joints of H36M17, not for "
                f"{J}; give --model.loss pipeline.lift.losses.MPJPELoss"
            )
        predicted, target = predicted.float(), fill_invalid(target.float(), valid)
        distance = torch.linalg.vector_norm(predicted - target, dim=-1)
        loss = self.position * mean_over_frames(distance * self.weights, valid)
        step, true_step = predicted.diff(dim=1), target.diff(dim=1)
        squared = step.square() * self.weights[:, None]
        drift = torch.linalg.vector_norm(step - true_step, dim=-1)
        loss = loss + self.smooth * mean_over_frames(squared, valid_pairs(valid))
        return loss + self.velocity * mean_over_frames(drift, valid_pairs(valid))


class PretrainLoss(nn.Module):
    """Loss of pretraining: position * MPJPE + scale * N-MPJPE + velocity * velocity error.

    Args:
        position: Factor of MPJPE.
        scale: Factor of N-MPJPE.
        velocity: Factor of the velocity error.

    Source: MotionBERT (Zhu et al. 2023), eq. 4 and the factors of its pretraining config.
    """

    def __init__(self, position: float = 1.0, scale: float = 0.5, velocity: float = 20.0) -> None:
        super().__init__()
        self.position, self.scale, self.velocity = position, scale, velocity

    def forward(self, predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Loss of a batch of clips; arguments as in `MPJPELoss.forward`."""
        return (
            self.position * position_error(predicted, target, valid)
            + self.scale * scale_free_error(predicted, target, valid)
            + self.velocity * velocity_error(predicted, target, valid)
        )


class ZScoredMSE(nn.Module):
    """Mean squared error of z-scored coordinates.

    Each coordinate is divided by its standard deviation over the training split, which
    `LiftModule.on_fit_start` sets through `set_statistics`. Before that the unit is square metres.

    Args:
        root: Whether the root is in the mean: yes for lifters that predict it (51 coordinates), no
            for `Martinez` (48).

    Source: the loss of Martinez et al. 2017 and of EvoSkeleton (Li et al. 2020).
    """

    deviation3d: Tensor

    def __init__(self, root: bool = True) -> None:
        super().__init__()
        self.root = root
        self.register_buffer("deviation3d", torch.ones(len(H36M17), 3))

    def set_statistics(self, statistics: Statistics) -> None:
        """Set the statistics of a training split; deviations below a millimetre count as 1."""
        deviation = torch.as_tensor(statistics.deviation3d)
        self.deviation3d.copy_(
            torch.where(deviation < SMALLEST_3D, torch.ones_like(deviation), deviation)
        )

    def forward(self, predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Loss of a batch of clips; arguments as in `MPJPELoss.forward`, J = 17."""
        difference = predicted.float() - fill_invalid(target.float(), valid)
        squared = (difference / self.deviation3d).square()
        if not self.root:
            squared = squared[..., [j for j in range(squared.shape[-2]) if j != H36M17.root], :]
        return mean_over_frames(squared, valid)
