"""Readers of mmpose's files: npz annotations of people with 3D joints, and cameras."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.camera import LEVEL_ROTATION, Camera, check_camera
from pipeline.datasets.photos import Photographs
from pipeline.errors import DataError
from pipeline.files.archive import Npz, check_array
from pipeline.files.pickles import read_pickle
from pipeline.files.reading import safe_relative_name
from pipeline.files.unpacked import unpack_once
from pipeline.metrics.functional import MILLIMETRES

_LARGEST_NUMBER = 1e7
"""Largest accepted number of a camera; ten kilometres in millimetres."""


@dataclass(frozen=True, eq=False)
class Annotations:
    """People of one annotation file; all arrays are memory-mapped, with one row per image.

    Args:
        names: File names of the images, relative to the folder of images, bytes, (N,).
        joints2d: Joints in pixels, (N, J, 2), float32.
        labelled: Joints marked as visible in 2D and 3D, (N, J).
        joints3d: Joints in the camera frame, metres, (N, J, 3), float32.
        boxes: x, y, width, height in pixels, (N, 4), float32: squares with sides of 200 x scale.
    """

    names: NDArray[np.bytes_]
    joints2d: NDArray[np.float32]
    labelled: NDArray[np.bool_]
    joints3d: NDArray[np.float32]
    boxes: NDArray[np.float32]

    def images(self, folder: Path, rows: NDArray[np.int64], camera: Camera) -> Photographs | None:
        """Images of a video in a folder, as large as its camera's; None if there is no folder."""
        if not folder.is_dir():
            return None
        names = [folder / self.names[row].decode() for row in rows]
        return Photographs(names, np.tile(np.array(camera.size, np.float64), (len(rows), 1)))

    def videos(self) -> list[tuple[str, NDArray[np.int64]]]:
        """Name of each video and its rows in order of frames.

        A video is the images whose names differ only in the last number.
        """
        if not len(self.names):
            return []
        videos: dict[str, list[tuple[int, int]]] = {}
        for row, name in enumerate(self.names):
            video, frame = video_name(name.decode())
            videos.setdefault(video, []).append((frame, row))
        return [(v, np.array([row for _, row in sorted(rows)])) for v, rows in videos.items()]

    def runs(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Rows of a video, cut where frames are missing, so that each part is motion.

        Args:
            rows: Rows of the video in order of frames, see `videos`.
        """
        frames = np.array([video_name(self.names[row].decode())[1] for row in rows])
        steps = np.diff(frames)
        if not len(steps):
            return [rows]
        return np.split(rows, np.flatnonzero(steps > steps.min()) + 1)


def video_name(name: str) -> tuple[str, int]:
    """Name of the video and number of the frame of an image.

    >>> video_name("S1/S1_Directions_1.54138969/S1_Directions_1.54138969_000001.jpg")
    ('S1_Directions_1.54138969', 1)
    """
    found = re.fullmatch(r"(.+)_(\d{1,9})", Path(name).stem)
    if found is None:
        raise DataError(f"the name of image {name[:80]!r} does not end with a frame number")
    return found[1], int(found[2])


def read_annotations(path: Path, joints: int) -> Annotations:
    """Read an annotation file with the arrays imgname, center, scale, part and S.

    Args:
        path: Path of the npz file.
        joints: Number of joints that the file must have.

    Raises:
        DataError: If the file is damaged or has another format.
    """
    stem = f"mmpose-{path.stem}"
    entry = unpack_once(stem, [path], f"mmpose {joints} 2", lambda: (_unpack(path, joints), {}))
    return Annotations(**entry.arrays)


def _unpack(path: Path, joints: int) -> dict[str, NDArray]:
    """Checked arrays of an annotation file, for the cache."""
    archive = Npz(path)
    names = archive.objects("imgname")
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: imgname has values that are not names")
    try:
        encoded = np.array([str(name).encode("ascii") for name in names])
    except UnicodeEncodeError:
        raise DataError(f"{path}: imgname has names that are not ASCII") from None
    count = len(encoded)
    if not count:
        raise DataError(f"{path}: has no image")
    for name in names:
        safe_relative_name(str(name), f"{path}: the image")
    try:
        for name in names:
            video_name(str(name))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    part = archive.array("part")
    channels = part.shape[-1] if part.ndim == 3 and part.shape[-1] in (2, 3) else 3
    part = check_array(part, (count, joints, channels), f"{path}: part")
    body = check_array(archive.array("S"), (count, joints, 4), f"{path}: S")
    flags = [body[..., 3]] + ([part[..., 2]] if channels == 3 else [])
    for values in flags:
        if len(other := values[~np.isin(values, (0, 1, 2))]):
            raise DataError(
                f"{path}: a joint has the visibility {other[0]:g}; write 0 (not labelled), 1 or 2"
            )
    labelled = np.all([values > 0 for values in flags], axis=0)
    _check_metres(body[..., :3], path)
    centre = check_array(archive.array("center"), (count, 2), f"{path}: center")
    scale = check_array(archive.array("scale").reshape(-1), (count,), f"{path}: scale")
    if not (scale > 0).all():
        raise DataError(f"{path}: scale has numbers that are not positive")
    side = 200.0 * scale[:, None]
    return {
        "names": encoded,
        "joints2d": np.ascontiguousarray(part[..., :2]),
        "labelled": labelled,
        "joints3d": np.ascontiguousarray(body[..., :3]),
        "boxes": np.concatenate([centre - side / 2, side, side], axis=1).astype(np.float32),
    }


def _check_metres(joints3d: NDArray[np.float32], path: Path) -> None:
    """Raise `DataError` if the people are not as tall as people in metres."""
    sparse = joints3d[:: max(1, len(joints3d) // 1000)]
    extent = float(np.median(np.ptp(sparse, axis=1).max(axis=-1)))
    if not 0.5 < extent < 3.0:
        raise DataError(f"{path}: people are {extent:.3g} m tall; S must be in metres")


def read_cameras(path: Path, *, to_world: bool) -> dict[Any, Camera]:
    """Read the cameras of a pickle of mmpose: key -> camera.

    Args:
        path: Path of the file, a pickled dict of {R, T, f, c, k, p, w, h}.
        to_world: If true, R maps camera to world and T is the centre (Human3.6M); if false, R and
            T map world to camera (MPI-INF-3DHP), and a camera with neither, as those of its test
            set, is level and at the origin of the world. T is in metres, or in millimetres if it
            is longer than 100.

    Raises:
        DataError: If the file is damaged or has another format.
    """
    content = read_pickle(path)
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: has no cameras")
    return {key: _read_camera(facts, f"{path}: {key}", to_world) for key, facts in content.items()}


def _read_camera(facts: Any, place: str, to_world: bool) -> Camera:
    """Camera of one entry of a camera file; see `read_cameras`."""
    if not isinstance(facts, dict):
        raise DataError(f"{place}: a dict is expected, not {type(facts).__name__}")

    def values(name: str, count: int) -> NDArray[np.float64]:
        raw = np.asarray(facts[name]) if name in facts else None
        if raw is None or raw.dtype.kind not in "iuf" or raw.size != count:
            raise DataError(f"{place}: {name} must be {count} numbers")
        if not (np.abs(raw.astype(np.float64)) < _LARGEST_NUMBER).all():
            raise DataError(f"{place}: {name} has numbers too large for a camera")
        return raw.astype(np.float64).reshape(-1)

    has_pose = to_world or "R" in facts or "T" in facts
    rotation = values("R", 9).reshape(3, 3) if has_pose else LEVEL_ROTATION
    translation = values("T", 3) if has_pose else np.zeros(3)
    if np.linalg.norm(translation) > 100:
        translation = translation / MILLIMETRES  # as in the calibration files of both data sets
    size = int(values("w", 1)[0]), int(values("h", 1)[0])
    if not 0.5 < size[0] / max(size[1], 1) < 2.5:
        raise DataError(f"{place}: {size[0]}x{size[1]} is not the size of an image; check w and h")
    radial = values("k", 3) if "k" in facts else np.zeros(3)
    tangential = values("p", 2) if "p" in facts else np.zeros(2)
    camera = Camera(
        rotation=rotation.T if to_world else rotation,
        centre=translation if to_world else -rotation.T @ translation,
        focal=values("f", 2),
        principal=values("c", 2),
        size=size,
        distortion=np.array([*radial[:2], *tangential, radial[2]]),
        lens="human36m" if to_world else "opencv",
    )
    return check_camera(camera, place)
