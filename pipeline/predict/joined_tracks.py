"""Tracks of one person put together, where the tracker gave two ids; needs the whole clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.predict.tracker import PATIENCE, letters
from pipeline.predict.tracks import Track

NEAR_BEFORE, NEAR_AFTER = 1.5, 0.5
"""Largest distance of a track from the pose before and after the gap it fills, in sizes of the
person. Before the gap the joints may have slid onto somebody else."""

SIZE_RATIO = 1.6
"""Largest ratio of the sizes of one person before and after a moment."""


def join_tracks(tracks: Sequence[Track], times: NDArray[np.float64]) -> tuple[Track, ...]:
    """Put a track into the gap of another one, if it is the person who is missing there.

    When two people part after one hid the other, the joints of a person can follow the other one
    for a moment. The person then gets a new id until the old one is found again. A track that lies
    in such a gap, ends where the old one goes on, and has the same size, is the same person. If
    several fit into one gap, the one that ends nearest is taken.

    Args:
        tracks: Tracks in order of appearance.
        times: Time of each frame, seconds, (T,).

    Returns:
        The tracks with new ids: A, B, … in order of appearance.
    """
    joined = list(tracks)
    while pair := _best_pair(joined, times):
        whole, part = (joined[k] for k in pair)
        joined[pair[0]] = _merge(whole, part)
        del joined[pair[1]]
    if len(joined) == len(tracks):
        return tuple(tracks)
    joined.sort(key=lambda track: int(track.frames[0]))
    return tuple(replace(track, id=letters(number)) for number, track in enumerate(joined))


def _best_pair(tracks: Sequence[Track], times: NDArray[np.float64]) -> tuple[int, int] | None:
    """Numbers of a track with a gap and of the track that fills it best; None if there is none."""
    found = [
        (distance, i, k)
        for i, whole in enumerate(tracks)
        for k, part in enumerate(tracks)
        if i != k and (distance := _distance_in_gap(whole, part, times)) is not None
    ]
    return min(found)[1:] if found else None


def _distance_in_gap(whole: Track, part: Track, times: NDArray[np.float64]) -> float | None:
    """Distance of the end of a track from the other one, where it goes on; None if it fits not."""
    after = int(np.searchsorted(whole.frames, part.frames[0]))
    if not 0 < after < len(whole.frames) or whole.frames[after] <= part.frames[-1]:
        return None
    before = after - 1
    waits = (
        times[part.frames[0]] - times[whole.frames[before]],
        times[whole.frames[after]] - times[part.frames[-1]],
    )
    if max(waits) > PATIENCE or whole.frames[before] == part.frames[0]:
        return None
    sizes = [_size(whole.joints2d[after]), _size(part.joints2d[-1])]
    if max(sizes) > SIZE_RATIO * min(sizes):
        return None
    start = _apart(whole.joints2d[before], part.joints2d[0]) / sizes[0]
    end = _apart(whole.joints2d[after], part.joints2d[-1]) / sizes[0]
    return float(end) if start <= NEAR_BEFORE and end <= NEAR_AFTER else None


def _merge(whole: Track, part: Track) -> Track:
    """Both tracks in order of their frames, under the id of the first."""
    frames = np.concatenate([whole.frames, part.frames])
    order = np.argsort(frames, kind="stable")
    return Track(
        whole.id,
        frames[order],
        np.concatenate([whole.joints2d, part.joints2d])[order],
        np.concatenate([whole.score, part.score])[order],
    )


def _size(joints2d: NDArray[np.floating]) -> float:
    """Larger side of the box around the joints that are there, pixels."""
    return float((np.nanmax(joints2d, axis=0) - np.nanmin(joints2d, axis=0)).max())


def _apart(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Distance of the middles of two poses, pixels."""
    return float(np.linalg.norm(np.nanmean(first, axis=0) - np.nanmean(second, axis=0)))
