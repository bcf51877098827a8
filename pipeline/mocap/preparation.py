"""Preparation of recordings: resampling, good frames, floor height, bone lengths."""

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
"""Ranges of bone lengths of adults as in Human3.6M, metres, by the joint where the bone ends."""


def read_recording(file: Path, mapping: JointMapping) -> tuple[NDArray[np.float64], float]:
    """Read the joints of one recording and its frame rate.

    Args:
        file: BVH file, or npz file with `positions` (T, N, 3), `fps`, and `joints`, the N names.
        mapping: Joint mapping from the recording to a skeleton.

    Returns:
        Joints, world metres, (T, J, 3), and frames per second, Hz.

    Raises:
        DataError: If the file cannot be read completely or does not fit the mapping.
    """
    if file.suffix != ".npz":
        motion = read_bvh(file)
        return mapping(motion, str(file)), motion.fps
    positions, fps, joints = read_positions(file)
    return mapping.map_positions(positions, joints, str(file)), fps


def read_positions(file: Path) -> tuple[NDArray[np.float64], float, list[str]]:
    """Read `positions` (T, N, 3), `fps` and `joints` from an npz file.

    Raises:
        DataError: If an array is missing or malformed.
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
    """Joints at another frame rate, by linear interpolation between frames.

    Args:
        joints: Joints at times n / source, (T, J, 3).
        source: Frame rate of `joints`, Hz.
        target: Frame rate of the result, Hz.

    Returns:
        Joints at times k / target, (floor((T - 1) * target / source) + 1, J, 3).

    >>> resample(np.arange(7.0).reshape(7, 1, 1), 120, 50)[:, 0, 0].round(6).tolist()
    [0.0, 2.4, 4.8]
    """
    before, fraction = _source_positions(
        frames_at_rate(len(joints), source, target), source, target
    )
    after = np.minimum(before + 1, len(joints) - 1)
    return joints[before] + fraction[:, None, None] * (joints[after] - joints[before])


def frames_at_rate(frames: int, source: float, target: float) -> int:
    """Number of frames after `resample` of a recording with `frames` frames."""
    return int((frames - 1) * target / source + 1e-6) + 1


def _source_positions(
    frames: int, source: float, target: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Source frame before each target frame, and the fraction of the way to the next one."""
    positions = np.arange(frames) * (source / target)
    before = np.floor(positions + 1e-6).astype(np.int64)
    return before, np.clip(positions - before, 0.0, 1.0)


def find_good_frames(
    frames: int, fps: float, source: float, dropped: int, bad: Many[tuple[int, int]]
) -> NDArray[np.bool_]:
    """Mask of the resampled frames whose nearest file frame is not bad, (T,).

    Args:
        frames: Number of resampled frames.
        fps: Rate of the resampled frames, Hz.
        source: Rate of the file, Hz.
        dropped: Number of file frames left out at the beginning.
        bad: First and last file frame of each bad range.
    """
    nearest = np.rint(np.arange(frames) * (source / fps)) + dropped
    good = np.ones(frames, bool)
    for start, end in bad:
        good &= (nearest < start) | (nearest > end)
    return good


def floor_height(joints3d: NDArray[np.float64], skeleton: Skeleton) -> float:
    """Height of the floor, metres: the 5th percentile of ankle heights; 0 without ankles."""
    ankles = [i for name, i in skeleton.vocabulary.items() if name.endswith("ankle")]
    return float(np.percentile(joints3d[:, ankles, 2], 5)) if ankles else 0.0


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
            f"own bodies are known for H36M17, the mapping makes {skeleton.name}; "
            "set own_bodies: false"
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
