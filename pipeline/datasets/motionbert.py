"""MotionBERT's clips: Human3.6M in units of the image, cut into clips of 243 frames."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.camera import LEVEL_ROTATION, Camera, check_camera
from pipeline.errors import DataError
from pipeline.files import entries
from pipeline.files.archive import check_array
from pipeline.files.pickles import read_pickle
from pipeline.files.unpacked import split_rows, unpack_once
from pipeline.skeleton import H36M17
from pipeline.sources import Sequence, Split, VideoDetections
from pipeline.training.console import progress_bar

IMAGE_SIDE = 1000
"""Width and height of the images of the clips in pixels."""
CAMERA_DISTANCE = 200.0
"""Metres from the camera to the person; large, so that the projection is nearly parallel."""
LEG_BONES = (("right_hip", "right_knee"), ("right_knee", "right_ankle"))
LEG_LENGTH = 0.9
"""Metres from hip to ankle that the person of every clip is scaled to (Human3.6M's mean)."""


@dataclass(frozen=True, eq=False)
class MotionBertClip:
    """A clip of MotionBERT's data set, in units of the image, not in metres.

    Args:
        joints2d: x, y normalised by the image's width, and the score, (T, 17, 3).
        joints3d: x, y as in `joints2d`, z in the same unit relative to the root, (T, 17, 3).
    """

    joints2d: NDArray[np.float32]
    joints3d: NDArray[np.float32]


def read_motionbert_clip(path: Path) -> MotionBertClip:
    """Read a MotionBERT pickle: {data_input, data_label}, both (T, 17, 3).

    Raises:
        DataError: If the file is damaged or has another format.
    """
    content = read_pickle(path)
    if not isinstance(content, dict) or not {"data_input", "data_label"} <= content.keys():
        raise DataError(f"{path}: has no data_input and data_label; is it a clip of MotionBERT?")
    label = check_array(content["data_label"], (None, 17, 3), f"{path}: data_label")
    joints = check_array(content["data_input"], (len(label), 17, 3), f"{path}: data_input")
    return MotionBertClip(joints, label)


class MotionBertClips:
    """MotionBERT's clips, `train/*.pkl` and `test/*.pkl`; each clip is a sequence.

    The clips have no cameras, metric units or actions. Each person is scaled to legs of 0.9 m
    (hip to ankle) and stands so far from the camera that the projection is nearly parallel. So
    errors in millimetres are not comparable with those of any paper. `detections("input")` are
    the clips' own 2D joints with their scores.

    Args:
        root: Folder with `train` and `test`.
    """

    skeleton = H36M17
    val_is_test = True

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def describe(self) -> str:
        """Describe the source in one line, for the output of a run."""
        return (
            f"MotionBERT's clips in {self.root}; parallel projection, people scaled to legs of "
            f"{LEG_LENGTH:g} m (not comparable with any paper), 50 Hz, 17 joints; val is test"
        )

    def sequences(self, split: Split) -> list[Sequence]:
        """Sequences with names like `train/00000001`; see `pipeline.sources.MotionSource`."""
        entry = self._entry(split)
        names, lengths, scales = (entry.facts[key] for key in ("names", "lengths", "scales"))
        sequences = []
        for name, scale, joints3d in zip(
            names, scales, split_rows(entry.arrays["joints3d"], lengths), strict=True
        ):
            camera = Camera(
                rotation=LEVEL_ROTATION,
                centre=np.zeros(3),
                focal=np.full(2, 0.5 * IMAGE_SIDE * CAMERA_DISTANCE / scale),
                principal=np.full(2, 0.5 * IMAGE_SIDE),
                size=(IMAGE_SIDE, IMAGE_SIDE),
                distortion=np.zeros(5),
            )
            check_camera(camera, f"{self.root}/{name}.pkl")
            sequences.append(Sequence(name, "unknown", "clips", camera, 50.0, H36M17, joints3d))
        return sequences

    def detection_names(self) -> list[str]:
        """Names of the detections: the clips' own."""
        return ["input"]

    def detections(self, name: str) -> Mapping[str, VideoDetections]:
        """Name of a clip -> its own 2D joints; the name of these detections is `input`.

        Raises:
            DataError: If `name` is another one.
        """
        if name != "input":
            raise DataError(f"{self.root}: has no detections {name!r}, only input")
        found = {}
        splits: tuple[Split, ...] = ("train", "test")
        for split in splits:
            if not any((self.root / split).glob("*.pkl")):
                continue
            entry = self._entry(split)
            lengths = entry.facts["lengths"]
            parts = (split_rows(entry.arrays[key], lengths) for key in ("joints2d", "score"))
            for clip, joints2d, score in zip(entry.facts["names"], *parts, strict=True):
                found[clip] = VideoDetections(H36M17, joints2d, score)
        return found

    def input_files(self, splits: Collection[Split], detections: str = "") -> list[Path]:
        """Files that the source reads; see `pipeline.sources.SourceWithFiles`."""
        folders = {self.annotations(split) for split in splits}
        return [path for folder in sorted(folders) for path in sorted(folder.glob("*.pkl"))]

    def annotations(self, split: Split) -> Path:
        """Folder with the clips of a split.

        Raises:
            DataError: If it has none.
        """
        folder = self.root / ("train" if split == "train" else "test")
        if next(folder.glob("*.pkl"), None) is None:
            raise DataError(f"{folder}: has no *.pkl; give the folder with train and test")
        return folder

    def _entry(self, split: Split) -> entries.Entry:
        """Cache entry with the arrays of a split."""
        folder = self.annotations(split)
        name, files = folder.name, sorted(folder.glob("*.pkl"))
        return unpack_once(
            f"motionbert-{name}", files, "motionbert 1", lambda: _unpack(files, name)
        )


def _unpack(files: list[Path], split: str) -> tuple[dict[str, NDArray], dict]:
    """Arrays and facts of the clips of a split, for the cache."""
    joints2d, score, joints3d = [], [], []
    names, lengths, scales = [], [], []
    for path in progress_bar(files, f"{split} clips"):
        clip = read_motionbert_clip(path)
        scale = LEG_LENGTH / _leg_length(clip.joints3d, path)
        offset = np.array([0, 0, CAMERA_DISTANCE], np.float32)
        in_camera = clip.joints3d * np.float32(scale) + offset
        joints3d.append(in_camera @ LEVEL_ROTATION.astype(np.float32))
        found = clip.joints2d[..., 2] > 0
        pixels = 0.5 * IMAGE_SIDE * (clip.joints2d[..., :2] + 1)
        joints2d.append(np.where(found[..., None], pixels, np.nan).astype(np.float32))
        score.append(np.where(found, clip.joints2d[..., 2], 0).astype(np.float32))
        names.append(f"{split}/{path.stem}")
        lengths.append(len(in_camera))
        scales.append(float(scale))
    arrays = {"joints2d": joints2d, "score": score, "joints3d": joints3d}
    facts = {"names": names, "lengths": lengths, "scales": scales}
    return {name: np.concatenate(parts) for name, parts in arrays.items()}, facts


def _leg_length(joints3d: NDArray[np.float32], path: Path) -> float:
    """Median length from hip to ankle along the bones, in units of the image."""
    bones = [
        joints3d[:, H36M17.index(parent)] - joints3d[:, H36M17.index(child)]
        for parent, child in LEG_BONES
    ]
    length = float(np.median(sum(np.linalg.norm(bone, axis=-1) for bone in bones)))
    if not 1e-3 < length < 10:
        raise DataError(f"{path}: legs of {length:.3g} image sizes; is data_label normalised?")
    return length
