"""MPI-INF-3DHP in P-STMO's and mmpose's archives; their targets are not comparable."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.camera import LEVEL_ROTATION, Camera, camera_to_world, check_camera
from pipeline.datasets.coco import first_existing
from pipeline.datasets.mmpose import read_annotations, read_cameras
from pipeline.errors import DataError
from pipeline.files import entries
from pipeline.files.archive import Npz, check_array
from pipeline.files.unpacked import split_rows, unpack_once
from pipeline.metrics.functional import MILLIMETRES
from pipeline.skeleton import MPI3DHP17
from pipeline.sources import Sequence, Split
from pipeline.training.console import progress_bar

KEPT = (7, 5, 14, 15, 16, 9, 10, 11, 23, 24, 25, 18, 19, 20, 4, 3, 6)
"""Indices of the data set's 28 joints that are the joints of MPI3DHP17."""

TEST_FPS = 25.0
"""Frames per second of the test recordings, Hz."""

_50_HZ = {"S1 Seq2", "S3 Seq1", "S3 Seq2", "S5 Seq1", "S5 Seq2"}
"""Training recordings at 50 Hz; the others are at 25 Hz."""


class MpiInf3dhp:
    """MPI-INF-3DHP as P-STMO and its successors share it: target univ_annot3.

    univ_annot3 has positions scaled to one body height: errors are smaller than on annot3 and not
    comparable with them. The archives have no cameras: each sequence gets a level camera at the
    origin of the world, with focal lengths and principal point fitted to its 2D and 3D joints.

    Args:
        root: Folder with `data_train_3dhp.npz` and `data_test_3dhp.npz`.
    """

    skeleton = MPI3DHP17
    val_is_test = True
    target = "univ_annot3"

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def describe(self) -> str:
        """Describe the source in one line, for the output of a run."""
        return (
            f"MPI-INF-3DHP (P-STMO npz) in {self.root}; target {self.target} (height-normalised, "
            "not comparable with annot3); train S1-S8, test the valid frames of TS1-TS6, "
            "17 joints; val is test"
        )

    def sequences(self, split: Split) -> list[Sequence]:
        """Sequences with names like `S1/Seq1/0` or `TS1`; see `pipeline.sources.MotionSource`."""
        entry = self._entry(split)
        rows, arrays = entry.facts["sequences"], entry.arrays
        lengths = [frames for _, frames, *_ in rows]
        parts = [split_rows(arrays[name], lengths) for name in ("joints2d", "joints3d", "valid")]
        sequences = []
        for (name, _, fps, size, lens), joints2d, joints3d, valid in zip(rows, *parts, strict=True):
            camera = Camera(
                rotation=LEVEL_ROTATION,
                centre=np.zeros(3),
                focal=np.array(lens[:2]),
                principal=np.array(lens[2:]),
                size=(size[0], size[1]),
                distortion=np.zeros(5),
            )
            check_camera(camera, f"{self.annotations(split)}: {name}")
            subject = name.split("/", 1)[0]
            sequences.append(
                Sequence(
                    name=name,
                    subject=subject,
                    action=subject if split != "train" else name.rsplit("/", 1)[0],
                    camera=camera,
                    fps=fps,
                    skeleton=MPI3DHP17,
                    joints3d=joints3d,
                    joints2d=joints2d,
                    valid=None if valid.all() else valid.copy(),
                )
            )
        return sequences

    def input_files(self, splits: Collection[Split], detections: str = "") -> list[Path]:
        """Files that the source reads; see `pipeline.sources.SourceWithFiles`."""
        return sorted({self.annotations(split) for split in splits})

    def annotations(self, split: Split) -> Path:
        """Path of the archive of a split.

        Raises:
            DataError: If there is none.
        """
        name = "train" if split == "train" else "test"
        return first_existing(self.root, [f"data_{name}_3dhp.npz"], f"archive of {name}")

    def _entry(self, split: Split) -> entries.Entry:
        """Cache entry with the arrays of a split."""
        name = "train" if split == "train" else "test"
        path = self.annotations(split)
        iterate = _iterate_train if split == "train" else _iterate_test
        return unpack_once(
            f"3dhp-{name}", [path], f"p-stmo {name} 1", lambda: _unpack(path, iterate)
        )


_VideoArrays = tuple[str, float, tuple[int, int], NDArray, NDArray, NDArray]
"""Name, frames per second, image size, joints in pixels, joints in millimetres in the camera frame,
valid frames."""


def _read_sequences(path: Path) -> dict[str, Any]:
    """Name of a sequence -> its content in the archive."""
    content = Npz(path).objects("data")
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DataError(f"{path}: data: a dict of sequences is expected")
    return content


def _check_joints(facts: Any, place: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Checked 2D and 3D joints of a video, (T, 17, 2) and (T, 17, 3)."""
    if not isinstance(facts, dict) or not {"data_2d", "data_3d"} <= facts.keys():
        raise DataError(f"{place}: has no data_2d and data_3d")
    joints3d = check_array(facts["data_3d"], (None, 17, 3), f"{place}: data_3d")
    return check_array(facts["data_2d"], (len(joints3d), 17, 2), f"{place}: data_2d"), joints3d


def _iterate_train(path: Path) -> Iterator[_VideoArrays]:
    """Videos of the training archive."""
    for name, videos in progress_bar(_read_sequences(path).items(), path.name):
        place = f"{path}: {name}"
        cameras = videos[0] if isinstance(videos, list) and videos else None
        if not isinstance(cameras, dict) or len(name.split()) != 2:
            raise DataError(
                f"{place}: a list of cameras and frame rate is expected, with a name like 'S1 Seq1'"
            )
        fps = videos[1] if len(videos) > 1 else None
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 1 <= fps <= 1000:
            raise DataError(f"{place}: {fps!r:.40} is not a frame rate")
        for camera, facts in cameras.items():
            joints2d, joints3d = _check_joints(facts, f"{place}: camera {camera}")
            valid = np.ones(len(joints3d), bool)
            video = f"{name.replace(' ', '/')}/{camera}"
            yield video, float(fps), (2048, 2048), joints2d, joints3d, valid


def _iterate_test(path: Path) -> Iterator[_VideoArrays]:
    """Videos of the test archive."""
    for name, facts in _read_sequences(path).items():
        place = f"{path}: {name}"
        joints2d, joints3d = _check_joints(facts, place)
        valid = facts.get("valid")
        if not isinstance(valid, np.ndarray) or valid.dtype.kind not in "biuf":
            raise DataError(f"{place}: valid must be an array with a flag per frame")
        if valid.size != len(joints3d):
            raise DataError(f"{place}: valid has {valid.size} flags for {len(joints3d)} frames")
        size = (1920, 1080) if name in ("TS5", "TS6") else (2048, 2048)
        yield name, TEST_FPS, size, joints2d, joints3d, valid.reshape(-1) > 0


def _unpack(
    path: Path, iterate: Callable[[Path], Iterator[_VideoArrays]]
) -> tuple[dict[str, NDArray], dict]:
    """Arrays and facts of an archive, for the cache."""
    pixels, points, flags, rows = [], [], [], []
    for name, fps, size, joints2d, joints3d, valid in iterate(path):
        place = f"{path}: {name}"
        extent = float(np.median(np.ptp(joints3d, axis=1).max(axis=-1)))
        if not 500.0 < extent < 3000.0:
            raise DataError(
                f"{place}: people are {extent:.4g} tall; positions must be in millimetres"
            )
        metres = joints3d.astype(np.float64) / MILLIMETRES
        rows.append([name, len(metres), fps, list(size), _fit_pinhole(joints2d, metres, place)])
        pixels.append(joints2d)
        points.append((metres @ LEVEL_ROTATION).astype(np.float32))
        flags.append(valid)
    if not rows:
        raise DataError(f"{path}: has no sequence")
    arrays = {
        "joints2d": np.concatenate(pixels),
        "joints3d": np.concatenate(points),
        "valid": np.concatenate(flags),
    }
    return arrays, {"sequences": rows}


def _fit_pinhole(pixels: NDArray, points: NDArray[np.float64], place: str) -> list[float]:
    """Fit focal lengths and principal point by least squares per axis: fx, fy, cx, cy in pixels."""
    if not (points[..., 2] > 0.1).all():
        raise DataError(f"{place}: has joints behind the camera; is the 3D in the camera frame?")
    lens = []
    for axis in range(2):
        slope = (points[..., axis] / points[..., 2]).ravel()
        design = np.stack([slope, np.ones_like(slope)], axis=1)
        lens.append(np.linalg.lstsq(design, pixels[..., axis].ravel().astype(np.float64))[0])
    return [float(lens[axis][part]) for part in range(2) for axis in range(2)]


class MpiInf3dhpImages:
    """MPI-INF-3DHP as mmpose shares it: target annot3, positions in true size.

    The test cameras have no pose in mmpose's files: each is a level camera at the origin of the
    world. A folder may have one of the two halves, train or test. The files have valid frames only:
    a video in which frames are missing becomes several sequences, none of which has a gap.

    Args:
        root: Folder with `annotations/mpi_inf_3dhp_{train,test_valid}.npz`,
            `annotations/cameras_{train,test}.pkl` and `images/`.
    """

    skeleton = MPI3DHP17
    val_is_test = True
    target = "annot3"

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def describe(self) -> str:
        """Describe the source in one line, for the output of a run."""
        return (
            f"MPI-INF-3DHP (mmpose npz) in {self.root}; target {self.target} (true sizes, not "
            "comparable with univ_annot3); valid test frames, 17 joints; val is test"
        )

    def sequences(self, split: Split) -> list[Sequence]:
        """Videos, with images if there are any; see `pipeline.sources.MotionSource`."""
        name, path = "train" if split == "train" else "test", self.annotations(split)
        cameras = read_cameras(path.parent / f"cameras_{name}.pkl", to_world=False)
        people = read_annotations(path, len(MPI3DHP17))
        sequences = []
        for video, rows in people.videos():
            if video not in cameras:
                raise DataError(f"{path}: {video[:80]!r} has no camera in cameras_{name}.pkl")
            camera, parts = cameras[video], video.split("_")
            recording = " ".join(parts[:2]) if split == "train" else ""
            runs = people.runs(rows)
            for number, run in enumerate(runs, start=1):
                joints3d = camera_to_world(np.asarray(people.joints3d[run]), camera)
                part = f"/part{number}" if len(runs) > 1 else ""
                sequences.append(
                    Sequence(
                        name=video.replace("_", "/") + part,
                        subject=parts[0],
                        action="/".join(parts[:2]) if split == "train" else parts[0],
                        camera=camera,
                        fps=50.0 if recording in _50_HZ else 25.0,
                        skeleton=MPI3DHP17,
                        joints3d=joints3d.astype(np.float32),
                        joints2d=np.asarray(people.joints2d[run]),
                        images=people.images(self.root / "images", run, camera),
                    )
                )
        return sequences

    def input_files(self, splits: Collection[Split], detections: str = "") -> list[Path]:
        """Files that the source reads; see `pipeline.sources.SourceWithFiles`."""
        halves = {"train" if split == "train" else "test" for split in splits}
        cameras = [self.root / "annotations" / f"cameras_{half}.pkl" for half in sorted(halves)]
        images = [path for path in [self.root / "images"] if path.is_dir()]
        return [*sorted({self.annotations(split) for split in splits}), *cameras, *images]

    def annotations(self, split: Split) -> Path:
        """Path of the annotation file of a split.

        Raises:
            DataError: If there is none.
        """
        name = "train" if split == "train" else "test_valid"
        candidates = [f"annotations/mpi_inf_3dhp_{name}.npz"]
        return first_existing(self.root, candidates, f"annotations of {name}")
