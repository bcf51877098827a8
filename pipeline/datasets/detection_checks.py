"""Checks of 2D detections against their sequences: frames covered, scores, distance from 3D."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.camera import project, world_to_camera
from pipeline.datasets.body_checks import Finding
from pipeline.errors import DataError
from pipeline.skeleton import Skeleton, make_conversion
from pipeline.sources import Sequence, SourceListingDetections, Split, VideoDetections

MIN_COVERED = 0.5
"""Smallest share of the frames of a sequence in which the person is found.

Frames that are not valid do not count, nor frames in which the projected person is outside of the
image.
"""

MIN_SCORE = 0.05
"""Smallest mean score of the joints that are found, for scores from 0 to 1."""

MIN_SIZE = 4.0
"""Smallest person in pixels: median over the frames of the larger side of the box of the joints."""

MIN_INSIDE = 0.5
"""Smallest share of the joints that are inside the image."""

MAX_DISTANCE = 0.2
"""Largest median distance of the joints from the projected 3D, in sizes of the person.

The size is the larger side of the box around the projected joints. At this limit half of the joints
would miss the threshold of PCK@0.2.
"""

COMPARED_FRAMES = 200
"""About as many frames of a sequence are compared with its 3D."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Detections of one or more sequences, compared with the sequences.

    Args:
        frames: Number of frames in which the person should be found.
        covered: Number of these frames in which at least one joint is found.
        joints: Number of joints that are found.
        inside: Number of joints that are found inside the image.
        score: Sum of the scores of these joints.
        has_scores: Whether any score differs from 1.
        sizes: Larger side of the box around the joints of some covered frames, pixels, (K,).
        distances: Distances from the projected 3D, pixels, (M,); empty where there is no 3D.
        relative: The same distances in sizes of the projected person, (M,).
    """

    frames: int
    covered: int
    joints: int
    inside: int
    score: float
    has_scores: bool
    sizes: NDArray[np.floating]
    distances: NDArray[np.floating]
    relative: NDArray[np.floating]

    def coverage_text(self) -> str:
        """Share of the frames and mean score in words."""
        share = math.floor(1000 * self.covered / max(self.frames, 1)) / 10
        counts = f"({self.covered} of {self.frames})"
        mean = f"mean score {self.score / max(self.joints, 1):.2g}"
        if self.joints and not self.has_scores:
            mean += " (all the same)"
        return f"covers {share:g} % of the frames {counts}, {mean}"

    def distance_text(self) -> str:
        """Median distance from the projected 3D in words."""
        if not len(self.distances):
            return "no 3D to compare with"
        return f"median {np.median(self.distances):.2f} px from the projected 3D"

    def text(self) -> str:
        """Coverage, mean score and distance in one line."""
        return f"{self.coverage_text()}, {self.distance_text()}"

    def faults(self) -> list[str]:
        """What is beyond a limit: the value, the limit, and what to do."""
        found: list[str] = []
        if self.covered < MIN_COVERED * self.frames:
            found.append(
                f"{self.coverage_text()}, less than {100 * MIN_COVERED:g} %; give the file of this "
                "video, or cut the video to the part that shows the person"
            )
        if not self.joints:
            return found
        if (mean := self.score / self.joints) < MIN_SCORE:
            found.append(
                f"mean score {mean:.2g}, less than {MIN_SCORE:g}; nearly nothing was found, or the "
                "scores are not from 0 to 1: find the joints again"
            )
        if (size := float(np.median(self.sizes))) < MIN_SIZE:
            found.append(
                f"the person has a size of {size:.2g} px (median), less than {MIN_SIZE:g} px; give "
                "coordinates in pixels of the whole image, not in shares of it"
            )
        if (inside := self.inside / self.joints) < MIN_INSIDE:
            found.append(
                f"{100 * inside:.0f} % of the joints are inside the image, less than "
                f"{100 * MIN_INSIDE:g} %; find the joints in images of the size of the camera"
            )
        if len(self.relative) and (apart := float(np.median(self.relative))) > MAX_DISTANCE:
            found.append(
                f"{self.distance_text()}, {100 * apart:.0f} % of the size of the person, more than "
                f"{100 * MAX_DISTANCE:g} %; are they of this video, this person, this camera, and "
                "in pixels?"
            )
        return found


def compare_detections(
    joints2d: NDArray[np.floating],
    score: NDArray[np.floating],
    skeleton: Skeleton,
    sequence: Sequence,
) -> Comparison:
    """Compare the detections of a sequence with the sequence.

    Args:
        joints2d: Joints in pixels, (T, J, 2), NaN where missing.
        score: Scores, (T, J), 0 where missing.
        skeleton: Joint set of the detections.
        sequence: Sequence with T frames.
    """
    found = np.isfinite(joints2d).all(-1) & (score > 0)
    covered = found.any(-1)
    valid = sequence.valid_frames
    expected = valid & (covered | _is_in_image(sequence, ~covered & valid))
    rows = np.flatnonzero(covered & valid)
    kept, points = found[rows], np.asarray(joints2d)[rows]
    inside = ((points >= -0.5) & (points <= np.array(sequence.camera.size) - 0.5)).all(-1)
    scores = np.asarray(score)[rows][kept]
    some = slice(None, None, max(1, len(rows) // COMPARED_FRAMES))
    distances, relative = _distances(joints2d, skeleton, sequence, rows[some])
    return Comparison(
        frames=int(expected.sum()),
        covered=len(rows),
        joints=len(scores),
        inside=int((inside & kept).sum()),
        score=float(scores.sum(dtype=np.float64)),
        has_scores=bool((scores != 1).any()),
        sizes=box_sizes(np.where(kept[some, :, None], points[some], np.nan)),
        distances=distances,
        relative=relative,
    )


def compare_videos(
    videos: Mapping[str, VideoDetections], sequences: Many[Sequence]
) -> tuple[Comparison, list[str]]:
    """Compare detections with all their sequences; each sequence must be within the limits.

    Args:
        videos: Name of a sequence -> its detections, as long as the sequence.
        sequences: The sequences, at least one.

    Returns:
        All sequences compared together, and the faults of each sequence that has some, in a line
        that begins with its name.
    """
    comparisons, faulty = [], []
    for sequence in sequences:
        video = videos[sequence.name]
        one = compare_detections(video.joints2d, video.score, video.skeleton, sequence)
        comparisons.append(one)
        if faults := one.faults():
            faulty.append(f"{sequence.name}: {'; '.join(faults)}")
    return _pool(comparisons), faulty


def _pool(comparisons: Many[Comparison]) -> Comparison:
    """The comparison of several sequences together."""

    def total(name: str) -> Any:
        return sum(getattr(one, name) for one in comparisons)

    def joined(name: str) -> NDArray[np.floating]:
        return np.concatenate([getattr(one, name) for one in comparisons])

    return Comparison(
        frames=total("frames"),
        covered=total("covered"),
        joints=total("joints"),
        inside=total("inside"),
        score=total("score"),
        has_scores=any(one.has_scores for one in comparisons),
        sizes=joined("sizes"),
        distances=joined("distances"),
        relative=joined("relative"),
    )


def check_detections(
    videos: Mapping[str, VideoDetections], sequences: Many[Sequence], name: str
) -> Finding:
    """Compare detections with all their sequences, as a finding of `heatlift data validate`."""
    together, faulty = compare_videos(videos, sequences)
    facts = [f"{len(sequences)} videos", next(iter(videos.values())).skeleton.name]
    if len(together.distances):
        facts.append(f"2D {np.median(together.distances):.2f} px from projected 3D (median)")
    more = [f"and {len(faulty) - 1} more videos"] if len(faulty) > 1 else []
    return Finding(name, (*facts, together.coverage_text()), (*faulty[:1], *more))


def check_source_detections(source: SourceListingDetections, name: str) -> list[Finding]:
    """Check the detections that a data source brings itself, in the splits that it has.

    Args:
        source: Data source of motion.
        name: Name of the detections.
    """
    splits: tuple[Split, ...] = ("train", "test")
    videos = source.detections(name)
    sequences = [
        sequence
        for split in splits
        for sequence in _sequences_if_present(source, split)
        if sequence.name in videos
    ]
    if not sequences:
        raise DataError(f"{name}: has detections for none of the sequences; is it of this data?")
    return [check_detections(videos, sequences, f"detections {name}")]


def _distances(
    joints2d: NDArray[np.floating],
    skeleton: Skeleton,
    sequence: Sequence,
    rows: NDArray[np.int64],
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Distances from the projected 3D in some frames: pixels, and sizes of the person."""
    if sequence.joints3d is None or not len(rows):
        return np.empty(0), np.empty(0)
    joints3d = np.asarray(sequence.joints3d)[rows]
    exact = project(world_to_camera(joints3d, sequence.camera), sequence.camera)
    joint_map = make_conversion(skeleton, sequence.skeleton, allow_missing=True)
    apart = np.linalg.norm(joint_map.joints(np.asarray(joints2d)[rows]) - exact, axis=-1)
    relative = apart / box_sizes(exact)[:, None]
    known = np.isfinite(apart) & np.isfinite(relative)
    return apart[known], relative[known]


def box_sizes(joints2d: NDArray[np.floating]) -> NDArray[np.floating]:
    """Larger side of the box around the joints of each frame, (T,); NaN where there are none."""
    low = np.where(np.isnan(joints2d), np.inf, joints2d).min(1)
    high = np.where(np.isnan(joints2d), -np.inf, joints2d).max(1)
    sizes = (high - low).max(-1)
    return np.where(np.isfinite(sizes), sizes, np.nan)


def _is_in_image(sequence: Sequence, frames: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Frames, of those given, in which the person is in the image as far as is known, (T,)."""
    inside = frames.copy()
    if sequence.joints3d is None or not frames.any():
        return inside
    in_camera = world_to_camera(np.asarray(sequence.joints3d)[frames], sequence.camera)
    centre = project(in_camera.mean(axis=1), sequence.camera)
    width, height = sequence.camera.size
    inside[frames] = ((centre >= 0) & (centre <= np.array([width, height]))).all(-1)
    return inside


def _sequences_if_present(source: SourceListingDetections, split: Split) -> list[Sequence]:
    """Sequences of a split; none if the data set lacks the split."""
    try:
        return source.sequences(split)
    except DataError:
        return []
