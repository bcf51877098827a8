"""Detections by name of sequence: read from files of other tools, exported to our own format."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.body_checks import Finding
from pipeline.datasets.detection_checks import check_detections, compare_videos
from pipeline.datasets.videopose3d import read_videopose3d
from pipeline.detections.formats import read_detections
from pipeline.errors import DataError
from pipeline.files.archive import Npz
from pipeline.files.writing import write_atomically
from pipeline.skeleton import SKELETONS, Skeleton, make_conversion
from pipeline.sources import Reading, Sequence, SourceWithDetections, VideoDetections
from pipeline.training.console import print_line

LISTED_FILES = 3
"""Files of other tools that are printed one by one; of more files, a summary is printed."""


@dataclass(frozen=True, eq=False)
class Detections:
    """2D joints of the sequences of a split.

    Args:
        skeleton: Joint set of the arrays.
        by_sequence: Name of a sequence -> its joints in pixels of the whole image, (T, J, 2),
            float32, NaN where missing; and their scores, (T, J), float32, 0 where missing.
        origin: Short description of where the detections come from, for messages.
        readings: File or folder of a sequence -> how it was read; empty for formats that define the
            frames and the person.
        cut: Sequence -> number of frames after its end that were left out.
    """

    skeleton: Skeleton
    by_sequence: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    origin: str
    readings: Mapping[str, Reading] = field(default_factory=dict)
    cut: Mapping[str, int] = field(default_factory=dict)

    def of(
        self, name: str, skeleton: Skeleton | None = None, *, allow_missing: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Joints and scores of a sequence, (T, J, 2) and (T, J); see `by_sequence`.

        Args:
            name: Name of the sequence.
            skeleton: Joint set of the result; without it the detector's own.
            allow_missing: Accept joints that the detector does not find.

        Raises:
            DataError: If the sequence has no detections, or the joint sets do not match.
        """
        if name not in self.by_sequence:
            raise DataError(f"{self.origin}: no detections for sequence {name}")
        joints2d, score = self.by_sequence[name]
        if skeleton is None or skeleton == self.skeleton:
            return joints2d, score
        joint_map = make_conversion(self.skeleton, skeleton, allow_missing=allow_missing)
        return joint_map.joints(joints2d), joint_map.score(score)


def read_detections_file(
    path: str | Path,
    sequences: Many[Sequence],
    *,
    first_frame: int | None = None,
    person: str | None = None,
) -> Detections:
    """Read detections made by other tools.

    Accepted are `.npz` files of `export_detections`, VideoPose3D's 2D archives, and the files of
    AlphaPose, OpenPose, MMPose, RTMPose and COCO's tools (see `pipeline.detections.formats`): for
    one sequence the file or folder itself; for several sequences a folder with
    `<name of the sequence>.json`, or a folder of that name, for each.

    Args:
        path: File or folder.
        sequences: Sequences that must be in it. Frames of an npz file after the end of a sequence
            are left out and counted.
        first_frame: Number of the first frame in the files of other tools; see `read_detections`.
        person: Person in the files of other tools; see `read_detections`.

    Raises:
        DataError: If the file is damaged or of another kind, a sequence is missing, too short or
            twice in it, or it is unclear which frames or people a file holds.
    """
    path = Path(path)
    if path.suffix == ".npz":
        if "metadata" in Npz(path).names:
            return _match_videopose3d(path, sequences)
        return _read_exported(path, sequences)
    videos, readings = {}, {}
    for sequence in sequences:
        file = _path_of_sequence(path, sequence, sequences)
        video = read_detections(file, frames=len(sequence), first_frame=first_frame, person=person)
        videos[sequence.name] = video
        if video.reading is not None:
            readings[str(file)] = video.reading
    return dataclasses.replace(_combine_sequences(videos, str(path)), readings=readings)


def detections_from_source(
    source: SourceWithDetections, name: str, sequences: Many[Sequence]
) -> Detections:
    """Detections that a data source brings itself.

    Raises:
        DataError: If the source has no detections of that name, or a sequence is missing or has
            another length.
    """
    videos = source.detections(name)
    for sequence in sequences:
        video = videos.get(sequence.name)
        if video is None or len(video.joints2d) != len(sequence):
            raise DataError(f"{name}: sequence {sequence.name} is missing or has another length")
    return _combine_sequences({s.name: videos[s.name] for s in sequences}, name)


def _combine_sequences(videos: Mapping[str, VideoDetections], origin: str) -> Detections:
    """Detections of all sequences, which must have one joint set."""
    skeletons = {video.skeleton.name: video.skeleton for video in videos.values()}
    if len(skeletons) != 1:
        raise DataError(
            f"{origin}: one joint set is expected for all sequences, "
            f"not {', '.join(skeletons) or 'none'}"
        )
    (skeleton,) = skeletons.values()
    arrays = {name: (video.joints2d, video.score) for name, video in videos.items()}
    cut = {name: video.cut for name, video in videos.items() if video.cut}
    return Detections(skeleton, arrays, origin, cut=cut)


def report_detections(detections: Detections, sequences: Many[Sequence], split: str) -> None:
    """Print how detections of another tool were read and how well they fit the sequences.

    Args:
        detections: Detections of all sequences.
        sequences: The sequences of a split, at least one.
        split: Name of the split.

    Raises:
        DataError: If the detections of a sequence are beyond a limit of
            `pipeline.datasets.detection_checks`.
    """
    for line in _reading_lines(detections.readings, detections.origin):
        print_line(f"  detections {line}")
    if line := _cut_line(detections):
        print_line(f"  detections {detections.origin}: {line}")
    together, faulty = compare_videos(_as_videos(detections), sequences)
    print_line(f"  detections {detections.origin}: {split} split: {together.text()}")
    if faulty:
        more = f" (also {len(faulty) - 1} more sequences)" if len(faulty) > 1 else ""
        raise DataError(f"{detections.origin}: sequence {faulty[0]}{more}")


def validate_detections(
    path: Path, sequences: Many[Sequence], split: str, **options: Any
) -> Finding:
    """Read detections of another tool and check them, as a finding of `heatlift data validate`.

    Args:
        path: File or folder.
        sequences: The sequences of a split, at least one.
        split: Name of the split.
        options: `first_frame` and `person` of `read_detections_file`.

    Returns:
        The finding; detections that cannot be read are a fault.
    """
    name = f"detections {path}, {split} split"
    try:
        detections = read_detections_file(path, sequences, **options)
    except DataError as error:
        return Finding(name, ("not read",), (str(error),))
    finding = check_detections(_as_videos(detections), sequences, name)
    lines = _reading_lines(detections.readings, "")
    readings = [line.removeprefix(f"{path}: ").removeprefix(": ") for line in lines]
    if line := _cut_line(detections):
        readings.append(line)
    return dataclasses.replace(finding, facts=(*finding.facts, *readings))


def _cut_line(detections: Detections) -> str:
    """How many frames were left out because the sequences end before; empty if none."""
    if not detections.cut:
        return ""
    name, frames = next(iter(detections.cut.items()))
    return (
        f"{len(detections.cut)} of {len(detections.by_sequence)} sequences end before their "
        f"detections: {sum(detections.cut.values())} frames after the end left out (first {name}: "
        f"{frames})"
    )


def _as_videos(detections: Detections) -> dict[str, VideoDetections]:
    """Detections of each sequence with their joint set."""
    return {
        name: VideoDetections(detections.skeleton, *arrays)
        for name, arrays in detections.by_sequence.items()
    }


def _reading_lines(readings: Mapping[str, Reading], origin: str) -> list[str]:
    """How the files of other tools were read: a line for each of a few files, one for many."""
    if len(readings) <= LISTED_FILES:
        return [f"{file}: {reading.text}" for file, reading in readings.items()]
    rules = Counter(reading.numbering for reading in readings.values())
    several = [file for file, reading in readings.items() if reading.people > 1]
    numbered = ", ".join(f"{count} {rule}" for rule, count in rules.most_common())
    crowded = f"several people in {len(several)} files"
    if several:
        crowded += f", first {several[0]} ({readings[several[0]].text.rpartition('; ')[2]})"
    empty = sum(reading.empty for reading in readings.values())
    return [
        f"{origin}: {len(readings)} files, numbered: {numbered}; {empty} frames have nobody; "
        f"{crowded}"
    ]


def sequence_spans(sequences: Many[Sequence]) -> dict[str, tuple[int, int]]:
    """First row and end row of each sequence in the concatenation of all.

    Raises:
        DataError: If two sequences have the same name.
    """
    ends = np.cumsum([0, *map(len, sequences)]).tolist()
    spans = {s.name: (a, b) for s, a, b in zip(sequences, ends[:-1], ends[1:], strict=True)}
    if len(spans) != len(sequences):
        raise DataError("two sequences of this split have the same name; rename one")
    return spans


def _path_of_sequence(path: Path, sequence: Sequence, sequences: Many[Sequence]) -> Path:
    """File or folder with the detections of one sequence."""
    name = Path(sequence.name)
    leads_out = name.is_absolute() or ".." in name.parts
    for candidate in () if leads_out else (path / f"{name}.json", path / name):
        if candidate.exists():
            return candidate
        if candidate.is_symlink():
            raise DataError(f"{candidate}: is a link to {candidate.readlink()}, which is missing")
    if len(sequences) == 1:
        return path
    raise DataError(
        f"{path}: has neither {sequence.name}.json nor a folder of that name; "
        f"{len(sequences)} sequences need one each"
    )


def _match_videopose3d(path: Path, sequences: Many[Sequence]) -> Detections:
    """Detections of an archive that numbers the videos of a recording in the sequences' order."""
    videos = read_videopose3d(path)
    trimmed: dict[str, VideoDetections] = {}
    next_number: dict[str, int] = {}
    for sequence in sequences:
        recording = sequence.name.rpartition("/")[0]
        number = next_number.get(recording, 0)
        next_number[recording] = number + 1
        video = videos.get(f"{recording}/{number}")
        if video is None or len(video.score) < len(sequence):
            problem = "is missing" if video is None else f"has {len(video.score)} frames"
            raise DataError(
                f"{path}: {recording}/{number}, for sequence {sequence.name} of {len(sequence)} "
                f"frames, {problem}; the archive is of other recordings"
            )
        frames = slice(len(sequence))
        trimmed[sequence.name] = VideoDetections(
            video.skeleton,
            video.joints2d[frames],
            video.score[frames],
            cut=len(video.score) - len(sequence),
        )
    return _combine_sequences(trimmed, str(path))


def read_exported(
    path: Path,
) -> tuple[Skeleton, dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]]:
    """Read a file of `export_detections`.

    Returns:
        Its joint set, and name of a sequence -> joints (T, J, 2) and scores (T, J), see
        `Detections.by_sequence`.

    Raises:
        DataError: If the file is damaged or of another kind.
    """
    skeleton, arrays = _check_exported(path)
    names, lengths = arrays["names"].tolist(), arrays["lengths"].tolist()
    joints2d, score = arrays["joints2d"], arrays["score"]
    missing = ~np.isfinite(joints2d).all(-1) | ~(score > 0)
    joints2d, score = joints2d.astype(np.float32), score.astype(np.float32)
    joints2d[missing], score[missing] = np.nan, 0.0
    ends = np.cumsum(lengths).tolist()
    spans = zip(names, ends, lengths, strict=True)
    rows = {name: slice(end - length, end) for name, end, length in spans}
    return skeleton, {name: (joints2d[span], score[span]) for name, span in rows.items()}


def _read_exported(path: Path, sequences: Many[Sequence]) -> Detections:
    """Detections of a file of `export_detections`."""
    skeleton, found = read_exported(path)
    names = list(found)
    by_sequence, cut = {}, {}
    for sequence in sequences:
        length = len(found[sequence.name][1]) if sequence.name in found else None
        if length is None or length < len(sequence):
            problem = f"has {length} frames, not {len(sequence)}"
            if length is None:
                problem = "is missing"
            listed = ", ".join(names[:5])
            if len(names) > 5:
                listed += " …"
            raise DataError(f"{path}: sequence {sequence.name} {problem}; the file holds {listed}")
        if length > len(sequence):
            cut[sequence.name] = length - len(sequence)
        joints2d, score = found[sequence.name]
        by_sequence[sequence.name] = (joints2d[: len(sequence)], score[: len(sequence)])
    return Detections(skeleton, by_sequence, str(path), cut=cut)


def _check_exported(path: Path) -> tuple[Skeleton, dict[str, NDArray[Any]]]:
    """Joint set and arrays of a file of `export_detections`, whose shapes and types match."""
    archive = Npz(path)
    joints2d, score = archive.array("joints2d"), archive.array("score")
    lengths, names = archive.array("lengths"), archive.array("names")
    joints = tuple(archive.array("joints").tolist())
    kinds = "".join(array.dtype.kind for array in (joints2d, score, lengths, names))
    if kinds != "ffiU":
        raise DataError(
            f"{path}: joints2d, score, lengths or names have a wrong data type; export it again"
        )
    if joints2d.shape != (*score.shape, 2) or not lengths.shape == names.shape == (len(names),):
        raise DataError(
            f"{path}: joints2d {joints2d.shape}, score {score.shape}, names {names.shape} and "
            f"lengths {lengths.shape} do not match each other; export it again"
        )
    skeleton = next((known for known in SKELETONS.values() if known.joints == joints), None)
    if skeleton is None or joints2d.shape[1:] != (len(joints), 2):
        raise DataError(
            f"{path}: its joints ({', '.join(map(str, joints))}) are not a known joint set; "
            f"known are {', '.join(SKELETONS)}"
        )
    if len(set(names.tolist())) < len(names):
        twice = next(name for name in names.tolist() if (names == name).sum() > 1)
        raise DataError(
            f"{path}: has the sequence {twice} twice, so it is unclear which person is meant; "
            "rename or remove one"
        )
    if (lengths < 0).any() or lengths.sum() != len(joints2d):
        raise DataError(
            f"{path}: lengths are below zero or add up to {lengths.sum()}, "
            f"not to {len(joints2d)} frames"
        )
    return skeleton, {"joints2d": joints2d, "score": score, "lengths": lengths, "names": names}


def export_detections(detections: Detections, path: str | Path) -> None:
    """Write detections to an `.npz` file of plain arrays.

    It holds `joints2d` (N, J, 2) in pixels, `score` (N, J), `joints` (J,) names of the joints,
    `names` (S,) and `lengths` (S,) of the sequences, in the order of their rows.

    Raises:
        StorageError: If the file cannot be written.
    """
    joints2d, score = zip(*detections.by_sequence.values(), strict=True)
    arrays = {
        "joints2d": np.concatenate(joints2d),
        "score": np.concatenate(score),
        "joints": np.array(detections.skeleton.joints),
        "names": np.array(list(detections.by_sequence)),
        "lengths": np.array([len(scores) for scores in score]),
    }
    write_atomically(Path(path), lambda file: np.savez(file, allow_pickle=False, **arrays))
