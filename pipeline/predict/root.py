"""Where a person is: the root in metres from 2D, 3D and focal length; height, floor and up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.errors import UsageError
from pipeline.export.measures import angle_between
from pipeline.skeleton import Skeleton

FOOT_HEIGHT = 0.08
"""Height of the ankle joint above the sole of a standing adult, metres."""

HUBER = 0.008
"""Residual, in units of x/z, from which a joint counts less: 8 pixels at a focal length of 1000,
which are 40 mm at 5 m, the usual error of a lifter."""

DEPTH_SECONDS, DIRECTION_SECONDS = 0.2, 0.03
"""Standard deviations of the Gaussians that smooth the distance and the direction of the root.
The distance is far less certain: an error of 1 % in size is one of 1 % in distance."""


def measure_height(joints3d: NDArray[np.floating], skeleton: Skeleton) -> float:
    """Height of a person in metres, from the bone lengths: legs, trunk, head and foot.

    Args:
        joints3d: Joints, metres, (T, J, 3); NaN where missing.
        skeleton: H36M17, or another set with pelvis, spine, thorax, head and the joints of the
            legs.

    Returns:
        The sum of the median bone lengths of an upright body; NaN if a bone is never there.

    Raises:
        UsageError: If the set lacks one of these joints.
    """
    sides = [f"{side}_{name}" for side in ("left", "right") for name in ("hip", "knee", "ankle")]
    needed = ("pelvis", "spine", "thorax", "head", *sides)
    if missing := [name for name in needed if name not in skeleton.joints]:
        raise UsageError(
            f"{skeleton.name}: lacks {', '.join(missing)}, which give the height of a person; "
            "predict with a lifter that has them"
        )

    def length(start: str, end: str) -> float:
        bone = joints3d[:, skeleton.index(end)] - joints3d[:, skeleton.index(start)]
        lengths = np.linalg.norm(bone, axis=-1)
        return float(np.nanmedian(lengths)) if np.isfinite(lengths).any() else float("nan")

    legs = [
        length(f"{side}_hip", f"{side}_knee") + length(f"{side}_knee", f"{side}_ankle")
        for side in ("left", "right")
    ]
    trunk = length("pelvis", "spine") + length("spine", "thorax")
    return float(np.mean(legs)) + trunk + length("thorax", "head") + FOOT_HEIGHT


def locate_root(
    joints3d: NDArray[np.floating],
    joints2d: NDArray[np.floating],
    score: NDArray[np.floating],
    *,
    focal: float,
    principal: tuple[float, float],
) -> NDArray[np.float64]:
    """Position of the root in each frame, so that the 3D joints are seen where the 2D joints are.

    For root t and joint X the projection gives (X_x + t_x) - u (X_z + t_z) = 0 with u = (x - c_x) /
    f, and the same for y: linear in t. The weighted least-squares solution is computed six times,
    with Huber weights from the residuals of the solution before, so that single wrong joints do
    not count.

    Args:
        joints3d: Joints relative to the root, camera frame, metres, (T, J, 3).
        joints2d: Pixels, (T, J, 2); NaN where missing.
        score: Weight of each joint, (T, J); 0 where missing.
        focal: Focal length in pixels.
        principal: Principal point in pixels.

    Returns:
        Camera frame, metres, (T, 3); NaN in frames with fewer than four joints, or where the
        person would not be in front of the camera.
    """
    known = np.isfinite(joints3d).all(-1) & np.isfinite(joints2d).all(-1) & (score > 0)
    body = np.where(known[..., None], joints3d, 0.0).astype(np.float64)
    ray = np.where(known[..., None], (joints2d - np.asarray(principal)) / focal, 0.0)
    weight = np.where(known, score, 0.0).astype(np.float64)
    root = np.full((len(body), 3), np.nan)
    enough = known.sum(axis=1) >= 4
    body, ray, weight = body[enough], ray[enough], weight[enough]
    factor = np.ones_like(weight)
    solution = np.zeros((len(body), 3))
    for _ in range(6):
        solution = _solve(body, ray, weight * factor)
        depth = np.maximum(body[..., 2] + solution[:, None, 2], 0.1)
        seen = (body[..., :2] + solution[:, None, :2]) / depth[..., None]
        residual = np.linalg.norm(seen - ray, axis=-1)
        factor = np.minimum(1.0, HUBER / np.maximum(residual, 1e-9))
    closest = np.minimum(np.where(weight > 0, body[..., 2], np.inf).min(axis=1), 0.0)
    solution[~(closest + solution[:, 2] > 0.1)] = np.nan  # the root may be hidden
    root[enough] = solution
    return root


def _solve(
    body: NDArray[np.float64], ray: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weighted least squares of `locate_root`: normal equations of three unknowns per frame."""
    total = weight.sum(axis=1)
    by_ray = (weight[..., None] * ray).sum(axis=1)
    matrix = np.zeros((len(body), 3, 3))
    matrix[:, 0, 0] = matrix[:, 1, 1] = total
    matrix[:, :2, 2] = matrix[:, 2, :2] = -by_ray
    matrix[:, 2, 2] = (weight[..., None] * ray**2).sum(axis=(1, 2))
    gap = ray * body[..., 2:] - body[..., :2]
    right = np.empty((len(body), 3))
    right[:, :2] = (weight[..., None] * gap).sum(axis=1)
    right[:, 2] = -(weight[..., None] * ray * gap).sum(axis=(1, 2))
    matrix += 1e-12 * total[:, None, None] * np.eye(3)
    return np.asarray(np.linalg.solve(matrix, right[..., None])[..., 0], np.float64)


def smooth_root(root: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """The path of a root, its distance smoothed more than its direction.

    Args:
        root: Camera frame, metres, (T, 3); NaN frames are bridged.
        rate: Frames per second.

    Returns:
        The smoothed path, (T, 3); NaN everywhere if no frame is known.
    """
    known = np.isfinite(root).all(axis=1)
    if not known.any():
        return np.full_like(root, np.nan)
    frames = np.arange(len(root))
    logs = np.c_[root[known, :2] / root[known, 2:], np.log(root[known, 2])]
    x, y, log_depth = (np.interp(frames, frames[known], column) for column in logs.T)
    log_depth = ndimage.median_filter(log_depth, 2 * int(0.1 * rate) + 1, mode="nearest")
    depth = np.exp(ndimage.gaussian_filter1d(log_depth, DEPTH_SECONDS * rate, mode="nearest"))
    direction = ndimage.gaussian_filter1d(
        np.c_[x, y], DIRECTION_SECONDS * rate, axis=0, mode="nearest"
    )
    return np.c_[direction * depth[:, None], depth]


def estimate_up(
    positions: NDArray[np.floating], skeleton: Skeleton
) -> tuple[NDArray[np.float64], float] | None:
    """The up direction in the camera frame, from people who stand or walk.

    A frame counts if both knees and the hips are nearly straight; then the line from the ankles to
    the thorax is upright on average.

    Args:
        positions: Joints, camera frame, metres, (N, J, 3), of all people and frames; NaN where
            missing.
        skeleton: H36M17.

    Returns:
        Unit vector, (3,), and the median angle between it and the line in single frames, degrees;
        None if fewer than ten frames count.
    """
    joints = {name: positions[:, skeleton.index(name)] for name in skeleton.joints}
    thorax = joints["thorax"]
    trunk = thorax - joints["pelvis"]
    straight = np.isfinite(positions).all((1, 2))
    for side in ("left", "right"):
        thigh = joints[f"{side}_knee"] - joints[f"{side}_hip"]
        shank = joints[f"{side}_ankle"] - joints[f"{side}_knee"]
        straight &= (angle_between(thigh, shank) < 35) & (angle_between(-thigh, trunk) < 40)
    if straight.sum() < 10:
        return None
    middle = (joints["left_ankle"] + joints["right_ankle"])[straight] / 2
    line = thorax[straight] - middle
    line = line / np.linalg.norm(line, axis=1, keepdims=True)
    up = np.median(line, axis=0)
    up = up / np.linalg.norm(up)
    return up, float(np.median(angle_between(line, up)))


def upright_rotation(up: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation from a world with z up to the camera, where y is the camera's horizontal direction.

    Args:
        up: Up direction in the camera frame, (3,).

    Returns:
        World to camera, (3, 3): x is right, y ahead, z up.

    >>> upright_rotation(np.array([0.0, -1.0, 0.0])).tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]
    """
    z = np.asarray(up, np.float64) / np.linalg.norm(up)
    ahead = np.array([0.0, 0.0, 1.0])
    if abs(z @ ahead) > 0.999:  # the camera looks straight down: its image's top is ahead
        ahead = np.array([0.0, -1.0, 0.0])
    y = ahead - (ahead @ z) * z
    y = y / np.linalg.norm(y)
    return np.stack([np.cross(y, z), y, z], axis=-1) + 0.0


def pitch_up(pitch: float) -> NDArray[np.float64]:
    """Up direction in the frame of a camera without roll.

    Args:
        pitch: Angle at which the camera looks up (positive) or down, degrees.

    >>> [round(float(x), 3) for x in pitch_up(-30.0)]
    [0.0, -0.866, -0.5]
    """
    angle = np.radians(pitch)
    return np.array([0.0, -np.cos(angle), np.sin(angle)])


def floor_height(heights: NDArray[np.floating]) -> float:
    """Height of the floor under people, from the heights of their ankles.

    Args:
        heights: Heights of both ankles along the up direction, metres, any shape; NaN where
            missing.

    Returns:
        The height in which feet stand: the 5 % quantile of the ankles minus the height of the foot.
    """
    known = heights[np.isfinite(heights)]
    return float(np.quantile(known, 0.05)) - FOOT_HEIGHT if known.size else 0.0
