"""Bodies of adults: ranges of bone lengths, random bodies, and motion moved to another body."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline import rng
from pipeline.errors import UsageError
from pipeline.skeleton import H36M17, Skeleton

BONES = {
    "hip": (0.119, 0.147),
    "knee": (0.428, 0.452),
    "ankle": (0.438, 0.454),
    "spine": (0.224, 0.261),
    "thorax": (0.251, 0.257),
    "nose": (0.107, 0.121),
    "head": (0.115, 0.115),
    "shoulder": (0.140, 0.169),
    "elbow": (0.265, 0.290),
    "wrist": (0.244, 0.252),
}
"""Ranges of bone lengths of adults as in Human3.6M, metres, by the joint where the bone ends."""


def sample_bone_lengths(seed: int, subject: str) -> dict[str, float]:
    """Random bone lengths of a subject, metres, by the joint (no side) where the bone ends."""
    draw = rng.uniform(f"{seed}:{subject}", "bones", lanes=len(BONES))
    return {
        bone: low + (high - low) * float(share)
        for (bone, (low, high)), share in zip(BONES.items(), draw, strict=True)
    }


def apply_bone_lengths(
    joints3d: NDArray[np.float64], skeleton: Skeleton, bones: dict[str, float]
) -> NDArray[np.float64]:
    """The same motion by a body with other bone lengths.

    Every bone keeps its direction. The path of the root is scaled as the legs are, so that feet
    stay on the floor and do not slide.

    Args:
        joints3d: World metres, floor at z = 0, (T, J, 3).
        skeleton: H36M17.
        bones: Bone lengths, metres, as `sample_bone_lengths` returns them.

    Raises:
        UsageError: If the joints are of another set than H36M17.
    """
    if skeleton is not H36M17:
        raise UsageError(
            f"random adult bodies are known for H36M17, the mapping makes {skeleton.name}; "
            "set bodies: recorded"
        )
    directions = joints3d[:, 1:] - joints3d[:, skeleton.parents[1:]]
    length = np.linalg.norm(directions, axis=-1)
    legs = [skeleton.index(f"{side}_{joint}") - 1 for side in ("left", "right")
            for joint in ("knee", "ankle")]  # fmt: skip
    leg = np.median(length[:, legs], axis=0).sum() / 2
    directions /= np.maximum(length, 1e-9)[..., None]
    moved = np.empty_like(joints3d)
    moved[:, 0] = joints3d[:, 0] * ((bones["knee"] + bones["ankle"]) / max(float(leg), 1e-9))
    for child, name in enumerate(skeleton.joints[1:], start=1):
        bone = bones[name.split("_")[-1]]
        moved[:, child] = moved[:, skeleton.parents[child]] + bone * directions[:, child - 1]
    return moved
