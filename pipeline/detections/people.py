"""People in a file of detections: followed from frame to frame, and one of them chosen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import scipy
from numpy.typing import NDArray

from pipeline.errors import DataError

MAX_MOVE = 0.4
"""Largest movement of a person in one frame: mean over the joints, in sizes of the person."""

MAX_MOVE_FRAMES = 3
"""A person who was not found for some frames may have moved as far as in this many frames."""

MAX_GAP = 50
"""Frames after which a person who is found again counts as another one."""

SAME_PERSON = 0.1
"""Two poses of a frame that are nearer, in sizes of the person, are one person found twice."""

UNCLEAR_RATIO = 1.5
"""Two people cannot be told apart if exchanging them moves them less than this times as far."""

MIN_OTHER = 0.1
"""A person in less than this share of the frames of another one is not mistaken for that one."""

MAX_EXCHANGED = 0.1
"""Ids that exchange people in more than this share of the frames are not used."""


@dataclass(frozen=True, eq=False)
class FoundPerson:
    """A person in one frame.

    Args:
        frame: Frame, counted from 0.
        joints: x, y in pixels and score of each joint, (J, 3); score 0 where it was not found.
        identity: Id of the person in the file, or None.
    """

    frame: int
    joints: NDArray[np.float64]
    identity: str | None = None

    @property
    def weight(self) -> float:
        """Sum of the scores of the joints."""
        return float(self.joints[:, 2].clip(0).sum())


@dataclass(eq=False)
class _Track:
    """A person in successive frames: at most one `FoundPerson` per frame, ascending."""

    names: list[str]
    found: list[FoundPerson]
    unclear: list[FoundPerson] = field(default_factory=list)
    """Other people with whom this one may have been exchanged."""

    @property
    def name(self) -> str:
        return "+".join(self.names)

    @property
    def last(self) -> FoundPerson:
        return self.found[-1]

    @property
    def weight(self) -> float:
        """Sum of the scores of all joints: how much of the file shows this person.

        It is rounded, so that of people with equal scores the first one is used.
        """
        return round(sum(person.weight for person in self.found), 3)

    def text(self) -> str:
        return f"person {self.name} in {len(self.found)} frames (mean score {self.mean_score:.2f})"

    @property
    def mean_score(self) -> float:
        """Mean score of the joints that are found."""
        return self.weight / max(1, sum((one.joints[:, 2] > 0).sum() for one in self.found))


@dataclass(frozen=True, eq=False)
class ChosenPerson:
    """The person that is read from a file of detections.

    Args:
        found: The person in each frame, ascending, at most once per frame.
        people: Number of people in the file.
        text: Description of the people in the file, and which one is used.
    """

    found: Many[FoundPerson]
    people: int
    text: str


def choose_person(found: Many[FoundPerson], person: str | None, place: str) -> ChosenPerson:
    """Follow the people of a file from frame to frame, and choose one of them.

    People are followed by their ids. If ids are absent, equal within a frame, or exchange people
    from frame to frame, people are followed by their positions. Without a choice of the user, the
    person with the largest sum of scores over all frames is used.

    Args:
        found: All people in all frames; not empty.
        person: Name of the person to use: an id, or a number in the order of appearance if there
            are no ids; several names joined by commas are parts of one person.
        place: Path of the file, for messages.

    Raises:
        DataError: If there is no person of this name, or people without ids come so close that it
            is unclear who is who, and `person` is None.
    """
    frames: dict[int, list[FoundPerson]] = defaultdict(list)
    for one in sorted(found, key=lambda one: one.frame):
        frames[one.frame].append(one)
    alone = all(len(people) == 1 for people in frames.values())
    if _has_useful_ids(frames):
        how, tracks = "ids", _join(_tracks_by_id(frames))
    else:
        how, tracks = "positions", _follow_positions(frames)
        if alone:
            return _only_person(tracks, person, place)
    chosen = _select(tracks, person, place)
    if len(tracks) == 1:
        return ChosenPerson(chosen.found, 1, "1 person")
    unclear = _first_unclear_frame(chosen, tracks)
    if unclear is not None and person is None:
        raise DataError(
            f"{place}: {len(tracks)} people without ids come so close in frame "
            f"{unclear} (counted from 0) that it is unclear who is who; find the joints "
            "again with tracking, so that the file has ids, or set person (--data.person) to one "
            f"of {_list_people(tracks)} to follow it by position all the same"
        )
    text = (
        f"{len(tracks)} people by their {how}: {_list_people(tracks)}, used: person {chosen.name} "
        "(--data.person selects another)"
    )
    return ChosenPerson(chosen.found, len(tracks), text)


@dataclass(frozen=True, eq=False)
class FollowedPerson:
    """A person of a file of detections, followed over its frames.

    Args:
        name: Id in the file, or number in the order of appearance; several ids of one person are
            joined by `+`.
        found: The person in each frame, ascending, at most once per frame.
    """

    name: str
    found: Many[FoundPerson]


def follow_people(found: Many[FoundPerson]) -> tuple[list[FollowedPerson], str]:
    """Follow all people of a file from frame to frame, by ids or by positions; see `choose_person`.

    Args:
        found: All people in all frames.

    Returns:
        The people in the order of appearance, and a phrase about how they were told apart.
    """
    frames: dict[int, list[FoundPerson]] = defaultdict(list)
    for one in sorted(found, key=lambda one: one.frame):
        frames[one.frame].append(one)
    if _has_useful_ids(frames):
        tracks, how = _join(_tracks_by_id(frames)), "people by the ids in the file"
    else:
        tracks = _follow_positions(frames)
        some = any(one.identity is not None for one in found)
        why = "do not tell people apart" if some else "are absent"
        how = f"people by their positions, because ids {why}"
        unclear = sorted({one.frame for track in tracks for one in track.unclear})
        if unclear:
            how += f"; unclear who is who in {len(unclear)} frames, first {unclear[0]}"
    return [FollowedPerson(track.name, track.found) for track in tracks], how


def _only_person(tracks: list[_Track], person: str | None, place: str) -> ChosenPerson:
    """The person of a file that has never two people in a frame, and no ids."""
    found = sorted((one for track in tracks for one in track.found), key=lambda one: one.frame)
    names = [name for track in tracks for name in track.names]
    _select([_Track(names, found)], person, place)
    text = "1 person"
    if len(tracks) > 1:
        jumps = len(tracks) - 1
        text += f", whose position jumps {'once' if jumps == 1 else f'{jumps} times'}"
    return ChosenPerson(found, 1, text)


def _first_unclear_frame(chosen: _Track, tracks: list[_Track]) -> int | None:
    """First frame in which another person, seen often enough, may have been the chosen one."""
    others = {
        id(one)
        for track in tracks
        if len(track.found) >= MIN_OTHER * len(chosen.found)
        for one in track.found
    }
    return next((one.frame for one in chosen.unclear if id(one) in others), None)


def _list_people(tracks: list[_Track]) -> str:
    """The people with the highest weights, in words."""
    ordered = sorted(tracks, key=lambda track: -track.weight)
    more = f" and {len(tracks) - 4} more" if len(tracks) > 4 else ""
    return ", ".join(track.text() for track in ordered[:4]) + more


def _select(tracks: list[_Track], person: str | None, place: str) -> _Track:
    """The track that is used."""
    if person is None:
        return max(tracks, key=lambda track: track.weight)
    wanted = [name.strip() for name in person.split(",")]
    parts = []
    for name in wanted:
        track = next((t for t in tracks if name in (t.name, *t.names)), None)
        if track is None:
            raise DataError(f"{place}: has no person {name}; it has {_list_people(tracks)}")
        if track not in parts:
            parts.append(track)
    found = sorted((one for part in parts for one in part.found), key=lambda one: one.frame)
    twice = [a.frame for a, b in pairwise(found) if a.frame == b.frame]
    if twice:
        raise DataError(
            f"{place}: {person} are in the same frame ({twice[0]}, counted from 0), so they are "
            "not one person; set person to one of them"
        )
    return _Track([name for part in parts for name in part.names], found)


def _has_useful_ids(frames: dict[int, list[FoundPerson]]) -> bool:
    """True if all people have ids, different within a frame, that stay with the same people."""
    for people in frames.values():
        ids = [person.identity for person in people]
        if None in ids or len(set(ids)) < len(ids):
            return False
    steps, exchanged = 0, 0
    for before, after in pairwise(frames):
        if after != before + 1:
            continue
        now = {person.identity: person for person in frames[after]}
        pairs = [
            (person, now[person.identity]) for person in frames[before] if person.identity in now
        ]
        if len(pairs) < 2:
            continue
        distance = _distances([a for a, _ in pairs], [b for _, b in pairs])
        best = distance[scipy.optimize.linear_sum_assignment(distance)].sum()
        steps += 1
        exchanged += 2 * best < distance.trace()
    return exchanged <= MAX_EXCHANGED * steps


def _tracks_by_id(frames: dict[int, list[FoundPerson]]) -> list[_Track]:
    """One track for each id."""
    tracks: dict[str, _Track] = {}
    for people in frames.values():
        for person in people:
            name = str(person.identity)
            if name in tracks:
                tracks[name].found.append(person)
            else:
                tracks[name] = _Track([name], [person])
    return list(tracks.values())


def _join(tracks: list[_Track]) -> list[_Track]:
    """Join tracks of which one begins soon after the end of the other and near to it.

    Trackers give a person a new id after an occlusion.
    """
    joined: list[_Track] = []
    for track in tracks:  # ascending by their first frames
        start = track.found[0]
        ended = [t for t in joined if 0 < start.frame - t.last.frame <= MAX_GAP]
        cost = _distances([t.last for t in ended], [start])[:, 0] if ended else np.empty(0)
        cost /= [_allowed_move(start.frame - t.last.frame) for t in ended]
        if len(cost) and cost.min() < 1:
            before = ended[int(cost.argmin())]
            before.names += track.names
            before.found += track.found
        else:
            joined.append(track)
    return joined


def _follow_positions(frames: dict[int, list[FoundPerson]]) -> list[_Track]:
    """Tracks of people without ids, numbered in the order of appearance."""
    tracks: list[_Track] = []
    for frame, people in frames.items():
        people = _without_repeated(people)
        active = [track for track in tracks if frame - track.last.frame <= MAX_GAP]
        matched: set[int] = set()
        if active:
            distance = _distances([track.last for track in active], people)
            move = [_allowed_move(frame - track.last.frame) for track in active]
            cost = np.minimum(distance / np.array(move)[:, None], 2.0)
            pairs = [
                (a, b)
                for a, b in zip(*scipy.optimize.linear_sum_assignment(cost), strict=True)
                if cost[a, b] < 1
            ]
            for row, column in _unclear_pairs(cost, pairs):
                active[row].unclear.append(people[column])
            for row, other in _competing_rows(cost, pairs):
                active[row].unclear.append(active[other].last)
                active[other].unclear.append(active[row].last)
            for row, column in pairs:
                active[row].found.append(people[column])
            matched = {column for _, column in pairs}
        for column, person in enumerate(people):
            if column not in matched:
                tracks.append(_Track([str(len(tracks) + 1)], [person]))
    return tracks


def _unclear_pairs(
    cost: NDArray[np.float64], pairs: list[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Row and another column that it could be matched with at nearly the same cost."""
    row_of = {column: row for row, column in pairs}
    for row, column in pairs:
        for other in range(cost.shape[1]):
            if other == column or cost[row, other] >= 1:
                continue
            kept, exchanged = cost[row, column], cost[row, other]
            if (partner := row_of.get(other)) is not None:
                kept, exchanged = kept + cost[partner, other], exchanged + cost[partner, column]
            if exchanged < UNCLEAR_RATIO * kept:
                yield row, other


def _competing_rows(
    cost: NDArray[np.float64], pairs: list[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Matched row, and a row without a match that its column would fit nearly as well."""
    matched = {row for row, _ in pairs}
    for row, column in pairs:
        for other in range(len(cost)):
            if other not in matched and cost[other, column] < min(
                1.0, UNCLEAR_RATIO * cost[row, column]
            ):
                yield row, other


def _without_repeated(people: list[FoundPerson]) -> list[FoundPerson]:
    """The people of a frame, the best first, without those who were found twice."""
    ordered = sorted(people, key=lambda person: -person.weight)
    if len(ordered) < 2:
        return ordered
    near = _distances(ordered, ordered) < SAME_PERSON
    kept: list[int] = []
    for index in range(len(ordered)):
        if not near[index, kept].any():
            kept.append(index)
    return [ordered[index] for index in kept]


def _allowed_move(frames: int) -> float:
    """Largest movement in a number of frames, in sizes of the person."""
    return MAX_MOVE * min(frames, MAX_MOVE_FRAMES)


def _distances(one: Many[FoundPerson], other: Many[FoundPerson]) -> NDArray[np.float64]:
    """Mean distance of the joints that both have, in sizes of the person, (N, M).

    People without a common joint are as far apart as the centres of their joints.
    """
    a, b = (np.stack([person.joints for person in people]) for people in (one, other))
    a, b = (np.where(x[..., 2:] > 0, x[..., :2], np.nan) for x in (a, b))
    size = np.maximum(_sizes(a)[:, None], _sizes(b))
    apart = np.linalg.norm(a[:, None] - b, axis=-1)
    common = np.isfinite(apart)
    mean = np.where(common, apart, 0.0).sum(-1) / np.maximum(common.sum(-1), 1)
    centres = np.linalg.norm(np.nanmean(a, axis=1)[:, None] - np.nanmean(b, axis=1), axis=-1)
    return np.where(common.any(-1), mean, centres) / size


def _sizes(joints2d: NDArray[np.float64]) -> NDArray[np.float64]:
    """Larger side of the box around the joints, pixels, (N,)."""
    box = np.nanmax(joints2d, axis=1) - np.nanmin(joints2d, axis=1)
    return np.maximum(box.max(-1), 1e-9)
