"""Rotations of the bones of a body, read off its joints: where inverse kinematics begins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solveh_banded

from pipeline.export.rest_skeleton import JOINTS, RestSkeleton
from pipeline.skeleton import H36M17

Array = NDArray[np.float64]

UP, LEFT = np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])
HINGES = {
    "LeftForeArm": (np.array([0.0, -1, 0]), 0.0, 160.0),
    "RightForeArm": (np.array([0.0, 1, 0]), 0.0, 160.0),
    "LeftLeg": (np.array([1.0, 0, 0]), 0.0, 165.0),
    "RightLeg": (np.array([1.0, 0, 0]), 0.0, 165.0),
    "Head": (np.array([-1.0, 0, 0]), -75.0, 75.0),
}
"""Joint that turns about one axis only -> the axis at rest, (3,), and its range in degrees."""
_LEVER = 0.03
"""Distance of a hand or foot from the line of the upper bone at which it has weight 1, metres."""
_STRAIGHT, _SMOOTHING = 0.1, 0.2
"""Weight of the parent in the twist of a straight limb, and the seconds until it has its effect."""
_FARTHEST = {"Arm": 150.0, "UpLeg": 120.0, "Neck": 110.0}
"""Largest twist of a bone from where its parent has it, degrees; measured ones beyond it are
errors of the joints: a knee that bends ahead."""
_CLEAR, _HANGING = 0.06, -0.3
"""An arm is believed whatever its twist if its hand is farther than this from the line of the upper
arm, metres, or if the upper arm does not hang: the cosine of its angle to the spine."""


def bone_frames(joints3d: Array, rest: RestSkeleton, fps: float) -> tuple[Array, Array]:
    """Rotations of all bones in the world, and the angles of the hinges, from joints alone.

    The trunk is turned by hips and shoulders. The twist of upper arms, thighs and neck is that of
    the plane in which elbow, knee and head bend; where a limb is straight it comes from the parent
    and from the frames around.

    Args:
        joints3d: Joints of H36M17, metres, y up, (T, 17, 3); a joint is NaN in all frames or none.
        rest: The skeleton.
        fps: Frames per second, Hz.

    Returns:
        Rotations from the rest pose to each frame, (T, B, 3, 3), and angles of `HINGES` in their
        order, radians, (T, 5).
    """
    at = {name: joints3d[:, i] for i, name in enumerate(H36M17.joints)}
    frames = np.tile(np.eye(3), (len(joints3d), len(JOINTS), 1, 1))
    angles = np.zeros((len(joints3d), len(HINGES)))
    world = {name: frames[:, i] for i, name in enumerate(JOINTS)}  # views
    offset = dict(zip(JOINTS, rest.offsets, strict=True))
    hips, shoulders = at["left_hip"] - at["right_hip"], at["left_shoulder"] - at["right_shoulder"]
    world["Hips"][:] = _turn(LEFT, UP, hips, at["spine"] - at["pelvis"])
    world["Chest"][:] = _turn(UP, LEFT, at["thorax"] - at["spine"], shoulders)
    start = at["pelvis"] + world["Hips"] @ offset["Spine"]
    middle = world["Hips"][..., 0] + world["Chest"][..., 0]
    world["Spine"][:] = _turn(UP, LEFT, at["spine"] - start, middle)
    for side in ("Left", "Right"):
        rest_bone = offset[f"{side}Arm"]
        bone = at[f"{side.lower()}_shoulder"] - at["thorax"]
        world[f"{side}Shoulder"][:] = world["Chest"] @ _shortest_turn(
            rest_bone, world["Chest"], bone
        )
    limbs = [("Neck", "Head", "Chest", ("thorax", "nose", "head"), offset["Head"])]
    for side in ("Left", "Right"):
        own = side.lower()
        arm = (f"{own}_shoulder", f"{own}_elbow", f"{own}_wrist")
        leg = (f"{own}_hip", f"{own}_knee", f"{own}_ankle")
        limbs.append((f"{side}Arm", f"{side}ForeArm", f"{side}Shoulder", arm, -UP))
        limbs.append((f"{side}UpLeg", f"{side}Leg", "Hips", leg, -UP))
    for upper, lower, parent, (first, second, third), hanging in limbs:
        bones = at[second] - at[first], at[third] - at[second]
        tip = JOINTS.index(lower) if lower == "Head" else JOINTS.index(_hand_or_foot(lower))
        rest_bones = offset[lower], rest.ends[tip] if lower == "Head" else rest.offsets[tip]
        twist, angle = _limb(upper, lower, world[parent], bones, rest_bones, hanging, fps)
        hinge = list(HINGES).index(lower)
        world[upper][:], angles[:, hinge] = twist, angle
        world[lower][:] = twist @ rotation(HINGES[lower][0] * angle[:, None])
        if lower != "Head":
            world[_hand_or_foot(lower)][:] = world[lower]
    return frames, angles


def _hand_or_foot(lower: str) -> str:
    """The joint at the end of a forearm or shin."""
    return lower.replace("ForeArm", "Hand").replace("Leg", "Foot")


def _limb(
    upper: str,
    lower: str,
    parent: Array,
    bones: tuple[Array, Array],
    rest_bones: tuple[Array, Array],
    hanging: Array,
    fps: float,
) -> tuple[Array, Array]:
    """Rotation of the upper bone of a limb, (T, 3, 3), and the angle of its hinge, radians, (T,).

    Args:
        upper: Name of the upper bone.
        lower: Name of the lower bone, which turns about its hinge.
        parent: Rotations of the upper bone's parent, (T, 3, 3).
        bones: The two bones in the world, metres, (T, 3) each; NaN where never seen.
        rest_bones: The two bones at rest, metres, (3,) each.
        hanging: Direction of the upper bone in the parent's frame where it is never seen, (3,).
        fps: Frames per second, Hz.
    """
    axis, low, high = HINGES[lower]
    first, second = bones
    if np.isnan(first).any():
        first, second = parent @ hanging, np.full_like(first, np.nan)
    along, rest_along = unit(first), unit(rest_bones[0])
    carried = parent @ _shortest_turn(rest_along, parent, first) @ axis
    e1 = unit(carried - (carried * along).sum(-1, keepdims=True) * along)
    e2 = np.cross(along, e1)
    measured = np.nan_to_num(np.cross(along, second))  # as long as the lever
    lever = np.linalg.norm(measured, axis=-1)
    turn = ((measured * e1).sum(-1) + 1j * (measured * e2).sum(-1)) / np.maximum(lever, 1e-9)
    side = upper.removeprefix("Left").removeprefix("Right")
    far = np.abs(np.angle(turn)) > np.radians(_FARTHEST[side])
    if side == "Arm":
        far &= (lever < _CLEAR) & ((along * parent[..., 1]).sum(-1) < _HANGING)
    weight = np.where(far, 0.0, (lever / _LEVER) ** 2)
    twist = np.angle(_smooth(turn, weight, fps))[:, None]
    frame = _turn(rest_along, axis, first, np.cos(twist) * e1 + np.sin(twist) * e2)
    if np.isnan(second).any():
        return frame, np.zeros(len(frame))
    bent = _angle(np.einsum("tji,tj->ti", frame, second), rest_along, axis)
    angle = bent - _angle(rest_bones[1], rest_along, axis)
    return frame, np.clip(angle, np.radians(low), np.radians(high))


def _angle(bone: Array, along: Array, axis: Array) -> Array:
    """Angle of a bone, (..., 3), from a direction at right angles to an axis, about that axis."""
    return np.arctan2(bone @ np.cross(axis, along), bone @ along)


def _smooth(turn: NDArray[np.complex128], weight: Array, fps: float) -> NDArray[np.complex128]:
    """Directions in a plane, (T,), that follow the weighted ones, and change slowly elsewhere.

    Where nothing has weight they return to 1, the direction that the parent gives. It is the
    minimum of weight * |result - turn|² + straight * |result - 1|² + smoothing * |change|².
    """
    count = len(turn)
    if count == 1:
        return weight * turn + _STRAIGHT  # only the direction matters
    stiff = _STRAIGHT * (_SMOOTHING * fps) ** 2
    bands = np.zeros((2, count))
    bands[1] = weight + _STRAIGHT
    bands[1, 1:] += stiff
    bands[1, :-1] += stiff
    bands[0, 1:] = -stiff
    right = np.stack([(weight * turn).real + _STRAIGHT, (weight * turn).imag], axis=1)
    found = solveh_banded(bands, right)
    return np.asarray(found[:, 0] + 1j * found[:, 1])


def unit(vectors: Array) -> Array:
    """Vectors of length 1, (..., 3); zero vectors stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _triad(first: Array, second: Array) -> Array:
    """Right-handed axes as columns, (..., 3, 3): the first vector, then the second made normal."""
    a = unit(first)
    b = unit(second - (second * a).sum(-1, keepdims=True) * a)
    return np.stack([a, b, np.cross(a, b)], axis=-1)


def _turn(rest_first: Array, rest_second: Array, first: Array, second: Array) -> Array:
    """Rotations that turn one vector into another, and a second one as near as possible, (T, 3, 3).

    A frame in which the two are parallel has the rotation of the frame before it.
    """
    triads = _triad(first, second)
    good = np.abs(np.linalg.det(triads)) > 0.5
    triads = triads[hold_last(good)] if good.any() else np.tile(np.eye(3), (len(good), 1, 1))
    return triads @ _triad(rest_first, rest_second).T


def hold_last(good: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Index of the last good frame up to each frame, (T,); the first good one before that."""
    index = np.where(good, np.arange(len(good)), -1)
    held = np.maximum.accumulate(index)
    return np.where(held < 0, np.argmax(good), held)


def _shortest_turn(rest_bone: Array, parent: Array, bone: Array) -> Array:
    """Rotations in the parent's frame that turn a bone the shortest way, (T, 3, 3)."""
    a, b = unit(rest_bone), unit(np.einsum("tji,tj->ti", parent, bone))
    b = np.where(np.isfinite(b), b, a)
    v, c = np.cross(a, b), b @ a
    K = _cross_matrix(v)
    return np.eye(3) + K + K @ K / np.maximum(1 + c, 1e-6)[:, None, None]


def _cross_matrix(v: Array) -> Array:
    """Matrices, (..., 3, 3), whose product with a vector is the cross product v x vector."""
    x, y, z = np.moveaxis(v, -1, 0)
    zero = np.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def rotation(vectors: Array) -> Array:
    """Rotation matrices, (..., 3, 3), from rotation vectors in radians, (..., 3)."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    K = _cross_matrix(vectors)
    return np.eye(3) + np.sinc(angle / np.pi) * K + 0.5 * np.sinc(angle / 2 / np.pi) ** 2 * K @ K
