"""Reader of VideoPose3D's archives of 2D detections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.archive import Npz, check_array
from pipeline.skeleton import COCO17, H36M17, MPI3DHP17, MPII16, Skeleton
from pipeline.sources import VideoDetections

_SYMMETRIES = {
    (len(s), frozenset(s.left), frozenset(s.right)): s for s in (H36M17, COCO17, MPII16, MPI3DHP17)
}
"""Number of joints, left joints and right joints -> joint set."""


def skeleton_by_symmetry(joints: int, left: list[int], right: list[int], place: str) -> Skeleton:
    """Joint set with this number of joints and these left and right joints.

    Args:
        joints: Number of joints.
        left: Indices of the left joints.
        right: Indices of the right joints.
        place: File, for messages.

    Raises:
        DataError: If there is no such set; the message lists the known sets.
    """
    skeleton = _SYMMETRIES.get((joints, frozenset(left), frozenset(right)))
    if skeleton is None:
        known = "; ".join(
            f"{s.name} has {n} joints, left {sorted(a)}, right {sorted(b)}"
            for (n, a, b), s in _SYMMETRIES.items()
        )
        raise DataError(
            f"{place}: its {joints} joints, left {left}, right {right}, "
            f"are not a known set: {known}"
        )
    return skeleton


def skeleton_from_metadata(archive: Npz) -> Skeleton:
    """Joint set of a 2D archive of VideoPose3D, from its metadata.

    Raises:
        DataError: If the joint set is unknown.
    """
    metadata = archive.objects("metadata")
    if not isinstance(metadata, dict):
        raise DataError(f"{archive.path}: metadata is not a dict; it must describe the joints")
    joints, sides = metadata.get("num_joints"), metadata.get("keypoints_symmetry")
    try:
        left, right = ([int(index) for index in side] for side in sides)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise DataError(f"{archive.path}: metadata has no left and right joints") from None
    if not isinstance(joints, int):
        raise DataError(f"{archive.path}: metadata has no number of joints")
    return skeleton_by_symmetry(joints, left, right, str(archive.path))


def check_nested(content: object, place: str) -> dict[str, dict]:
    """Check that the content of an archive is a dict of subjects with dicts of recordings.

    Raises:
        DataError: If it is anything else.
    """
    if not isinstance(content, dict):
        raise DataError(f"{place}: a dict of subjects is expected, not {type(content).__name__}")
    for subject, actions in content.items():
        if not isinstance(subject, str) or not isinstance(actions, dict):
            raise DataError(
                f"{place}: {subject!r:.40} holds {type(actions).__name__}, not recordings"
            )
        if not all(isinstance(name, str) for name in actions):
            raise DataError(f"{place}: {subject} has recordings without a name")
    return content


def read_videopose3d(path: Path) -> dict[str, VideoDetections]:
    """Read a 2D archive of VideoPose3D: `subject/recording/number` -> detections.

    Raises:
        DataError: If the archive is damaged or its joint set is unknown.
    """
    archive = Npz(path)
    skeleton, detections = skeleton_from_metadata(archive), {}
    content = check_nested(archive.objects("positions_2d"), f"{path}: positions_2d")
    for subject, recordings in content.items():
        for recording, videos in recordings.items():
            place = f"{path}: {subject}/{recording}"
            if not isinstance(videos, (list, np.ndarray)):
                raise DataError(f"{place}: a list of videos is expected")
            for index, video in enumerate(videos):
                joints2d, score = pixel_array(video, len(skeleton), f"{place}/{index}")
                key = f"{subject}/{recording}/{index}"
                detections[key] = VideoDetections(skeleton, joints2d, score)
    if not detections:
        raise DataError(f"{path}: has no video")
    return detections


def pixel_array(
    video: Any, joints: int, place: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Joints and scores, (T, J, 2) and (T, J), of a (T, J, 2) array, or (T, J, 3) with scores.

    A joint that is not finite, at x 0, y 0 or has score 0 is missing: NaN, score 0. A score above 1
    becomes 1.

    Raises:
        DataError: If the array has another shape or type.
    """
    channels = 3 if isinstance(video, np.ndarray) and video.shape[-1:] == (3,) else 2
    video = check_array(video, (None, joints, channels), place, finite=False).astype(np.float32)
    joints2d = video[..., :2]
    shown = np.isfinite(video).all(axis=-1) & (joints2d != 0).any(axis=-1)
    score = video[..., 2].clip(0.0, 1.0) if channels == 3 else np.ones_like(video[..., 0])
    score = np.where(shown, score, np.float32(0.0))
    return np.where(score[..., None] > 0, joints2d, np.float32(np.nan)), score
