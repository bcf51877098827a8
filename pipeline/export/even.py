"""Motion at an even frame rate, for formats that have no time per frame."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from pipeline.export.motion_data import FILLED, MISSING, SEEN, MotionData, PersonMotion

EVEN = 0.02
"""Share by which a step from frame to frame may differ from that of the rate."""

MOST_FRAMES = 100_000
"""Most frames that holes are filled with; beyond, the rate is the mean one."""

HOLE = 0.5
"""Seconds; a step from frame to frame that is longer, and longer than usual, is a hole."""


def is_even(motion: MotionData) -> bool:
    """Whether the frames follow one another at an even rate."""
    steps = np.diff(motion.times) * motion.fps
    return bool(np.abs(steps - 1).max(initial=0) <= EVEN)


def even_motion(motion: MotionData) -> MotionData:
    """A motion at its usual frame rate, by linear interpolation; itself if it is even already.

    A new frame in which one of the two frames around is missing, or which is in a hole of the
    source, is missing; if one of the frames around was filled in, so is the new one.
    """
    if len(motion) < 2 or is_even(motion):
        return motion
    steps = np.diff(motion.times)
    usual, span = float(np.median(steps)), float(motion.times[-1] - motion.times[0])
    count = max(2, round(span / usual) + 1)
    if count > MOST_FRAMES + len(motion):  # a hole of hours
        count = len(motion)
    times = np.linspace(motion.times[0], motion.times[-1], count)
    after = np.clip(np.searchsorted(motion.times, times), 1, len(motion) - 1)
    before = after - 1
    share = np.clip((times - motion.times[before]) / steps[before], 0.0, 1.0)
    share = np.where(share < 1e-6, 0.0, np.where(share > 1 - 1e-6, 1.0, share))
    hole = (steps[before] > max(HOLE, 1.5 * usual)) & (share > 0) & (share < 1)
    people = tuple(_resample(person, before, after, share, hole) for person in motion.people)
    return dataclasses.replace(motion, people=people, times=times, fps=(count - 1) / span)


def _resample(
    person: PersonMotion,
    before: NDArray[np.int64],
    after: NDArray[np.int64],
    share: NDArray[np.float64],
    hole: NDArray[np.bool_],
) -> PersonMotion:
    """A person at other times, which lie between two frames each, or in a hole."""
    left, right = person.status[before], person.status[after]
    left, right = np.where(share == 1, right, left), np.where(share == 0, left, right)
    status = np.where((left == SEEN) & (right == SEEN), SEEN, FILLED).astype(np.uint8)
    status[(left == MISSING) | (right == MISSING) | hole] = MISSING

    def between(values: NDArray[np.float32]) -> NDArray[np.float32]:
        weight = share.reshape(-1, *[1] * (values.ndim - 1)).astype(np.float32)
        first = np.where(weight == 1, 0, values[before] * (1 - weight))
        second = np.where(weight == 0, 0, values[after] * weight)
        found = np.asarray(first + second, np.float32)
        found[hole] = np.nan
        return found

    score = between(person.score)
    score[hole] = 0
    return dataclasses.replace(
        person,
        status=status,
        joints3d=between(person.joints3d),
        root=between(person.root),
        joints2d=between(person.joints2d),
        score=score,
    )
