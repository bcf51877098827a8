"""Tracks: the 2D joints of each person in a clip, from an estimator or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.skeleton import Skeleton


@dataclass(frozen=True, eq=False)
class Track:
    """2D joints of one person in the frames in which he or she was found.

    Args:
        id: Id of the person, as it is shown to the user.
        frames: Numbers of the frames in the clip, increasing, (N,).
        joints2d: Pixels of the upright image, (N, J, 2), float32; NaN where missing.
        score: Score of each joint, 0 to 1, (N, J), float32; 0 where missing.
    """

    id: str
    frames: NDArray[np.int64]
    joints2d: NDArray[np.float32]
    score: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TrackedPeople:
    """2D joints of all people in a clip.

    Args:
        skeleton: Joint set of all tracks.
        tracks: One track per person, each with a different id.
        times: Time of each frame, seconds from the start of the source, (T,), float64.
        fps: Frames per second; the mean rate where the times are not regular.
        size: Width and height of the upright image in pixels.
        source: Facts of the source, as plain values: `name`, `kind`, `sha256`, `rotation`, ….
        estimator: Facts of the estimator of 2D joints: `name`, `digest`, `licence`; of a file of
            another tool, its format.
        notes: Sentences for the user: assumptions that were made, and what is unusual.
    """

    skeleton: Skeleton
    tracks: tuple[Track, ...]
    times: NDArray[np.float64]
    fps: float
    size: tuple[int, int]
    source: Mapping[str, Any] = field(default_factory=dict)
    estimator: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def cut_clip(
    people: TrackedPeople, time: tuple[float, float] | None = None, every: int = 1
) -> TrackedPeople:
    """The frames of a clip within a time, and of those of the source every n-th.

    Args:
        people: The whole clip.
        time: First and last second that are kept; all by default.
        every: Step from one frame that is kept to the next.

    Raises:
        DataError: If no frame is left.
    """
    if time is None and every == 1:
        return people
    kept = np.arange(len(people.times)) % every == 0
    if time is not None:
        kept &= (people.times >= time[0] - 1e-6) & (people.times <= time[1] + 1e-6)
    if not kept.any():
        span = f" between {time[0]:g} and {time[1]:g} s" if time else ""
        raise DataError(f"{people.source.get('name', 'the file')}: has no frame{span}")
    numbers, tracks = np.cumsum(kept) - 1, []
    for track in people.tracks:
        rows = kept[track.frames]
        if rows.any():
            frames = numbers[track.frames[rows]]
            tracks.append(Track(track.id, frames, track.joints2d[rows], track.score[rows]))
    facts = {"time": list(time) if time else None, "every": every}
    return replace(
        people,
        tracks=tuple(tracks),
        times=people.times[kept],
        fps=people.fps / every,
        source={**people.source, **facts},
    )
