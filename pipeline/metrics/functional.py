"""MPJPE, P-MPJPE, N-MPJPE, MPJVE and Procrustes alignment as functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MILLIMETRES = 1000.0
"""Metres to millimetres: the only place where the two meet."""


Poses = NDArray[np.floating] | Tensor
"""Joints in metres, (..., J, 3)."""


Array = TypeVar("Array", NDArray[np.floating], Tensor)


def mpjpe(
    predicted: Poses, target: Poses, visible: NDArray[np.bool_] | Tensor | None = None
) -> float:
    """Mean distance between predicted and true joints (protocol 1), as given: nothing is re-rooted.

    Convention:
        Mean over all axes, float64. No joints at all: NaN.

    Args:
        predicted: Metres, (..., J, 3).
        target: Metres, (..., J, 3).
        visible: Joints that count, (..., J); none for all.

    Returns:
        Millimetres.

    Raises:
        ValueError: If the shapes differ.

    Source: Ionescu et al. 2014 (Human3.6M).

    >>> target = np.array([[[0.03, 0.0, 0.04], [0.0, 0.0, 0.01]]])
    >>> round(mpjpe(np.zeros((1, 2, 3)), target), 6)
    30.0
    """
    return visible_errors(predicted, target, visible).mean().item() * MILLIMETRES


def p_mpjpe(predicted: Poses, target: Poses) -> float:
    """Mean distance after each frame is moved, turned and scaled onto the truth (protocol 2).

    Args:
        predicted: Metres, (..., J, 3).
        target: Metres, (..., J, 3).

    Returns:
        Millimetres; see `procrustes`. The fit makes squares least, not distances, so that a frame
        with one joint far off can come out longer than its MPJPE.

    Source: Martinez et al. 2017 and later; never mirrored.
    """
    return map_blocks(aligned_errors, *paired_frames(predicted, target)).mean().item() * MILLIMETRES


def n_mpjpe(predicted: Poses, target: Poses) -> float:
    """Mean distance after each predicted frame is scaled to fit the truth, about the origin.

    Args:
        predicted: Metres, (..., J, 3), usually root-relative.
        target: Metres, (..., J, 3).

    Returns:
        Millimetres.

    Source: Rhodin et al. 2018: scale <target, predicted> / <predicted, predicted> per frame.
    """
    return map_blocks(scaled_errors, *paired_frames(predicted, target)).mean().item() * MILLIMETRES


def mpjve(predicted: Poses, target: Poses) -> float:
    """Mean error of the joints' velocities: of differences between neighbouring frames of one clip.

    Args:
        predicted: Metres, (..., T, J, 3); every leading axis is a clip of its own.
        target: Metres, (..., T, J, 3).

    Returns:
        Millimetres per frame; NaN for clips of one frame.

    Source: Pavllo et al. 2019 (VideoPose3D), section 5.
    """
    return motion_errors(predicted, target, order=1).mean().item() * MILLIMETRES


def acceleration_error(predicted: Poses, target: Poses) -> float:
    """Mean error of the joints' accelerations, mm per frame squared; otherwise like `mpjve`.

    Source: Kanazawa et al. 2019 (HMMR): norm of the difference of second differences.
    """
    return motion_errors(predicted, target, order=2).mean().item() * MILLIMETRES


def root_relative(joints: Array, root: int = 0) -> Array:
    """Joints, (..., J, 3), relative to one of them."""
    return joints - joints[..., root : root + 1, :]


def procrustes(predicted: Poses, target: Poses) -> NDArray[np.float64]:
    """Move, turn and scale each predicted frame onto the truth with least squares; never mirror it.

    Args:
        predicted: Metres, (..., J, 3).
        target: Metres, (..., J, 3).

    Returns:
        The predicted joints where they fit best, metres, (..., J, 3). Poses whose joints are all
        in one place or on one line have many best rotations; one of them is taken.

    Source: the fit is Umeyama's (1991). The rotation comes in closed form from Markley's FOAM
    (1993), which gives what the singular value decomposition of each frame gives, many frames at a
    time.
    """
    flat = map_blocks(
        lambda p, t: _align(_planes(p), _planes(t)).permute(2, 1, 0),
        *paired_frames(predicted, target),
    )
    return flat.reshape(predicted.shape).cpu().numpy()


def as_tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def paired_frames(predicted: Poses, target: Poses) -> tuple[Tensor, Tensor]:
    """Both as tensors of frames, (N, J, 3), after a look at their shapes."""
    if predicted.shape != target.shape or predicted.ndim < 2 or predicted.shape[-1] != 3:
        raise ValueError(
            f"predicted {tuple(predicted.shape)} and target {tuple(target.shape)} must be the same "
            "(..., J, 3)"
        )
    a, b = as_tensor(predicted), as_tensor(target)
    shape = math.prod(a.shape[:-2]), *a.shape[-2:]
    return a.reshape(shape), b.to(a.device).reshape(shape)


def check_shapes(shape: Sequence[int], **given: NDArray[Any] | Tensor | None) -> None:
    """Nothing is broadcast or reshaped to fit: all that is given must have this shape.

    Raises:
        ValueError: If one has another; the message names it.
    """
    for name, values in given.items():
        if values is not None and tuple(values.shape) != tuple(shape):
            raise ValueError(f"{name} is {tuple(values.shape)}, but must be {tuple(shape)} here")


def _block(frames: Tensor) -> int:
    """Frames that are worked on at once: on a CPU as many as its second-level cache holds."""
    return 2048 if frames.device.type == "cpu" else 1 << 17


def map_blocks(
    function: Callable[[Tensor, Tensor], Tensor], predicted: Tensor, target: Tensor
) -> Tensor:
    """A function of frames, (N, J, 3), float64, block by block."""
    size = _block(predicted)
    blocks = zip(predicted.split(size), target.split(size), strict=True)
    return torch.cat([function(a.double(), b.double()) for a, b in blocks])


def _length(vectors: Tensor) -> Tensor:
    """Lengths of vectors, (..., 3); faster than torch's norm over so short an axis."""
    x, y, z = vectors.unbind(-1)
    return (x * x).addcmul_(y, y).addcmul_(z, z).sqrt_()


def joint_distances(predicted: Tensor, target: Tensor) -> Tensor:
    return _length(predicted - target)


def visible_errors(
    predicted: Poses, target: Poses, visible: NDArray[np.bool_] | Tensor | None
) -> Tensor:
    """Distances of the joints that count, metres: (N, J) if all do, else (N,)."""
    errors = map_blocks(joint_distances, *paired_frames(predicted, target))
    if visible is None:
        return errors
    check_shapes(predicted.shape[:-1], visible=visible)
    return errors[as_tensor(visible).to(errors.device, torch.bool).reshape(errors.shape)]


def scaled_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean distance per frame after scaling, (N,)."""
    square = (predicted * predicted).sum((1, 2), keepdim=True)
    scale = (predicted * target).sum((1, 2), keepdim=True) / square.clamp_min(_TINY)
    return _length(scale * predicted - target).mean(1)


def aligned_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean distance per frame after the similarity fit, (N,)."""
    goal = _planes(target)
    x, y, z = _align(_planes(predicted), goal).sub_(goal)
    return (x * x).addcmul_(y, y).addcmul_(z, z).sqrt_().mean(0)


_TINY = 1e-150
"""Keeps 0 / 0 at 0 where all joints are in one place."""


def _planes(frames: Tensor) -> Tensor:
    """(N, J, 3) -> (3, J, N): every step then runs along many frames."""
    return frames.permute(2, 1, 0).contiguous()


def _align(predicted: Tensor, target: Tensor) -> Tensor:
    """Predicted joints moved, turned and scaled onto the target, (3, J, N)."""
    middle = target.mean(1, keepdim=True)
    target = target - middle
    predicted = predicted - predicted.mean(1, keepdim=True)
    attitude = (target[:, None] * predicted).sum(2)
    strength = (attitude * attitude).sum((0, 1)).sqrt()
    rotation, gain = _rotation(attitude / strength.clamp_min(_TINY))
    turn = rotation * (gain * strength / (predicted * predicted).sum((0, 1)).clamp_min(_TINY))
    x, y, z = predicted
    rows = [(x * row[0]).addcmul_(y, row[1]).addcmul_(z, row[2]) for row in turn]
    return torch.stack(rows).add_(middle)


def _rotation(attitude: Tensor) -> tuple[Tensor, Tensor]:
    """Best rotations A for B = sum of target x predicted, and tr(A B').

    Args:
        attitude: B, (3, 3, N), of Frobenius norm 1 (or 0).

    Returns:
        Rotations, (3, 3, N), and traces, (N,).

    Source: Markley 1993, equations for FOAM: with the largest root q of (q^2 - 1)^2 - 8 q det B -
    4 |cof B|^2 and k = (q^2 - 1) / 2, A = ((k + 1) B + q cof B - B B' B) / (k q - det B).
    """
    cofactors = torch.linalg.cross(attitude[[1, 2, 0]], attitude[[2, 0, 1]], dim=1)
    determinant = (attitude[0] * cofactors[0]).sum(0)
    constant = -4 * (cofactors * cofactors).sum((0, 1))
    minus_one = determinant.new_tensor(-1.0)
    root = torch.full_like(determinant, 3**0.5)  # no root is larger: Newton comes from above
    for _ in range(16):  # 7 leave errors of 1e-7 m on random poses
        part = torch.addcmul(minus_one, root, root)
        value = torch.addcmul(constant, part, part).addcmul_(determinant, root, value=-8)
        slope = (part * root).sub_(determinant, alpha=2).clamp_min_(1e-6)
        root = root.addcdiv_(value, slope, value=-0.25)
    excess = (root * root - 1) / 2
    divisor = excess * root - determinant
    inner = (attitude[:, None] * attitude).sum(2)
    cubed = (inner[:, :, None] * attitude).sum(1)
    rotation = ((excess + 1) * attitude + root * cofactors - cubed) / divisor
    # Joints (almost) on a line, or (almost) mirrored: the rotation hangs on the last digits.
    unsure = (~(divisor > 1e-4) & determinant.isfinite()).nonzero()[:, 0]
    if len(unsure):
        exact, gain = _rotation_by_svd(attitude[:, :, unsure].permute(2, 0, 1))
        rotation[:, :, unsure] = exact.permute(1, 2, 0)
        root[unsure] = gain
    return rotation, root


def _rotation_by_svd(attitude: Tensor) -> tuple[Tensor, Tensor]:
    """The same as `_rotation` for (N, 3, 3), also where there is more than one best rotation."""
    left, values, right = torch.linalg.svd(attitude)
    sign = torch.linalg.det(left @ right).sign()
    keep = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], dim=-1)
    return (left * keep[:, None]) @ right, (values * keep).sum(-1)


def motion_errors(predicted: Poses, target: Poses, order: int) -> Tensor:
    """Mean length of the error's differences per step in each clip, metres, (clips, T - order)."""
    if predicted.ndim < 3:
        raise ValueError(f"motion needs (..., T, J, 3), not {tuple(predicted.shape)}")
    a, b = paired_frames(predicted, target)
    T, size = predicted.shape[-3], _block(a)
    steps = [a.new_zeros(0, dtype=torch.float64)]
    for start in range(0, len(a) - order, size):
        cut = slice(start, start + size + order)
        error = a[cut].to(torch.float64, copy=True).sub_(b[cut].double())
        for _ in range(order):
            error = error[1:] - error[:-1]
        steps.append(_length(error).mean(1))
    steps.append(steps[0].new_zeros(min(order, len(a))))
    clips = math.prod(predicted.shape[:-3])
    return torch.cat(steps).reshape(clips, T)[:, : max(T - order, 0)]
