"""Tracks of one person put together, where the tracker gave two ids; needs the whole clip."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.predict.sights import SPAN, STEADY, theil_sen
from pipeline.predict.tracker import PATIENCE, letters
from pipeline.predict.tracks import Track

NEAR_BEFORE, NEAR_AFTER = 1.5, 0.5
"""Largest distance of a track from the pose before and after the gap it fills, in sizes of the
person. Before the gap the joints may have slid onto somebody else. `NEAR_AFTER` is also the largest
distance from where somebody is expected, and of people who can hide each other."""

TOGETHER = 0.15
"""Largest distance of two poses of one person in the same frame, in sizes of the person."""

HIDDEN = 1.5
"""Longest time for which somebody is hidden by another person, seconds."""

SIZE_RATIO = 1.6
"""Largest ratio of the sizes of one person before and after a moment."""


def join_tracks(tracks: Sequence[Track], times: NDArray[np.float64]) -> tuple[Track, ...]:
    """Put tracks together that are one person before, while and after somebody else hides him.

    When two people part after one hid the other, the joints of a person can follow the other one
    for a moment. The person then gets a new id, for good or until the old one is found again.

    * A track that begins in a gap of an old one, ends where the old one goes on or follows the same
      body from there, and has the same size, is the same person.
    * A track that begins within `HIDDEN` seconds after an old one ended beside somebody else, where
      the velocities of both lead to, and has the same size, is the same person. It can begin some
      frames earlier, on the same body.

    If several fit, the nearest one is taken.

    Args:
        tracks: Tracks in order of appearance.
        times: Time of each frame, seconds, (T,).

    Returns:
        The tracks with new ids: A, B, … in order of appearance.
    """
    parts = dict(enumerate(tracks))
    found = _distances([(i, k) for i in parts for k in parts], parts, times)
    while found:
        i, k = min(found, key=lambda pair: (found[pair], pair))
        parts[i] = _merge(parts[i], parts.pop(k))
        found = {pair: distance for pair, distance in found.items() if not {i, k} & {*pair}}
        changed = [pair for other in parts for pair in ((i, other), (other, i))]
        found |= _distances(changed, parts, times)
    if len(parts) == len(tracks):
        return tuple(tracks)
    joined = sorted(parts.values(), key=lambda track: int(track.frames[0]))
    return tuple(replace(track, id=letters(number)) for number, track in enumerate(joined))


def _distances(
    pairs: Sequence[tuple[int, int]], parts: Mapping[int, Track], times: NDArray[np.float64]
) -> dict[tuple[int, int], float]:
    """Distance of each pair of an old track and one that goes on, where that fits."""
    found = {}
    for i, k in pairs:
        first, wait = parts[k].frames[0], times[parts[k].frames[0]] - times[parts[i].frames[-1]]
        if parts[i].frames[0] < first and wait <= HIDDEN:
            distance = _distance_in_gap(parts[i], parts[k], times)
            if distance is None:
                distance = _distance_after(parts[i], parts[k], parts.values(), times)
            if distance is not None:
                found[i, k] = distance
    return found


def _distance_in_gap(whole: Track, part: Track, times: NDArray[np.float64]) -> float | None:
    """Distance of the end of a track from the other one, where it goes on; None if it fits not."""
    after = int(np.searchsorted(whole.frames, part.frames[0]))
    if not 0 < after < len(whole.frames) or whole.frames[after] == part.frames[0]:
        return None
    before, last = after - 1, int(np.searchsorted(part.frames, whole.frames[after], "right")) - 1
    waits = (
        times[part.frames[0]] - times[whole.frames[before]],
        times[whole.frames[after]] - times[part.frames[last]],
    )
    if max(waits) > PATIENCE or not _is_seen_twice(whole, part, after):
        return None
    sizes = [_size(whole.joints2d[after]), _size(part.joints2d[last])]
    if max(sizes) > SIZE_RATIO * min(sizes):
        return None
    start = _apart(whole.joints2d[before], part.joints2d[0]) / sizes[0]
    end = _apart(whole.joints2d[after], part.joints2d[last]) / sizes[0]
    return float(end) if start <= NEAR_BEFORE and end <= NEAR_AFTER else None


def _distance_after(
    old: Track, new: Track, tracks: Collection[Track], times: NDArray[np.float64]
) -> float | None:
    """Distance of the beginning of a track from where an old one leads to; None if it fits not."""
    last, first = old.frames[-1], new.frames[0]
    wait = times[first] - times[last]
    if wait <= -STEADY:
        return None
    sizes = [_size(old.joints2d[-1]), _size(new.joints2d[0])]
    if max(sizes) > SIZE_RATIO * min(sizes):
        return None
    velocity = (_velocity(old, times, last) + _velocity(new, times, first)) / 2
    moved = np.nanmean(new.joints2d[0], axis=0) - np.nanmean(old.joints2d[-1], axis=0)
    distance = float(np.linalg.norm(moved - velocity * wait)) / sizes[0]
    if distance > (NEAR_AFTER if wait > 0 else TOGETHER) or not _is_beside_somebody(old, tracks):
        return None
    return distance


def _is_beside_somebody(track: Track, tracks: Collection[Track]) -> bool:
    """Whether another person is near a track where it ends."""
    last, near = track.frames[-1], NEAR_AFTER * _size(track.joints2d[-1])
    return any(
        _apart(track.joints2d[-1], pose) <= near
        for other in tracks
        if other is not track
        for pose in other.joints2d[other.frames == last]
    )


def _velocity(track: Track, times: NDArray[np.float64], frame: int) -> NDArray[np.float64]:
    """Velocity of the middle around a frame, pixels per second, (2,)."""
    near = np.abs(times[track.frames] - times[frame]) <= SPAN
    return theil_sen(times[track.frames[near]], np.nanmean(track.joints2d[near], axis=1))


def _is_seen_twice(whole: Track, part: Track, after: int) -> bool:
    """Whether a track is where the other one is, in each of its frames after the gap.

    When a person is found again, both ids can follow the same body for some frames, in turns.
    """
    for k in np.flatnonzero(part.frames >= whole.frames[after]):
        i = int(np.searchsorted(whole.frames, part.frames[k]))
        if i == len(whole.frames) or _apart(
            whole.joints2d[i], part.joints2d[k]
        ) > NEAR_AFTER * _size(whole.joints2d[i]):
            return False
    return True


def _merge(whole: Track, part: Track) -> Track:
    """Both tracks in order of their frames, under the id of the first, whose frames come first."""
    new = ~np.isin(part.frames, whole.frames)
    frames = np.concatenate([whole.frames, part.frames[new]])
    order = np.argsort(frames)
    return Track(
        whole.id,
        frames[order],
        np.concatenate([whole.joints2d, part.joints2d[new]])[order],
        np.concatenate([whole.score, part.score[new]])[order],
    )


def _size(joints2d: NDArray[np.floating]) -> float:
    """Larger side of the box around the joints that are there, pixels."""
    return float((np.nanmax(joints2d, axis=0) - np.nanmin(joints2d, axis=0)).max())


def _apart(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Distance of the middles of two poses, pixels."""
    return float(np.linalg.norm(np.nanmean(first, axis=0) - np.nanmean(second, axis=0)))
