"""MotionBERT's clips: Human3.6M in units of the image, cut into pieces of 243 frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.camera import Camera
from pipeline.errors import DataError
from pipeline.files import entries
from pipeline.files.pickles import check_array, read_pickle
from pipeline.files.unpacked import split_rows, unpack_once
from pipeline.skeleton import H36M17
from pipeline.sources import Sequence, Split, VideoDetections
from pipeline.training.console import progress_bar

SIDE = 1000
"""Pixels of a side of the image that clips are put back into."""
AWAY = 200.0
"""Metres to the camera: so far that its images are parallel projections but for 1 in 200."""
LEGS = (("right_hip", "right_knee"), ("right_knee", "right_ankle"))
THIGH_AND_SHIN = 0.9
"""Metres from hip to ankle in which every clip's person is measured (Human3.6M's mean)."""

_LEVEL = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])


@dataclass(frozen=True, eq=False)
class MotionBertClip:
    """A clip of MotionBERT's data set, in the units of the image and not in metres.

    Args:
        joints2d: Normalised by the image's width, with the score, (T, 17, 3).
        joints3d: x, y as in `joints2d`, z in the same unit relative to the root, (T, 17, 3).
    """

    joints2d: NDArray[np.float32]
    joints3d: NDArray[np.float32]


def read_motionbert_clip(path: Path) -> MotionBertClip:
    """A MotionBERT pickle: {data_input, data_label}, both (T, 17, 3).

    Raises:
        DataError: If it holds anything else.
    """
    content = read_pickle(path)
    if not isinstance(content, dict) or not {"data_input", "data_label"} <= content.keys():
        raise DataError(f"{path}: has no data_input and data_label; is it a clip of MotionBERT?")
    label = check_array(content["data_label"], (None, 17, 3), f"{path}: data_label")
    joints = check_array(content["data_input"], (len(label), 17, 3), f"{path}: data_input")
    return MotionBertClip(joints, label)


class MotionBertClips:
    """MotionBERT's folder of clips, `train/*.pkl` and `test/*.pkl`, as sequences of one clip each.

    The clips have no camera, no metres and no names of actions: each person is scaled so that hip
    to ankle measure 0.9 m, and stands so far from a camera that its image is a parallel
    projection. Errors are millimetres of those people, and are comparable with no paper's.
    `detections("input")` are the clips' own 2D joints with their scores.

    Args:
        root: Folder of `train` and `test`.
    """

    skeleton = H36M17

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def describe(self) -> str:
        """One line for the first lines of a run."""
        return (
            f"MotionBERT's clips in {self.root}; parallel projection, people scaled to legs of "
            f"{THIGH_AND_SHIN:g} m (comparable with no paper), 50 Hz, 17 joints; val is test"
        )

    def sequences(self, split: Split) -> list[Sequence]:
        """Sequences named `train/00000001`; see `pipeline.sources.MotionSource`."""
        entry = self._entry(split)
        names, lengths, scales = (entry.facts[key] for key in ("names", "lengths", "scales"))
        found = []
        for name, scale, joints3d in zip(
            names, scales, split_rows(entry.arrays["joints3d"], lengths), strict=True
        ):
            camera = Camera(
                rotation=_LEVEL,
                centre=np.zeros(3),
                focal=np.full(2, 0.5 * SIDE * AWAY / scale),
                principal=np.full(2, 0.5 * SIDE),
                size=(SIDE, SIDE),
                distortion=np.zeros(5),
            )
            found.append(Sequence(name, "unknown", "clips", camera, 50.0, H36M17, joints3d))
        return found

    def detections(self, name: str) -> Mapping[str, VideoDetections]:
        """The clips' own 2D joints, called `input`.

        Raises:
            DataError: If another name is asked for.
        """
        if name != "input":
            raise DataError(f"{self.root}: has no detections {name!r}; there is input")
        found = {}
        splits: tuple[Split, ...] = ("train", "test")
        for split in splits:
            if not (self.root / split).is_dir():
                continue
            entry = self._entry(split)
            lengths = entry.facts["lengths"]
            parts = (split_rows(entry.arrays[key], lengths) for key in ("joints2d", "score"))
            for clip, joints2d, score in zip(entry.facts["names"], *parts, strict=True):
                found[clip] = VideoDetections(H36M17, joints2d, score)
        return found

    def _entry(self, split: Split) -> entries.Entry:
        name = "train" if split == "train" else "test"
        files = sorted((self.root / name).glob("*.pkl"))
        if not files:
            raise DataError(
                f"{self.root / name}: holds no *.pkl; name the folder of train and test"
            )
        return unpack_once(
            f"motionbert-{name}", files, "motionbert 1", lambda: _unpack(files, name)
        )


def _unpack(files: list[Path], split: str) -> tuple[dict[str, NDArray], dict]:
    joints2d, score, joints3d = [], [], []
    names, lengths, scales = [], [], []
    for path in progress_bar(files, f"{split} clips"):
        clip = read_motionbert_clip(path)
        scale = THIGH_AND_SHIN / _leg(clip.joints3d, path)
        deep = clip.joints3d * np.float32(scale) + np.array([0, 0, AWAY], np.float32)
        joints3d.append(deep @ _LEVEL.astype(np.float32))
        seen = clip.joints2d[..., 2] > 0
        pixels = 0.5 * SIDE * (clip.joints2d[..., :2] + 1)
        joints2d.append(np.where(seen[..., None], pixels, np.nan).astype(np.float32))
        score.append(np.where(seen, clip.joints2d[..., 2], 0).astype(np.float32))
        names.append(f"{split}/{path.stem}")
        lengths.append(len(deep))
        scales.append(float(scale))
    arrays = {"joints2d": joints2d, "score": score, "joints3d": joints3d}
    facts = {"names": names, "lengths": lengths, "scales": scales}
    return {name: np.concatenate(parts) for name, parts in arrays.items()}, facts


def _leg(joints3d: NDArray[np.float32], path: Path) -> float:
    """Median length from hip to ankle along the bones, in units of the image."""
    bones = [
        joints3d[:, H36M17.index(one)] - joints3d[:, H36M17.index(other)] for one, other in LEGS
    ]
    length = float(np.median(sum(np.linalg.norm(bone, axis=-1) for bone in bones)))
    if not 1e-3 < length < 10:
        raise DataError(f"{path}: legs of {length:.3g} image sizes; is data_label normalised?")
    return length
