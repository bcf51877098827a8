"""Recordings made comparable: resampled, good frames found, floor at zero, own bone lengths."""

from __future__ import annotations

from collections.abc import Sequence as Many
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import rng
from pipeline.errors import DataError, UsageError
from pipeline.files.archive import Npz
from pipeline.mocap.bvh import FASTEST, MAX_VALUE, SLOWEST, read_bvh
from pipeline.mocap.mapping import JointMapping
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
"""Lengths of the bones that end in these joints among Human3.6M-like adults, metres."""


def read_recording(file: Path, mapping: JointMapping) -> tuple[NDArray[np.float64], float]:
    """Joints of one recording and its rate.

    Args:
        file: BVH, or npz with `positions` (T, N, 3), `fps`, and `joints`, the N names.
        mapping: Which joints become which.

    Returns:
        World metres, (T, J, 3), and frames per second, Hz.

    Raises:
        DataError: If the file is not read whole or does not fit the mapping.
    """
    if file.suffix != ".npz":
        motion = read_bvh(file)
        return mapping(motion, str(file)), motion.fps
    positions, fps, joints = read_positions(file)
    return mapping.of_positions(positions, joints, str(file)), fps


def read_positions(file: Path) -> tuple[NDArray[np.float64], float, list[str]]:
    """Joints that are already computed: `positions` (T, N, 3), `fps` and `joints` of an npz file.

    Raises:
        DataError: If the file is not such a file.
    """
    archive = Npz(file)
    joints, fps = archive.array("joints"), archive.array("fps")
    positions = archive.array("positions")
    if joints.ndim != 1 or joints.dtype.kind != "U" or len(set(joints.tolist())) != len(joints):
        raise DataError(f"{file}: joints must be a list of distinct names; write it again")
    shape = (len(positions) if positions.ndim else 0, len(joints), 3)
    if positions.dtype.kind not in "fiu" or positions.shape != shape or not shape[0]:
        raise DataError(
            f"{file}: positions has shape {positions.shape}, expected (frames, {len(joints)}, 3)"
        )
    rate = float(fps.flat[0]) if fps.size == 1 and fps.dtype.kind in "fiu" else 0.0
    if not SLOWEST <= rate <= FASTEST:
        raise DataError(f"{file}: fps must be one number from {SLOWEST:g} to {FASTEST:g}")
    positions = positions.astype(np.float64)
    wrong = ~(np.abs(positions) <= MAX_VALUE).all(axis=2)
    if wrong.any():
        frame, joint = np.argwhere(wrong)[0]
        raise DataError(
            f"{file}: {wrong.sum()} positions are not finite, first at frame {frame} joint "
            f"{joints[joint]}; leave such frames out"
        )
    return positions, rate, joints.tolist()


def resample(joints: NDArray[np.float64], source: float, target: float) -> NDArray[np.float64]:
    """Joints at times k / target, linearly between frames at times n / source.

    Args:
        joints: (T, J, 3).
        source: Frames per second at hand, Hz.
        target: Frames per second wanted, Hz.

    Returns:
        (floor((T - 1) * target / source) + 1, J, 3).

    >>> resample(np.arange(7.0).reshape(7, 1, 1), 120, 50)[:, 0, 0].round(6).tolist()
    [0.0, 2.4, 4.8]
    """
    before, share = _between(frames_at_rate(len(joints), source, target), source, target)
    after = np.minimum(before + 1, len(joints) - 1)
    return joints[before] + share[:, None, None] * (joints[after] - joints[before])


def frames_at_rate(frames: int, source: float, target: float) -> int:
    """Number of frames that `resample` makes of so many."""
    return int((frames - 1) * target / source + 1e-6) + 1


def _between(
    frames: int, source: float, target: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Source frame before each target frame, and how far on towards the next one it lies."""
    places = np.arange(frames) * (source / target)
    before = np.floor(places + 1e-6).astype(np.int64)
    return before, np.clip(places - before, 0.0, 1.0)


def good_frames(
    frames: int, fps: float, source: float, dropped: int, bad: Many[tuple[int, int]]
) -> NDArray[np.bool_]:
    """Which resampled frames have no bad one nearest to them, (T,).

    Args:
        frames: Number of resampled frames.
        fps: Their rate, Hz.
        source: Rate of the file, Hz.
        dropped: File frames left out at the beginning.
        bad: First and last bad file frame of each stretch.
    """
    nearest = np.rint(np.arange(frames) * (source / fps)) + dropped
    good = np.ones(frames, bool)
    for start, end in bad:
        good &= (nearest < start) | (nearest > end)
    return good


def floor_height(joints3d: NDArray[np.float64], skeleton: Skeleton) -> float:
    """Height of the floor, metres: what one ankle height in twenty lies below; 0 without ankles."""
    feet = [i for name, i in skeleton.vocabulary.items() if name.endswith("ankle")]
    return float(np.percentile(joints3d[:, feet, 2], 5)) if feet else 0.0


def draw_bone_lengths(seed: int, subject: str) -> dict[str, float]:
    """Bone lengths of a subject, metres, by the joint (without its side) where the bone ends."""
    draw = rng.uniform(f"{seed}:{subject}", "bones", lanes=len(BONES))
    return {
        bone: low + (high - low) * float(share)
        for (bone, (low, high)), share in zip(BONES.items(), draw, strict=True)
    }


def apply_bone_lengths(
    joints3d: NDArray[np.float64], skeleton: Skeleton, bones: dict[str, float]
) -> NDArray[np.float64]:
    """The same motion by another body.

    Every bone keeps its direction and gets its own length; the root's path grows as the legs do,
    so that feet stay on the floor and steps stay steps.

    Args:
        joints3d: World metres, floor at z = 0, (T, J, 3).
        skeleton: H36M17.
        bones: Lengths in metres, as `draw_bone_lengths` gives them.

    Raises:
        UsageError: If the joints are of another set.
    """
    if skeleton is not H36M17:
        raise UsageError(
            f"own bodies are known for H36M17, the mapping makes {skeleton.name}; "
            "set own_bodies: false"
        )
    along = joints3d[:, 1:] - joints3d[:, skeleton.parents[1:]]
    length = np.linalg.norm(along, axis=-1)
    legs = [skeleton.index(f"{side}_{joint}") - 1 for side in ("left", "right")
            for joint in ("knee", "ankle")]  # fmt: skip
    leg = np.median(length[:, legs], axis=0).sum() / 2
    along /= np.maximum(length, 1e-9)[..., None]
    moved = np.empty_like(joints3d)
    moved[:, 0] = joints3d[:, 0] * ((bones["knee"] + bones["ankle"]) / max(float(leg), 1e-9))
    for child, name in enumerate(skeleton.joints[1:], start=1):
        bone = bones[name.split("_")[-1]]
        moved[:, child] = moved[:, skeleton.parents[child]] + bone * along[:, child - 1]
    return moved
