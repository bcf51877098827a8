"""The rest skeleton of a person: a T-pose with the person's own bone lengths, y up, facing +Z."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.mocap.bodies import BONES
from pipeline.skeleton import H36M17

Array = NDArray[np.float64]

_ARM, _LEG = ("Shoulder", "Arm", "ForeArm", "Hand"), ("UpLeg", "Leg", "Foot")
JOINTS = (
    *("Hips", "Spine", "Chest", "Neck", "Head"),
    *(f"{side}{part}" for limb in (_ARM, _LEG) for side in ("Left", "Right") for part in limb),
)
"""Joints of the rest skeleton, in the order of a walk through the tree."""

_PARENTS = {
    **{"Spine": "Hips", "Chest": "Spine", "Neck": "Chest", "Head": "Neck"},
    **{"Shoulder": "Chest", "Arm": "Shoulder", "ForeArm": "Arm", "Hand": "ForeArm"},
    **{"UpLeg": "Hips", "Leg": "UpLeg", "Foot": "Leg"},
}


def _parent(name: str) -> int:
    """Index of the parent of a joint, -1 for the root."""
    side = next((side for side in ("Left", "Right") if name.startswith(side)), "")
    parent = _PARENTS.get(name.removeprefix(side), "")
    return JOINTS.index(side + parent if side + parent in JOINTS else parent) if parent else -1


PARENTS = tuple(_parent(name) for name in JOINTS)
"""Index of each joint's parent, -1 for the root."""

_SIDED = {"hip": "UpLeg", "knee": "Leg", "ankle": "Foot"} | {
    "shoulder": "Arm", "elbow": "ForeArm", "wrist": "Hand"
}  # fmt: skip
PLACES = {
    **{"pelvis": "Hips", "spine": "Chest", "thorax": "Neck", "nose": "Head"},
    **{f"{s}_{h36m}": s.title() + own for s in ("left", "right") for h36m, own in _SIDED.items()},
}
"""Joint of H36M17 -> joint of the rest skeleton at the same place; `head` is the end of Head."""

_MEAN = {bone: (low + high) / 2 for bone, (low, high) in BONES.items()}
_ANKLE = 0.08
_NOSE, _TOP = np.array([0, 0.9165, 0.4]), np.array([0, 0.96, -0.28])  # of mocap.synthetic
_HEIGHT = (
    _ANKLE + _MEAN["knee"] + _MEAN["ankle"] + _MEAN["spine"] + _MEAN["thorax"]
    + _MEAN["nose"] * _NOSE[1] + _MEAN["head"] * _TOP[1]
)  # fmt: skip
PROPORTIONS = {bone: length / _HEIGHT for bone, length in _MEAN.items()}
"""Bone lengths of an adult as shares of the height, by the joint (no side) where the bone ends."""
ANKLE_HEIGHT, FOOT, HAND = _ANKLE / _HEIGHT, 0.09, 0.05
"""Height of the ankle above the floor, length of the foot ahead of the ankle, and of the hand, as
shares of the height; these are not measured."""
SPINE_START = 0.02
"""Where the spine begins to bend, above the pelvis, as a share of the bone from pelvis to spine.
Small, so that the bone keeps its length; not zero, because some programs drop empty bones."""
_SHORTEST = 0.01  # metres
_SHOULDER_DROP = 0.2431  # of mocap.synthetic


@dataclass(frozen=True, eq=False)
class RestSkeleton:
    """A skeleton at rest: T-pose, y up, facing +Z, the person's left at +X.

    Args:
        offsets: Offset of each of `JOINTS` from its parent, metres, (B, 3); for the root its
            position, at standing height above y = 0.
        ends: Joint -> offset of its end site, metres, (3,): top of the head, hands, toes.
        ankle_height: Height of the ankles above the floor, metres.
    """

    offsets: Array
    ends: Mapping[int, Array]
    ankle_height: float


def rest_skeleton(joints3d: NDArray[np.floating], height: float) -> RestSkeleton:
    """The rest skeleton of a person: medians of the bone lengths, left and right averaged.

    Args:
        joints3d: Joints of H36M17 in any frame of reference, metres, (T, 17, 3); NaN where missing.
        height: Height of the person, metres, for bones that are never seen.
    """
    points = joints3d.astype(np.float64)
    at = {name: points[:, i] for i, name in enumerate(H36M17.joints)}
    found = {
        bone: length
        for bone in PROPORTIONS
        if np.isfinite(length := _median_length(points, bone))
    }  # fmt: skip
    lengths = {
        bone: max(found.get(bone, share * height), _SHORTEST) for bone, share in PROPORTIONS.items()
    }
    hips = _beside(lengths["hip"], at, "pelvis", "hip", at["spine"] - at["pelvis"], 0.0)
    shoulders = _beside(
        lengths["shoulder"], at, "thorax", "shoulder", at["thorax"] - at["spine"], _SHOULDER_DROP
    )
    up = np.array([0.0, 1.0, 0.0])
    nose, top = _head(lengths, _median(at["head"] - at["thorax"]))
    start = SPINE_START * lengths["spine"]
    ankle = ANKLE_HEIGHT * height
    offsets = {
        "Hips": up * (ankle + lengths["ankle"] + lengths["knee"] - hips[1]),
        "Spine": up * start,
        "Chest": up * (lengths["spine"] - start),
        "Neck": up * lengths["thorax"],
        "Head": nose,
    }
    ends = {"Head": top - nose}
    for side, left in (("Left", 1.0), ("Right", -1.0)):
        mirror = np.array([left, 1.0, 1.0])
        offsets[f"{side}Shoulder"] = up * lengths["thorax"]
        offsets[f"{side}Arm"] = shoulders * mirror
        offsets[f"{side}ForeArm"] = np.array([left * lengths["elbow"], 0, 0])
        offsets[f"{side}Hand"] = np.array([left * lengths["wrist"], 0, 0])
        offsets[f"{side}UpLeg"] = hips * mirror
        offsets[f"{side}Leg"] = -up * lengths["knee"]
        offsets[f"{side}Foot"] = -up * lengths["ankle"]
        ends[f"{side}Hand"] = np.array([left * HAND * height, 0, 0])
        ends[f"{side}Foot"] = np.array([0, -ankle, FOOT * height])
    return RestSkeleton(
        np.array([offsets[name] for name in JOINTS]),
        {JOINTS.index(name): end for name, end in ends.items()},
        ankle,
    )


def _median(vectors: Array) -> float:
    """Median length of vectors, (T, 3); NaN if all are missing."""
    length = np.linalg.norm(vectors, axis=-1)
    length = length[np.isfinite(length)]
    return float(np.median(length)) if len(length) else np.nan


def _median_length(points: Array, bone: str) -> float:
    """Median length of a bone, the mean of left and right; NaN if it was never seen."""
    found = [
        _median(points[:, child] - points[:, parent])
        for parent, child in H36M17.bones
        if H36M17.joints[child].split("_")[-1] == bone
    ]
    known = [length for length in found if np.isfinite(length)]
    return float(np.mean(known)) if known else np.nan


def _beside(
    length: float, at: Mapping[str, Array], middle: str, part: str, up: Array, drop: float
) -> Array:
    """Offset of the left one of two joints from the joint between them, (3,): left, then down.

    Args:
        length: Length of the bone, metres.
        at: Joint -> its positions, (T, 3).
        middle: Name of the joint between them.
        part: Their name without the side.
        up: Direction along the spine, any length, (T, 3).
        drop: Share of the length by which they are lower, where that cannot be measured.
    """
    lower = at[middle] - (at[f"left_{part}"] + at[f"right_{part}"]) / 2
    down = (lower * up).sum(-1) / np.maximum(np.linalg.norm(up, axis=-1), 1e-9)
    down = down[np.isfinite(down)]
    found = float(np.median(down)) if len(down) else drop * length
    found = float(np.clip(found, -0.7 * length, 0.7 * length))
    return np.array([np.sqrt(length**2 - found**2), -found, 0.0])


def _head(lengths: Mapping[str, float], reach: float) -> tuple[Array, Array]:
    """Nose and top of the head from the base of the neck, (3,) each; the top is straight above.

    Args:
        lengths: Lengths of the bones to the nose and from there to the top, metres.
        reach: Distance from the base of the neck to the top, metres; NaN if not known.
    """
    near, far = lengths["nose"], lengths["head"]
    if not np.isfinite(reach):
        reach = float(np.linalg.norm(near * _NOSE + far * _TOP))
    reach = float(np.clip(reach, max(abs(near - far), _SHORTEST), near + far))
    along = np.clip((near**2 - far**2 + reach**2) / (2 * reach), -near, near)
    return np.array([0, along, np.sqrt(near**2 - along**2)]), np.array([0, reach, 0.0])
