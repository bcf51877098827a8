"""Motions of single frames joined to one motion."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from pipeline.export.motion import Motion, PersonMotion


def join_motions(pieces: Sequence[Motion]) -> Motion:
    """Join motions that follow one another in time; people with one id are one person.

    Args:
        pieces: At least one motion, each with later times than the one before.

    Returns:
        A motion of all frames, with the facts of the last piece.
    """
    times = np.concatenate([piece.times for piece in pieces])
    last = pieces[-1]
    T, J = len(times), len(last.skeleton)
    people: dict[str, PersonMotion] = {}
    start = 0
    for piece in pieces:
        rows = slice(start, start + len(piece))
        start = rows.stop
        for person in piece.people:
            if person.id not in people:
                people[person.id] = PersonMotion(
                    person.id,
                    np.full((T, J, 3), np.nan, np.float32),
                    np.full((T, 3), np.nan, np.float32),
                    np.full((T, J, 2), np.nan, np.float32),
                    np.zeros((T, J), np.float32),
                    np.zeros(T, np.uint8),
                    person.height,
                )
            whole = people[person.id]
            for name in ("joints3d", "root", "joints2d", "score", "status"):
                getattr(whole, name)[rows] = getattr(person, name)
    span = times[-1] - times[0]
    fps = (T - 1) / float(span) if span > 0 else last.fps
    return dataclasses.replace(last, people=tuple(people.values()), times=times, fps=fps)
