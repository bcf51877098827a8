"""Detections by name of sequence, and the files in which they come and go."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.videopose3d import read_videopose3d
from pipeline.detections.formats import read_detections
from pipeline.errors import DataError
from pipeline.files.archive import Npz
from pipeline.files.writing import write_atomically
from pipeline.skeleton import SKELETONS, Skeleton, conversion
from pipeline.sources import Sequence
from pipeline.sources import VideoDetections as OfVideo


@dataclass(frozen=True, eq=False)
class Detections:
    """2D joints of the sequences of a split.

    Args:
        skeleton: The joint set of the arrays.
        found: Name of a sequence -> its joints in pixels of the whole image, (T, J, 2), float32,
            NaN where missing; and their scores, (T, J), float32, 0 where missing.
        origin: Where they come from, in a few words.
    """

    skeleton: Skeleton
    found: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    origin: str

    def of(
        self, name: str, skeleton: Skeleton | None = None, *, allow_missing: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Joints and scores of a sequence, (T, J, 2) and (T, J); see `found`.

        Args:
            name: Of the sequence.
            skeleton: The joint set wanted; none for the detector's own.
            allow_missing: Accept joints that the detector does not find.

        Raises:
            DataError: If there are none for the sequence, or the joint sets do not fit.
        """
        if name not in self.found:
            raise DataError(f"{self.origin}: no detections for sequence {name}")
        joints2d, score = self.found[name]
        if skeleton is None or skeleton == self.skeleton:
            return joints2d, score
        way = conversion(self.skeleton, skeleton, allow_missing=allow_missing)
        return way.joints(joints2d), way.score(score)


def read_detections_file(path: str | Path, sequences: Many[Sequence]) -> Detections:
    """Detections that were made elsewhere.

    Taken are an `.npz` file of `export_detections` or of VideoPose3D's 2D archives; and what AlphaPose,
    OpenPose, MMPose, RTMPose and COCO's tools write (see `pipeline.detections.formats`): for one
    sequence the file or folder itself, for several a folder with `<name of the sequence>.json`, or
    a folder of that name, for each.

    Args:
        path: The file or folder.
        sequences: The sequences that must be in it; further frames at their ends are left out.

    Raises:
        DataError: If it is not what it claims to be, or a sequence is missing or too short.
    """
    path = Path(path)
    if path.suffix == ".npz":
        if "metadata" in Npz(path).names:
            return _videopose3d(path, sequences)
        return _exported(path, sequences)
    read = {s.name: read_detections(_place(path, s, sequences), frames=len(s)) for s in sequences}
    return _together(read, str(path))


@runtime_checkable
class SourceWithDetections(Protocol):
    """A source that comes with detections of its own, as Human3.6M's archives do."""

    def detections(self, name: str) -> Mapping[str, OfVideo]:
        """Name of a sequence -> its detections; of several such sets, that of this name."""
        ...


def detections_from_source(
    source: SourceWithDetections, name: str, sequences: Many[Sequence]
) -> Detections:
    """Detections that come with a source.

    Raises:
        DataError: If the source has none of that name, or a sequence is missing or of another
            length.
    """
    own = source.detections(name)
    for sequence in sequences:
        if sequence.name not in own or len(own[sequence.name].joints2d) != len(sequence):
            raise DataError(f"{name}: sequence {sequence.name} is missing or of another length")
    return _together({s.name: own[s.name] for s in sequences}, name)


def _together(read: Mapping[str, OfVideo], origin: str) -> Detections:
    sets = {one.skeleton.name: one.skeleton for one in read.values()}
    if len(sets) != 1:
        raise DataError(
            f"{origin}: one joint set is expected for all sequences, "
            f"not {', '.join(sets) or 'none'}"
        )
    (skeleton,) = sets.values()
    return Detections(
        skeleton, {name: (one.joints2d, one.score) for name, one in read.items()}, origin
    )


def sequence_spans(sequences: Many[Sequence]) -> dict[str, tuple[int, int]]:
    """Rows of each sequence when all stand one after the other.

    Raises:
        DataError: If two have the same name.
    """
    ends = np.cumsum([0, *map(len, sequences)]).tolist()
    spans = {s.name: (a, b) for s, a, b in zip(sequences, ends[:-1], ends[1:], strict=True)}
    if len(spans) != len(sequences):
        raise DataError("two sequences of this split have the same name; rename one")
    return spans


def _place(path: Path, sequence: Sequence, sequences: Many[Sequence]) -> Path:
    """Where the detections of one sequence are."""
    for place in (path / f"{sequence.name}.json", path / sequence.name):
        if place.exists() and place.resolve().is_relative_to(path.resolve()):
            return place
    if len(sequences) == 1:
        return path
    raise DataError(
        f"{path}: has neither {sequence.name}.json nor a folder of that name; "
        f"{len(sequences)} sequences need one each"
    )


def _videopose3d(path: Path, sequences: Many[Sequence]) -> Detections:
    """Of an archive that numbers the videos of a recording: in the order of the sequences."""
    own = read_videopose3d(path)
    found: dict[str, OfVideo] = {}
    seen: dict[str, int] = {}
    for sequence in sequences:
        recording = sequence.name.rpartition("/")[0]
        number = seen[recording] = seen.get(recording, -1) + 1
        video = own.get(f"{recording}/{number}")
        if video is None or len(video.score) < len(sequence):
            have = "is missing" if video is None else f"has {len(video.score)} frames"
            raise DataError(
                f"{path}: {recording}/{number}, for sequence {sequence.name} of {len(sequence)} "
                f"frames, {have}; the archive is of other recordings"
            )
        kept = slice(len(sequence))
        found[sequence.name] = OfVideo(video.skeleton, video.joints2d[kept], video.score[kept])
    return _together(found, str(path))


def _exported(path: Path, sequences: Many[Sequence]) -> Detections:
    archive = Npz(path)
    joints2d, score = archive.array("joints2d"), archive.array("score")
    lengths, labels = archive.array("lengths"), archive.array("names")
    joints = tuple(archive.array("joints").tolist())
    kinds = "".join(array.dtype.kind for array in (joints2d, score, lengths, labels))
    if kinds != "ffiU":
        raise DataError(f"{path}: joints2d, score, lengths, names are of other types; export again")
    if joints2d.shape != (*score.shape, 2) or not lengths.shape == labels.shape == (len(labels),):
        raise DataError(
            f"{path}: joints2d {joints2d.shape}, score {score.shape}, names {labels.shape} and "
            f"lengths {lengths.shape} do not fit each other; export it again"
        )
    skeleton = next((known for known in SKELETONS.values() if known.joints == joints), None)
    if skeleton is None or joints2d.shape[1:] != (len(joints), 2):
        raise DataError(
            f"{path}: its joints ({', '.join(map(str, joints))}) are no known joint set; "
            f"known are {', '.join(SKELETONS)}"
        )
    if (lengths < 0).any() or lengths.sum() != len(joints2d):
        raise DataError(
            f"{path}: lengths are below zero or add up to {lengths.sum()}, "
            f"not to {len(joints2d)} frames"
        )
    names = labels.tolist()
    rows = {
        name: (end - length, length)
        for name, end, length in zip(
            names, np.cumsum(lengths).tolist(), lengths.tolist(), strict=True
        )
    }
    missing = ~np.isfinite(joints2d).all(-1) | ~(score > 0)
    joints2d, score = joints2d.astype(np.float32), score.astype(np.float32)
    joints2d[missing], score[missing] = np.nan, 0.0
    found = {}
    for sequence in sequences:
        first, have = rows.get(sequence.name, (0, None))
        if have is None or have < len(sequence):
            raise DataError(
                f"{path}: sequence {sequence.name} "
                f"{'is missing' if have is None else f'has {have} frames, not {len(sequence)}'}; "
                f"the file holds {', '.join(names[:5])}{' …' * (len(names) > 5)}"
            )
        span = slice(first, first + len(sequence))
        found[sequence.name] = (joints2d[span], score[span])
    return Detections(skeleton, found, str(path))


def export_detections(detections: Detections, path: str | Path) -> None:
    """Write detections to an `.npz` file of plain arrays.

    It holds `joints2d` (N, J, 2) in pixels, `score` (N, J), `joints` (J,) names of the joints,
    `names` (S,) and `lengths` (S,) of the sequences, in the order of their rows.

    Raises:
        StorageError: If the disk refuses.
    """
    joints2d, score = zip(*detections.found.values(), strict=True)
    arrays = {
        "joints2d": np.concatenate(joints2d),
        "score": np.concatenate(score),
        "joints": np.array(detections.skeleton.joints),
        "names": np.array(list(detections.found)),
        "lengths": np.array([len(one) for one in score]),
    }
    write_atomically(Path(path), lambda file: np.savez(file, allow_pickle=False, **arrays))
