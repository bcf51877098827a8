"""Preparation of recordings: resampling, good frames, floor height, bone lengths."""

from __future__ import annotations

from collections.abc import Sequence as Many
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.archive import Npz
from pipeline.mocap.bvh import FASTEST, MAX_VALUE, SLOWEST, read_bvh
from pipeline.mocap.mapping import SLOWEST_MOTION, JointMapping
from pipeline.skeleton import Skeleton


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
    if file.suffix.lower() != ".npz":
        motion = read_bvh(file)
        return mapping(motion, str(file)), recorded_rate(file, motion.fps, mapping)
    positions, fps, joints = read_positions(file)
    rate = recorded_rate(file, fps, mapping)
    return mapping.map_positions(positions, joints, str(file)), rate


def recorded_rate(file: Path, fps: float, mapping: JointMapping) -> float:
    """Frame rate of a recording, Hz: that of its mapping, or else that of its file.

    Raises:
        DataError: If the file has too few frames per second and the mapping states no rate.
    """
    if mapping.recorded_fps is not None:
        return mapping.recorded_fps
    if fps < SLOWEST_MOTION:
        raise DataError(
            f"{file}: has {fps:g} frames per second; below {SLOWEST_MOTION:g} the motion between "
            f"two frames is lost. If the file names a wrong rate, add the right one to "
            f"{mapping.name}, as in recorded_fps: 30"
        )
    return fps


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
