"""Human3.6M: motion, cameras and 2D detections from VideoPose3D's archives."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.camera import human36m_cameras
from pipeline.datasets.videopose3d import check_nested, pixel_array, skeleton_from_metadata
from pipeline.errors import DataError, UsageError
from pipeline.files import entries
from pipeline.files.archive import Npz, check_array
from pipeline.files.unpacked import split_rows, unpack_once
from pipeline.skeleton import H36M17, SKELETONS
from pipeline.sources import Sequence, Split, VideoDetections
from pipeline.training.console import progress_bar

KEPT = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)
"""Indices of the 32 recorded points that are the joints of H36M17."""

CAMERAS = ("54138969", "55011271", "58860488", "60457274")
"""Serial numbers of the cameras, in the order of a recording's videos."""

ACTIONS = (
    *("Directions", "Discussion", "Eating", "Greeting", "Phoning", "Photo", "Posing"),
    *("Purchases", "Sitting", "SittingDown", "Smoking", "Waiting", "WalkDog", "Walking"),
    "WalkTogether",
)
_OTHER_NAMES = {"TakingPhoto": "Photo", "WalkingDog": "WalkDog", "WalkingTogether": "WalkTogether"}

SUBJECTS: dict[int, dict[str, tuple[str, ...]]] = {
    1: {"train": ("S1", "S5", "S6", "S7", "S8"), "test": ("S9", "S11")},
    2: {"train": ("S1", "S5", "S6", "S7", "S8", "S9"), "test": ("S11",)},
}
"""Protocol -> subjects of each split; 2 is protocol 2 of paper 004, whose error is rigid MPJPE."""


def action_name(name: str) -> str:
    """Action of a recording in result tables: the first word of its name.

    >>> action_name("SittingDown 1"), action_name("TakingPhoto")
    ('SittingDown', 'Photo')
    """
    first = name.split(" ", 1)[0]
    return _OTHER_NAMES.get(first, first)


def subject_names(protocol: int, split: Split) -> tuple[str, ...]:
    """Subjects of a split; `val` is `test`, as in the papers.

    Raises:
        UsageError: If the protocol is unknown.
    """
    if protocol not in SUBJECTS:
        raise UsageError(f"Human3.6M has protocol 1 and 2, not {protocol}")
    return SUBJECTS[protocol]["train" if split == "train" else "test"]


class Human36M:
    """Human3.6M in VideoPose3D's format: `data_3d_h36m.npz` and `data_2d_h36m_<name>.npz`.

    World positions of 17 of the 32 points at 50 Hz; each recording is seen by the four cameras that
    come with Heatlift, with Human3.6M's own lens formula. The archives are read once; after that
    their content is memory-mapped from the cache.

    Args:
        root: Folder with the archives.
        protocol: Protocol of the split, train / test: 1 is S1, S5, S6, S7, S8 / S9, S11; 2 is S1,
            S5, S6, S7, S8, S9 / S11.
    """

    skeleton = H36M17
    val_is_test = True

    def __init__(self, root: str, *, protocol: Literal[1, 2] = 1) -> None:
        self.root, self.protocol = Path(root), protocol

    def describe(self) -> str:
        """Describe the source in one line, for the output of a run."""
        train, test = (", ".join(subject_names(self.protocol, s)) for s in ("train", "test"))
        return (
            f"Human3.6M (VideoPose3D npz) in {self.root}; protocol {self.protocol}: train {train}, "
            f"test {test}; 50 Hz, 17 joints; val is test"
        )

    def sequences(self, split: Split) -> list[Sequence]:
        """Sequences named `subject/recording/camera`; see `pipeline.sources.MotionSource`."""
        motion, cameras = self._motion(), human36m_cameras()
        lengths = [frames for _, _, frames in motion.facts["recordings"]]
        subjects, sequences = subject_names(self.protocol, split), []
        for (subject, recording, _), joints3d in zip(
            motion.facts["recordings"], split_rows(motion.arrays["joints3d"], lengths), strict=True
        ):
            if subject not in subjects:
                continue
            sequences += [
                Sequence(
                    name=f"{subject}/{recording}/{name}",
                    subject=subject,
                    action=action_name(recording),
                    camera=camera,
                    fps=50.0,
                    skeleton=H36M17,
                    joints3d=joints3d,
                )
                for name, camera in zip(CAMERAS, cameras[subject], strict=True)
            ]
        if not sequences:
            raise DataError(
                f"{self.root / 'data_3d_h36m.npz'}: has no subject of the {split} split "
                f"({', '.join(subjects)}); protocol {self.protocol} needs them"
            )
        return sequences

    def input_files(self, splits: Collection[Split], detections: str = "") -> list[Path]:
        """Files that the source reads; see `pipeline.sources.SourceWithFiles`."""
        names = ["data_3d_h36m.npz", *([f"data_2d_h36m_{detections}.npz"] if detections else [])]
        return [self.root / name for name in names]

    def detection_names(self) -> list[str]:
        """Names of the archives of detections in the folder."""
        paths = sorted(self.root.glob("data_2d_h36m_*.npz"))
        return [path.stem.removeprefix("data_2d_h36m_") for path in paths]

    def detections(self, name: str) -> dict[str, VideoDetections]:
        """Detections of `data_2d_h36m_<name>.npz`: name of the sequence -> its 2D joints.

        If a video has more frames than its recording, the last ones are left out.

        Args:
            name: Name of the archive: `gt`, `cpn_ft_h36m_dbb`, `detectron_ft_h36m`, ...

        Raises:
            DataError: If the archive does not match the recordings or its joint set is unknown.
        """
        path = self.root / f"data_2d_h36m_{name}.npz"
        motion = self._motion()
        recordings = motion.facts["recordings"]
        files = [path, self.root / "data_3d_h36m.npz"]
        entry = unpack_once(
            f"h36m-2d-{name}", files, "videopose3d 2d 2", lambda: _unpack_2d(path, recordings)
        )
        skeleton = SKELETONS[entry.facts["skeleton"]]
        lengths = [frames for _, _, frames in recordings for _ in CAMERAS]
        names = [f"{subject}/{action}/{c}" for subject, action, _ in recordings for c in CAMERAS]
        joints2d, score = (split_rows(entry.arrays[a], lengths) for a in ("joints2d", "score"))
        parts = zip(joints2d, score, entry.facts["cut"], strict=True)
        return {
            key: VideoDetections(skeleton, joints, scores, cut=cut)
            for key, (joints, scores, cut) in zip(names, parts, strict=True)
        }

    def _motion(self) -> entries.Entry:
        path = self.root / "data_3d_h36m.npz"
        return unpack_once("h36m-3d", [path], "videopose3d 3d 1", lambda: _unpack_3d(path))


Recordings = list[tuple[str, str, int]]
"""Subject, recording and number of frames of each recording."""


def _unpack_3d(path: Path) -> tuple[dict[str, NDArray], dict]:
    """Arrays and facts of the archive of motion, for the cache."""
    content = check_nested(Npz(path).objects("positions_3d"), f"{path}: positions_3d")
    arrays, recordings = [], []
    cameras = human36m_cameras()
    for subject, actions in content.items():
        if subject not in cameras:
            raise DataError(
                f"{path}: there are no cameras for subject {subject!r}, only for "
                f"{', '.join(cameras)}"
            )
        for recording, points in progress_bar(actions.items(), f"{path.name} {subject}"):
            points = check_array(points, (None, 32, 3), f"{path}: {subject}/{recording}")
            arrays.append(points[:, KEPT])
            recordings.append((subject, recording, len(points)))
    if not arrays:
        raise DataError(f"{path}: has no recording")
    heights = [np.ptp(array[:: max(1, len(array) // 10), :, 2], axis=1).max() for array in arrays]
    if not 0.5 < float(np.median(heights)) < 3.0:
        raise DataError(
            f"{path}: people are {np.median(heights):.3g} m tall; positions must be in metres, z up"
        )
    return {"joints3d": np.concatenate(arrays)}, {"recordings": [list(r) for r in recordings]}


def _unpack_2d(path: Path, recordings: Recordings) -> tuple[dict[str, NDArray], dict]:
    """Arrays and facts of an archive of detections, for the cache."""
    archive = Npz(path)
    skeleton = skeleton_from_metadata(archive)
    joints = len(skeleton)
    content = check_nested(archive.objects("positions_2d"), f"{path}: positions_2d")
    kept, cut = [], []
    for subject, recording, frames in progress_bar(recordings, path.name):
        videos = content.get(subject, {}).get(recording)
        place = f"{path}: {subject}/{recording}"
        if not isinstance(videos, (list, np.ndarray)) or len(videos) != len(CAMERAS):
            raise DataError(f"{place}: four videos are expected, in the order {', '.join(CAMERAS)}")
        for name, video in zip(CAMERAS, videos, strict=True):
            joints2d, score = pixel_array(video, joints, f"{place}/{name}")
            if len(score) < frames:
                raise DataError(f"{place}/{name}: has {len(score)} frames, the motion has {frames}")
            kept.append((joints2d[:frames], score[:frames]))
            cut.append(len(score) - frames)
    all2d, scores = (np.concatenate(arrays) for arrays in zip(*kept, strict=True))
    return {"joints2d": all2d, "score": scores}, {"skeleton": skeleton.name, "cut": cut}
