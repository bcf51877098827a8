"""MPJPE, P-MPJPE, rigid MPJPE, N-MPJPE, MPJVE and Procrustes alignment as functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MILLIMETRES = 1000.0
"""Millimetres per metre: positions are metres everywhere, and metrics are millimetres."""

TINY = 1e-150
"""Smallest divisor: it makes 0 / 0 a 0 where all joints are in one place."""

Poses = NDArray[np.floating] | Tensor
"""Joints in metres, (..., J, 3)."""

Array = TypeVar("Array", NDArray[np.floating], Tensor)


def mpjpe(
    predicted: Poses, target: Poses, visible: NDArray[np.bool_] | Tensor | None = None
) -> float:
    """Mean per-joint position error (protocol 1): mean distance of predicted and true joints.

    MPJPE = 1000 mean |predicted - target|. Poses are compared as given: nothing is re-rooted.

    Convention:
        Mean over all axes, float64. Without any joint: NaN.

    Args:
        predicted: Predicted joints, metres, (..., J, 3).
        target: True joints, metres, (..., J, 3).
        visible: Whether a joint counts, (..., J); none for all.

    Returns:
        Millimetres.

    Raises:
        ValueError: If the shapes differ.

    Source: Ionescu et al. 2014 (Human3.6M).

    >>> target = np.array([[[0.03, 0.0, 0.04], [0.0, 0.0, 0.01]]])
    >>> round(mpjpe(np.zeros((1, 2, 3)), target), 6)
    30.0
    """
    if visible is not None:
        return visible_errors(predicted, target, visible).mean().item() * MILLIMETRES
    a, b = paired_frames(predicted, target)
    blocks = zip(a.split(_block_size(a)), b.split(_block_size(a)), strict=True)
    sums = [_lengths_(_difference(p, t)).sum() for p, t in blocks]
    return (torch.stack(sums).sum() / (a.numel() // 3)).item() * MILLIMETRES


def p_mpjpe(predicted: Poses, target: Poses) -> float:
    """MPJPE after the best shift, rotation and scale of each predicted frame (protocol 2).

    Also called PA-MPJPE. `rigid_mpjpe` is the same without scale: larger, and not comparable.

    P-MPJPE = 1000 mean |s R predicted + t - target| with the scale s, rotation R and translation t
    of each frame that `procrustes` finds.

    Args:
        predicted: Predicted joints, metres, (..., J, 3).
        target: True joints, metres, (..., J, 3).

    Returns:
        Millimetres. The fit minimises squared distances, not distances, so the P-MPJPE of a frame
        with one outlying joint can be larger than its MPJPE.

    Source: Martinez et al. 2017 and later; reflections are not allowed.
    """
    return map_blocks(aligned_errors, *paired_frames(predicted, target)).mean().item() * MILLIMETRES


def rigid_mpjpe(predicted: Poses, target: Poses) -> float:
    """MPJPE after the best shift and rotation of each predicted frame; its scale stays.

    Rigid MPJPE = 1000 mean |R predicted + t - target| with the rotation R and translation t of each
    frame that minimise the squared distances. A pose of the wrong size keeps that error; `p_mpjpe`
    removes it.

    Args:
        predicted: Predicted joints, metres, (..., J, 3).
        target: True joints, metres, (..., J, 3).

    Returns:
        Millimetres.

    Source: Sun et al. 2018 (Integral) and Moon et al. 2019 (PoseNet), whose tables, like paper 004,
    call it PA-MPJPE; reflections are not allowed.
    """
    return map_blocks(rigid_errors, *paired_frames(predicted, target)).mean().item() * MILLIMETRES


def n_mpjpe(predicted: Poses, target: Poses) -> float:
    """MPJPE after each predicted frame is scaled about the origin to fit the truth.

    N-MPJPE = 1000 mean |s predicted - target| with s = <target, predicted> / <predicted, predicted>
    of each frame.

    Args:
        predicted: Predicted joints, metres, (..., J, 3), usually root-relative.
        target: True joints, metres, (..., J, 3).

    Returns:
        Millimetres.

    Source: Rhodin et al. 2018.
    """
    return map_blocks(scaled_errors, *paired_frames(predicted, target)).mean().item() * MILLIMETRES


def mpjve(predicted: Poses, target: Poses) -> float:
    """Mean per-joint velocity error: mean error of differences between successive frames.

    MPJVE = 1000 mean |(p[t+1] - p[t]) - (q[t+1] - q[t])| of predicted p and true q, within a clip.

    Args:
        predicted: Predicted joints, metres, (..., T, J, 3); every leading index is one clip.
        target: True joints, metres, (..., T, J, 3).

    Returns:
        Millimetres per frame; NaN for clips of one frame.

    Source: Pavllo et al. 2019 (VideoPose3D), section 5.
    """
    return derivative_errors(predicted, target, order=1).mean().item() * MILLIMETRES


def acceleration_error(predicted: Poses, target: Poses) -> float:
    """Mean error of the joints' accelerations: as `mpjve`, with second differences of frames.

    Args:
        predicted: Predicted joints, metres, (..., T, J, 3); every leading index is one clip.
        target: True joints, metres, (..., T, J, 3).

    Returns:
        Millimetres per frame squared; NaN for clips of fewer than three frames.

    Source: Kanazawa et al. 2019 (HMMR).
    """
    return derivative_errors(predicted, target, order=2).mean().item() * MILLIMETRES


def root_relative(joints: Array, root: int = 0) -> Array:
    """Joints, (..., J, 3), relative to the joint with index `root`."""
    return joints - joints[..., root : root + 1, :]


def procrustes(predicted: Poses, target: Poses) -> NDArray[np.float64]:
    """Align each predicted frame with the truth: least-squares translation, rotation and scale.

    Args:
        predicted: Predicted joints, metres, (..., J, 3).
        target: True joints, metres, (..., J, 3).

    Returns:
        The aligned predicted joints, metres, (..., J, 3), never mirrored. Poses whose joints are
        all in one place or on one line have many best rotations; one of them is taken.

    Source: the fit is Umeyama's (1991). The rotation comes from Markley's FOAM (1993), which gives
    the same as the singular value decomposition of each frame, for many frames at a time.
    """
    aligned = map_blocks(
        lambda p, t: _fit_pose(_coordinates_first(p), _coordinates_first(t)).permute(2, 1, 0),
        *paired_frames(predicted, target),
    )
    return aligned.reshape(predicted.shape).cpu().numpy()


def as_tensor(values: Any) -> Tensor:
    """A tensor or array as a tensor without gradient; memory is shared where that is possible."""
    if isinstance(values, Tensor):
        return values.detach()
    array = np.asarray(values)
    if array.dtype == np.longdouble:  # also the same as float64 on some machines
        array = array.astype(np.float64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def paired_frames(predicted: Poses, target: Poses) -> tuple[Tensor, Tensor]:
    """Predicted and true joints as two tensors of frames on one device, (N, J, 3).

    Raises:
        ValueError: If the shapes differ or are not (..., J, 3).
    """
    if predicted.shape != target.shape or predicted.ndim < 2 or predicted.shape[-1] != 3:
        raise ValueError(
            f"predicted {tuple(predicted.shape)} and target {tuple(target.shape)} must be the same "
            "(..., J, 3)"
        )
    a, b = as_tensor(predicted), as_tensor(target)
    shape = math.prod(a.shape[:-2]), *a.shape[-2:]
    return a.reshape(shape), b.to(a.device).reshape(shape)


def check_shapes(shape: Sequence[int], **arrays: NDArray[Any] | Tensor | None) -> None:
    """Check that arrays have exactly this shape: nothing is broadcast or reshaped to fit.

    Args:
        shape: The shape to have.
        arrays: Name in the message -> array; none is skipped.

    Raises:
        ValueError: If an array has another shape.
    """
    for name, values in arrays.items():
        if values is not None and tuple(values.shape) != tuple(shape):
            raise ValueError(f"{name} is {tuple(values.shape)}, but must be {tuple(shape)} here")


def _block_size(frames: Tensor) -> int:
    """Frames that are processed at once: on a CPU as many as its second-level cache holds."""
    return 2048 if frames.device.type == "cpu" else 1 << 17


def map_blocks(
    function: Callable[[Tensor, Tensor], Tensor], predicted: Tensor, target: Tensor
) -> Tensor:
    """Results of a function of predicted and true frames, called block by block in float64.

    Args:
        function: (n, J, 3), (n, J, 3) -> (n, ...).
        predicted: Frames, (N, J, 3).
        target: Frames, (N, J, 3).

    Returns:
        The concatenated results, (N, ...).
    """
    size = _block_size(predicted)
    blocks = zip(predicted.split(size), target.split(size), strict=True)
    return torch.cat([function(a.double(), b.double()) for a, b in blocks])


def _difference(predicted: Tensor, target: Tensor) -> Tensor:
    """Predicted minus true joints in float64; NumPy makes no float64 copies of them."""
    if predicted.device.type != "cpu" or torch.bfloat16 in (predicted.dtype, target.dtype):
        return predicted.double() - target.double()
    return torch.from_numpy(np.subtract(predicted.numpy(), target.numpy(), dtype=np.float64))


def _lengths_(vectors: Tensor) -> Tensor:
    """Lengths of vectors, (..., 3), which are overwritten.

    Faster than torch's norm, which is slow over so short an axis.
    """
    x, y, z = vectors.mul_(vectors).unbind(-1)
    return _square_root_((x + y).add_(z))


def _square_root_(values: Tensor) -> Tensor:
    """Square root in place; NumPy's is more than twice as fast as torch's on a CPU."""
    if values.device.type != "cpu":
        return values.sqrt_()
    np.sqrt(values.numpy(), out=values.numpy())
    return values


def joint_distances(predicted: Tensor, target: Tensor) -> Tensor:
    """Distance of each joint, (N, J, 3) -> (N, J), metres."""
    return _lengths_(predicted - target)


def visible_errors(
    predicted: Poses, target: Poses, visible: NDArray[np.bool_] | Tensor | None
) -> Tensor:
    """Distances of the joints that count, metres.

    Args:
        predicted: Predicted joints, metres, (..., J, 3).
        target: True joints, metres, (..., J, 3).
        visible: Whether a joint counts, (..., J); none for all.

    Returns:
        (N, J) over N frames if all joints count, else (M,) over the M joints that do.
    """
    errors = map_blocks(joint_distances, *paired_frames(predicted, target))
    if visible is None:
        return errors
    check_shapes(predicted.shape[:-1], visible=visible)
    return errors[as_tensor(visible).to(errors.device, torch.bool).reshape(errors.shape)]


def scaled_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean distance of the joints of each frame after the best scaling, (N,), metres."""
    square = (predicted * predicted).sum((1, 2), keepdim=True)
    scale = (predicted * target).sum((1, 2), keepdim=True) / square.clamp_min(TINY)
    return _lengths_(scale * predicted - target).mean(1)


def aligned_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean distance of each frame's joints after shift, rotation and scale, (N,), metres."""
    return _errors_after_fit(predicted, target, scaled=True)


def rigid_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean distance of each frame's joints after shift and rotation alone, (N,), metres."""
    return _errors_after_fit(predicted, target, scaled=False)


def _errors_after_fit(predicted: Tensor, target: Tensor, *, scaled: bool) -> Tensor:
    true = _coordinates_first(target)
    x, y, z = _fit_pose(_coordinates_first(predicted), true, scaled=scaled).sub_(true)
    return _square_root_((x * x).addcmul_(y, y).addcmul_(z, z)).mean(0)


def _coordinates_first(frames: Tensor) -> Tensor:
    """(N, J, 3) -> (3, J, N): every operation then runs along the frames."""
    return frames.permute(2, 1, 0).contiguous()


def _fit_pose(predicted: Tensor, target: Tensor, *, scaled: bool = True) -> Tensor:
    """Predicted joints translated, rotated and, if asked for, scaled to the target, (3, J, N).

    The best rotation is the same with and without scale.
    """
    centre = target.mean(1, keepdim=True)
    target = target - centre
    predicted = predicted - predicted.mean(1, keepdim=True)
    covariance = (target[:, None] * predicted).sum(2)
    norm = (covariance * covariance).sum((0, 1)).sqrt()
    rotation, trace = _best_rotations(covariance / norm.clamp_min(TINY))
    if scaled:
        square = (predicted * predicted).sum((0, 1))
        rotation = rotation * (trace * norm / square.clamp_min(TINY))
    x, y, z = predicted
    rows = [(x * row[0]).addcmul_(y, row[1]).addcmul_(z, row[2]) for row in rotation]
    return torch.stack(rows).add_(centre)


def _best_rotations(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations A that maximise tr(A B') for B = sum of target x predicted, and that trace.

    Args:
        covariance: B, (3, 3, N), of Frobenius norm 1 (or 0).

    Returns:
        Rotations, (3, 3, N), and traces, (N,).

    Source: Markley 1993, equations for FOAM: with the largest root q of (q^2 - 1)^2 - 8 q det B -
    4 |cof B|^2 and k = (q^2 - 1) / 2, A = ((k + 1) B + q cof B - B B' B) / (k q - det B).
    """
    cofactors = torch.linalg.cross(covariance[[1, 2, 0]], covariance[[2, 0, 1]], dim=1)
    determinant = (covariance[0] * cofactors[0]).sum(0)
    constant = -4 * (cofactors * cofactors).sum((0, 1))
    minus_one = determinant.new_tensor(-1.0)
    root = torch.full_like(determinant, 3**0.5)  # no root is larger: Newton comes from above
    for _ in range(16):  # 7 leave errors of 1e-7 m on random poses
        part = torch.addcmul(minus_one, root, root)
        value = torch.addcmul(constant, part, part).addcmul_(determinant, root, value=-8)
        slope = (part * root).sub_(determinant, alpha=2).clamp_min_(1e-6)
        root = root.addcdiv_(value, slope, value=-0.25)
    k = (root * root - 1) / 2
    divisor = k * root - determinant
    inner = (covariance[:, None] * covariance).sum(2)
    cubed = (inner[:, :, None] * covariance).sum(1)
    rotation = ((k + 1) * covariance + root * cofactors - cubed) / divisor
    # Where joints are (almost) on a line or mirrored, rounding errors decide: take the exact way.
    unstable = (~(divisor > 1e-4) & determinant.isfinite()).nonzero()[:, 0]
    if len(unstable):
        exact, trace = _best_rotations_by_svd(covariance[:, :, unstable].permute(2, 0, 1))
        rotation[:, :, unstable] = exact.permute(1, 2, 0)
        root[unstable] = trace
    return rotation, root


def _best_rotations_by_svd(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The same as `_best_rotations` for (N, 3, 3), also where several rotations are best."""
    left, values, right = torch.linalg.svd(covariance)
    sign = torch.linalg.det(left @ right).sign()
    signs = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], dim=-1)
    return (left * signs[:, None]) @ right, (values * signs).sum(-1)


def derivative_errors(predicted: Poses, target: Poses, order: int) -> Tensor:
    """Mean error of the joints' velocities or accelerations at each step of each clip.

    Args:
        predicted: Predicted joints, metres, (..., T, J, 3); every leading index is one clip.
        target: True joints, metres, (..., T, J, 3).
        order: 1 for velocities, 2 for accelerations.

    Returns:
        Metres per frame or per frame squared, mean over joints, (clips, T - order).

    Raises:
        ValueError: If there is no axis T.
    """
    if predicted.ndim < 3:
        raise ValueError(f"motion needs (..., T, J, 3), not {tuple(predicted.shape)}")
    a, b = paired_frames(predicted, target)
    T, size = predicted.shape[-3], _block_size(a)
    steps = [a.new_zeros(0, dtype=torch.float64)]
    for start in range(0, len(a) - order, size):
        block = slice(start, start + size + order)
        error = _difference(a[block], b[block])
        for _ in range(order):
            error = error[1:] - error[:-1]
        steps.append(_lengths_(error).mean(1))
    steps.append(steps[0].new_zeros(min(order, len(a))))
    clips = math.prod(predicted.shape[:-3])
    return torch.cat(steps).reshape(clips, T)[:, : max(T - order, 0)]
