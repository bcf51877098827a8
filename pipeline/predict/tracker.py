"""The tracker: people followed by their joints from frame to frame, each with one id."""

from __future__ import annotations

import string
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipeline.predict.estimators import Estimates, Estimator, PersonFinder
from pipeline.predict.media import Frame
from pipeline.predict.square_crops import Floats
from pipeline.predict.tracks import Track
from pipeline.skeleton import Skeleton

VERSION = 2
"""Version of the code here that affects tracks; part of the key of the cache."""

EVERY = 10
"""Frames from one search for new people to the next; people who are lost are searched in each."""

PATIENCE = 1.0
"""Seconds for which a lost person is searched."""

PRESENT = 0.5
"""Presence from which a person counts as found by an estimator that tells it."""

SAME = 0.6
"""Similarity of two poses in one frame from which they are one person."""

MATCH = 0.25
"""Similarity from which a pose in another frame may be a lost person."""

SHORTEST = 0.3
"""Seconds; people who are seen for less are left out, unless the clip itself is shorter, or its
frames are further apart."""

COLOUR_WEIGHT = 0.3
"""Weight of the colour of the clothes against the pose, where a lost person is found again."""


@dataclass(eq=False)
class _Person:
    """A person who is followed."""

    number: int
    crop: Floats
    frames: list[int] = field(default_factory=list)
    joints2d: list[NDArray[np.float32]] = field(default_factory=list)
    score: list[NDArray[np.float32]] = field(default_factory=list)
    velocity: Floats = field(default_factory=lambda: np.zeros(2))
    time: float = 0.0
    colour: NDArray[np.float64] | None = None

    @property
    def pose(self) -> NDArray[np.float32]:
        return self.joints2d[-1]

    def moved(self, time: float) -> Floats:
        """Movement since the last sight, pixels, at a constant velocity."""
        return self.velocity * (time - self.time)


class Tracker:
    """Follows people through the frames of a clip.

    Each person's next crop comes from his joints. Every `EVERY` frames, and while somebody is lost,
    the finder looks for people. Somebody who is lost goes on with his last velocity for `PATIENCE`
    seconds; a person found meanwhile is assigned to him by the overlap of boxes and the similarity
    of poses (OKS), and by the colour of the clothes, with the Hungarian method. Where two crops
    slide onto one person, the one whose path fits worse is lost.

    Args:
        estimator: Estimator of the 2D joints.
        finder: What finds people.
        max_people: Largest number of people who are followed at a time; None for all.
    """

    def __init__(
        self, estimator: Estimator, finder: PersonFinder, *, max_people: int | None = None
    ) -> None:
        self.estimator, self.finder, self.max_people = estimator, finder, max_people
        self._people: list[_Person] = []
        self._active: list[_Person] = []
        self._time = 0.0  # of the frame before

    def settings(self) -> dict[str, Any]:
        """Everything that affects the tracks, as plain types."""
        return {
            "tracker": VERSION,
            "max_people": self.max_people,
            "estimator": self.estimator.digest,
            "settings": self.estimator.settings(),
            "finder": self.finder.settings(),
        }

    def follow(self, frame: Frame) -> list[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
        """Follow everybody into the next frame.

        Args:
            frame: The next frame.

        Returns:
            Number, joints (J, 2) and scores (J,) of each person who is seen in it.
        """
        patience = max(PATIENCE, 1.5 * (frame.time - self._time))
        self._time = frame.time
        self._active = [p for p in self._active if frame.time - p.time <= patience]
        lost = self._follow_known(frame)
        given = getattr(self.finder, "boxes", ())  # frames with boxes of a file
        is_due = frame.index % EVERY == 0 or frame.number in given
        if lost or is_due or not self._active:
            self._search(frame, lost)
        return [
            (p.number, p.pose, p.score[-1]) for p in self._active if p.frames[-1] == frame.index
        ]

    def tracks(self, times: NDArray[np.float64]) -> tuple[Track, ...]:
        """The tracks of everybody who was seen long enough, with ids A, B, … by first appearance.

        Args:
            times: Time of each frame, seconds, (T,).
        """
        span = times[-1] - times[0] if len(times) else 0.0
        step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        shortest = min(SHORTEST, span / 2) if step <= SHORTEST else 0.0
        kept = [p for p in self._people if times[p.frames[-1]] - times[p.frames[0]] >= shortest]
        return tuple(
            Track(letters(n), np.array(p.frames), np.stack(p.joints2d), np.stack(p.score))
            for n, p in enumerate(kept)
        )

    def _follow_known(self, frame: Frame) -> list[_Person]:
        """Estimate the joints in everybody's crop; returns those who are lost."""
        people = self._active
        moved = [np.r_[p.moved(frame.time), 0, 0] if p.frames[-1] < frame.index - 1 else np.zeros(4)
                 for p in people]  # fmt: skip
        crops = np.array([p.crop + m for p, m in zip(people, moved, strict=True)]).reshape(-1, 4)
        found = self.estimator.estimate(frame.image, crops)
        skeleton = self.estimator.skeleton
        fits = np.array(
            [
                pose_similarity(p.pose + p.moved(frame.time), found.joints2d[i], skeleton)
                for i, p in enumerate(people)
            ]
        )
        seen = self._is_person(found) & (fits >= MATCH / 2)
        alike = similarities(found.joints2d, found.joints2d, skeleton)
        for i in np.argsort(-fits):  # the person whose path fits best keeps the pose
            if seen[i]:
                rivals = (alike[i] > SAME) & (np.arange(len(people)) != i)
                seen[rivals & ((fits < fits[i]) | (np.arange(len(people)) > i))] = False
        for i, person in enumerate(people):
            if seen[i]:
                self._add(person, frame, found[i])
        return [person for i, person in enumerate(people) if not seen[i]]

    def _search(self, frame: Frame, lost: list[_Person]) -> None:
        """Look for people; find those who are lost, and new ones."""
        crops = self.finder.find(frame.image, frame.number, self.estimator)
        found = self.estimator.estimate(frame.image, crops)
        found = found[self._is_person(found)]
        found = found[self._unknown(found, frame)]
        rows, columns = self._assign(lost, found, frame)
        for row, column in zip(rows, columns, strict=True):
            self._add(lost[row], frame, found[column])
        free = None if self.max_people is None else self.max_people - len(self._active)
        for column in [c for c in range(len(found.score)) if c not in columns][:free]:
            person = _Person(len(self._people), found.next_crops[column])
            self._people.append(person)
            self._active.append(person)
            self._add(person, frame, found[column])

    def _is_person(self, found: Estimates) -> NDArray[np.bool_]:
        """Which estimates show a person in the image, (N,)."""
        sides = found.next_crops[:, 2]
        return (
            (found.presence >= PRESENT * (1 if self._has_presence else 0.5))
            & np.isfinite(found.joints2d).all((1, 2))
            & (sides >= 16)
        )

    @property
    def _has_presence(self) -> bool:
        """Whether the presence is a probability of its own, not a mean of the joints' scores."""
        return bool(self.estimator.settings().get("presence", True))

    def _unknown(self, found: Estimates, frame: Frame) -> NDArray[np.intp]:
        """Rows of estimates who are not followed already, each person once."""
        skeleton = self.estimator.skeleton
        known = [p.pose for p in self._active if p.frames[-1] == frame.index]
        kept: list[int] = []
        for row in range(len(found.score)):
            others = [*known, *(found.joints2d[k] for k in kept)]
            pose = found.joints2d[row]
            if all(pose_similarity(other, pose, skeleton) <= SAME for other in others):
                kept.append(row)
        return np.array(kept, np.intp)

    def _assign(
        self, lost: list[_Person], found: Estimates, frame: Frame
    ) -> tuple[list[int], list[int]]:
        """Lost people and the estimates that show them, as two lists of the same length."""
        if not lost or not len(found.score):
            return [], []
        skeleton = self.estimator.skeleton
        expected = np.stack([p.pose + p.moved(frame.time) for p in lost])
        alike = 0.5 * similarities(expected, found.joints2d, skeleton)
        alike += 0.5 * box_overlaps(expected, found.joints2d)
        colours = [torso_colour(frame.image, pose, skeleton) for pose in found.joints2d]
        for i, person in enumerate(lost):
            waited = min(1.0, (frame.time - person.time) / PATIENCE)
            near = _distance(expected[i], found.joints2d)
            alike[i] = np.maximum(alike[i], 0.5 * waited * np.exp(-(near**2)))
            for k, colour in enumerate(colours):
                if person.colour is not None and colour is not None:
                    apart = np.linalg.norm(person.colour - colour) / 60
                    alike[i, k] += COLOUR_WEIGHT * (0.5 - min(1.0, float(apart)))
        rows, columns = linear_sum_assignment(-alike)
        good = alike[rows, columns] >= MATCH
        return rows[good].tolist(), columns[good].tolist()

    def _add(self, person: _Person, frame: Frame, found: Estimates) -> None:
        """Add the pose of a frame to a person."""
        middle = _middle(found.joints2d, self.estimator.skeleton)
        if person.frames:
            step = frame.time - person.time
            velocity = (middle - _middle(person.pose, self.estimator.skeleton)) / max(step, 1e-3)
            share = 1 - np.exp(-step / 0.15)
            person.velocity = share * velocity + (1 - share) * person.velocity
        person.crop, person.time = found.next_crops, frame.time
        person.frames.append(frame.index)
        person.joints2d.append(found.joints2d)
        person.score.append(found.score)
        if len(person.frames) % EVERY == 1:
            colour = torso_colour(frame.image, found.joints2d, self.estimator.skeleton)
            if colour is not None:
                old = person.colour
                person.colour = colour if old is None else 0.7 * old + 0.3 * colour


def letters(number: int) -> str:
    """Id of a person: A to Z, then AA, AB, ….

    >>> letters(0), letters(25), letters(26), letters(53)
    ('A', 'Z', 'AA', 'BB')
    """
    text = ""
    while number >= 0:
        text = string.ascii_uppercase[number % 26] + text
        number = number // 26 - 1
    return text


def pose_similarity(
    first: NDArray[np.floating], second: NDArray[np.floating], skeleton: Skeleton
) -> float:
    """OKS of two poses with one falloff for all joints: 1 for equal ones, 0 for distant ones.

    A joint counts exp(-d²/2) for a distance of d tenths of the person's size.

    Args:
        first: Pixels, (J, 2).
        second: Pixels, (J, 2).
        skeleton: Joint set of both.
    """
    return float(similarities(first[None], second[None], skeleton)[0, 0])


def similarities(
    first: NDArray[np.floating], second: NDArray[np.floating], skeleton: Skeleton
) -> NDArray[np.float64]:
    """`pose_similarity` of all pairs, (N, J, 2) and (M, J, 2) -> (N, M)."""
    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)))
    body = [i for i, name in enumerate(skeleton.joints) if not _is_detail(name)]
    a, b = first[:, body].astype(np.float64), second[:, body].astype(np.float64)
    size = np.maximum(_sizes(a)[:, None], _sizes(b)[None])
    apart = np.linalg.norm(a[:, None] - b[None], axis=-1) / (0.1 * size[..., None])
    return np.asarray(np.exp(-(apart**2) / 2).mean(-1))


def _is_detail(name: str) -> bool:
    """Whether a joint belongs to the face, a hand or a foot, whose joints lie close together."""
    parts = ("eye", "ear", "mouth", "pinky", "index", "thumb", "heel", "toe")
    return any(part in name for part in parts)


def _sizes(joints2d: NDArray[np.float64]) -> NDArray[np.float64]:
    """Larger side of the box around the joints, pixels, (N,)."""
    extent = joints2d.max(axis=1) - joints2d.min(axis=1)
    return np.maximum(extent.max(-1), 1.0)


def box_overlaps(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Intersection over union of the boxes around poses, (N, J, 2) and (M, J, 2) -> (N, M)."""
    low_a, high_a = first.min(axis=1)[:, None], first.max(axis=1)[:, None]
    low_b, high_b = second.min(axis=1)[None], second.max(axis=1)[None]
    inside = np.prod(np.maximum(np.minimum(high_a, high_b) - np.maximum(low_a, low_b), 0), -1)
    whole = np.prod(high_a - low_a, -1) + np.prod(high_b - low_b, -1) - inside
    return np.asarray(inside / np.maximum(whole, 1e-9), np.float64)


def _distance(pose: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """Distance of the middles of a pose and of others, in sizes of the person, (M,)."""
    apart = np.linalg.norm(others.mean(axis=1) - pose.mean(axis=0), axis=-1)
    return np.asarray(apart / _sizes(pose[None].astype(np.float64))[0])


def _middle(joints2d: NDArray[np.floating], skeleton: Skeleton) -> NDArray[np.float64]:
    """Middle of the torso, pixels, (2,)."""
    return joints2d[_torso(skeleton)].mean(axis=0).astype(np.float64)


def _torso(skeleton: Skeleton) -> list[int]:
    """Indices of shoulders and hips."""
    names = skeleton.vocabulary
    return [names[f"{side}_{part}"] for part in ("shoulder", "hip") for side in ("left", "right")]


def torso_colour(
    image: NDArray[np.uint8], joints2d: NDArray[np.floating], skeleton: Skeleton
) -> NDArray[np.float64] | None:
    """Median colour of the torso, in units of CIELAB, (3,); None where it is outside of the image.

    Args:
        image: RGB, uint8, (H, W, 3).
        joints2d: Pixels, (J, 2).
        skeleton: Joint set of `joints2d`.
    """
    torso = joints2d[_torso(skeleton)]
    middle, half = torso.mean(axis=0), 0.35 * (torso.max(axis=0) - torso.min(axis=0))
    low = np.maximum(np.round(middle - half), 0).astype(int)
    high = np.minimum(np.round(middle + half) + 1, image.shape[1::-1]).astype(int)
    if (high - low < 2).any():
        return None
    patch = image[low[1] : high[1], low[0] : high[0]]
    step = max(1, int(min(patch.shape[:2]) // 8))
    lab = cv2.cvtColor(np.ascontiguousarray(patch[::step, ::step]), cv2.COLOR_RGB2LAB)
    return np.median(lab.reshape(-1, 3), axis=0).astype(np.float64)


def follow_frames(tracker: Tracker, frames: Iterable[Frame]) -> NDArray[np.float64]:
    """Follow everybody through all frames; returns the times of the frames, seconds, (T,)."""
    times = []
    for frame in frames:
        tracker.follow(frame)
        times.append(frame.time)
    return np.array(times)
