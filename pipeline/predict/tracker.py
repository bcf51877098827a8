"""The tracker: people followed by their joints from frame to frame, each with one id."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipeline.predict.estimators import Estimates, Estimator, PersonFinder
from pipeline.predict.likeness import (
    colour_distances,
    distances,
    pose_overlaps,
    similarities,
    torso_colour,
    torso_middles,
)
from pipeline.predict.media import Frame
from pipeline.predict.sights import Person, Sight
from pipeline.predict.tracks import Track

VERSION = 3
"""Version of the code here that affects tracks; part of the key of the cache."""

EVERY = 10
"""Frames from one search for new people to the next; people who are lost are searched in each."""

PATIENCE = 1.0
"""Seconds for which a lost person is searched."""

PRESENT = 0.5
"""Presence from which a person counts as found by an estimator that tells it."""

SAME = 0.6
"""Similarity of two poses in one frame from which they are one person."""

FOLLOW = 0.125
"""Similarity to the expected pose from which a pose in the next frame may be the same person."""

MATCH = 0.25
"""Similarity from which a pose in another frame may be a lost person."""

NOISE, ACCELERATION, WALK = 0.08, 16.0, 0.5
"""How far a torso can be from where its velocity leads, where another person is near, in sizes of
the person: NOISE, and ACCELERATION·t² from one frame to the next (30 m/s² for 1.8 m) or WALK·t for
somebody who was lost for t seconds (0.9 m/s), whichever is larger."""

SHORTEST = 0.3
"""Seconds; people who are seen for less are left out, unless the clip itself is shorter, or its
frames are further apart."""

COLOUR_WEIGHT = 0.3
"""Weight of the colour of the clothes against the pose, where there are several people."""

COLOUR_MARGIN = 15.0
"""By how much clothes must look more like those of another person near, in units of CIELAB, so that
a pose is not given to somebody."""


class Tracker:
    """Follows people through the frames of a clip.

    Each person's next crop comes from his joints. Every `EVERY` frames, and while somebody is lost,
    the finder looks for people. Somebody who is lost goes on with his last velocity for `PATIENCE`
    seconds; a person found meanwhile is assigned to him by the overlap of boxes and the similarity
    of poses (OKS), and by the colour of the clothes, with the Hungarian method.

    Where people are near each other, a pose is given to the person whose path and clothes fit best,
    whosever crop it was found in, and to nobody whose torso cannot be there or whose clothes look
    like those of another one. Somebody who is found
    there and lost again before `sights.STEADY` seconds was probably a mixture of two people: these
    sights are forgotten, so that they do not change the velocity.

    Args:
        estimator: Estimator of the 2D joints.
        finder: What finds people.
        max_people: Largest number of people who are followed at a time; None for all.
    """

    def __init__(
        self, estimator: Estimator, finder: PersonFinder, *, max_people: int | None = None
    ) -> None:
        self.estimator, self.finder, self.max_people = estimator, finder, max_people
        self._people: list[Person] = []
        self._active: list[Person] = []
        self._time: float | None = None  # of the frame before
        self._step = 0.0  # from the frame before to this one

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
        self._step = 0.0 if self._time is None else frame.time - self._time
        self._time = frame.time
        patience = max(PATIENCE, 1.5 * self._step)
        self._active = [p for p in self._active if frame.time - p.last.time <= patience]
        lost = self._follow_known(frame)
        for person in lost:
            person.go_back()
        given = getattr(self.finder, "boxes", ())  # frames with boxes of a file
        is_due = frame.index % EVERY == 0 or frame.number in given
        if lost or is_due or not self._active:
            self._search(frame, lost)
        seen = [p for p in self._active if p.is_seen(frame)]
        self._active = [p for p in self._active if p.certain or p in seen]
        return [(p.number, p.last.joints2d, p.last.score) for p in seen]

    def tracks(self, times: NDArray[np.float64]) -> tuple[Track, ...]:
        """The tracks of everybody who was seen long enough, with ids A, B, … by first appearance.

        Args:
            times: Time of each frame, seconds, (T,).
        """
        span = times[-1] - times[0] if len(times) else 0.0
        step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        shortest = min(SHORTEST, span / 2) if step <= SHORTEST else 0.0
        certain = [p.certain_sights(step) for p in self._people]
        kept = [sights for sights in certain if sights[-1].time - sights[0].time >= shortest]
        return tuple(
            Track(
                letters(n),
                np.array([sight.index for sight in sights]),
                np.stack([sight.joints2d for sight in sights]),
                np.stack([sight.score for sight in sights]),
            )
            for n, sights in enumerate(kept)
        )

    def _follow_known(self, frame: Frame) -> list[Person]:
        """Estimate the joints in everybody's crop; returns those who are lost."""
        people = self._active
        if not people:
            return []
        crops = np.stack([p.last.crop for p in people])
        for crop, person in zip(crops, people, strict=True):
            if person.last.index < frame.index - 1:
                crop[:2] += person.moved(frame.time)
        found = self.estimator.estimate(frame.image, crops)
        expected = np.stack([p.expected(frame.time) for p in people])
        fits = similarities(expected, found.joints2d, self.estimator.skeleton)
        colours_apart = self._colours_apart(found, frame)
        fits_with_colour = fits + colour_fits(colours_apart)
        possible = shows_people(found, self.estimator) & (
            np.minimum(fits, fits_with_colour) >= FOLLOW
        )
        possible &= self._may_be(people, found, colours_apart, frame)
        alike = similarities(found.joints2d, found.joints2d, self.estimator.skeleton) > SAME
        lost = list(people)
        while possible.any():  # the person who fits best gets the pose
            best = np.argmax(np.where(possible, fits_with_colour, -np.inf))
            i, k = (int(n) for n in np.unravel_index(best, possible.shape))
            if alike[i, k] and possible[i, i]:
                k = i  # the person's own crop shows the same
            self._add(people[i], frame, found[k])
            lost.remove(people[i])
            possible[i] = False
            possible[:, alike[k]] = possible[:, k] = False
        return lost

    def _colours_apart(self, found: Estimates, frame: Frame) -> NDArray[np.float64]:
        """Distances of the colours of everybody's clothes from those of estimates, (A, M).

        NaN where one is not known, or there is only one person.
        """
        if len(self._active) < 2:
            return np.full((len(self._active), len(found.score)), np.nan)
        skeleton = self.estimator.skeleton
        colours = [torso_colour(frame.image, pose, skeleton) for pose in found.joints2d]
        return colour_distances([p.colour for p in self._active], colours)

    def _may_be(
        self,
        people: list[Person],
        found: Estimates,
        colours_apart: NDArray[np.float64],
        frame: Frame,
    ) -> NDArray[np.bool_]:
        """Which estimates can be whom, (N, M): by place and clothes where somebody is near."""
        everybody = np.stack([p.expected(frame.time) for p in self._active])
        rivals = np.where(pose_overlaps(everybody, found.joints2d) > 0, colours_apart, np.nan)
        apart = distances(everybody, found.joints2d, self.estimator.skeleton)
        possible = np.ones((len(people), len(found.score)), bool)
        for row, person in enumerate(people):
            i = self._active.index(person)
            if self._is_alone(person, everybody[i], frame):
                continue
            waited = frame.time - person.last.time
            reach = NOISE + max(ACCELERATION * self._step**2, WALK * waited)
            others = np.fmin.reduce(np.delete(rivals, i, axis=0), axis=0)
            possible[row] = (apart[i] <= reach) & ~(colours_apart[i] - others > COLOUR_MARGIN)
        return possible

    def _is_alone(self, person: Person, pose: NDArray[np.floating], frame: Frame) -> bool:
        """Whether nobody else is expected where the box of a pose is."""
        others = [p.expected(frame.time) for p in self._active if p is not person and p.sights]
        return not others or not pose_overlaps(pose[None], np.stack(others)).any()

    def _search(self, frame: Frame, lost: list[Person]) -> None:
        """Look for people; find those who are lost, and new ones."""
        crops = self.finder.find(frame.image, frame.number, self.estimator)
        found = self.estimator.estimate(frame.image, crops)
        found = found[shows_people(found, self.estimator)]
        found = found[self._unknown(found, frame)]
        rows, columns = self._assign(lost, found, frame)
        for row, column in zip(rows, columns, strict=True):
            self._add(lost[row], frame, found[column])
        free = None if self.max_people is None else self.max_people - len(self._active)
        for column in [c for c in range(len(found.score)) if c not in columns][:free]:
            person = Person(len(self._people))
            self._people.append(person)
            self._active.append(person)
            self._add(person, frame, found[column])

    def _unknown(self, found: Estimates, frame: Frame) -> NDArray[np.intp]:
        """Rows of estimates who are not followed already, each person once."""
        known = [p.last.joints2d for p in self._active if p.is_seen(frame)]
        kept: list[int] = []
        for row, pose in enumerate(found.joints2d):
            others = [*known, *(found.joints2d[k] for k in kept)]
            if (
                not others
                or similarities(np.stack(others), pose[None], self.estimator.skeleton).max() <= SAME
            ):
                kept.append(row)
        return np.array(kept, np.intp)

    def _assign(
        self, lost: list[Person], found: Estimates, frame: Frame
    ) -> tuple[list[int], list[int]]:
        """Lost people and the estimates that show them, as two lists of the same length."""
        if not lost or not len(found.score):
            return [], []
        skeleton = self.estimator.skeleton
        expected = np.stack([p.expected(frame.time) for p in lost])
        alike = 0.5 * similarities(expected, found.joints2d, skeleton)
        alike += 0.5 * pose_overlaps(expected, found.joints2d)
        waited = np.array([min(1.0, (frame.time - p.last.time) / PATIENCE) for p in lost])
        apart = distances(expected, found.joints2d, skeleton)
        alike = np.maximum(alike, 0.5 * waited[:, None] * np.exp(-(apart**2)))
        colours_apart = self._colours_apart(found, frame)
        alike += colour_fits(colours_apart[[self._active.index(p) for p in lost]])
        alike[~self._may_be(lost, found, colours_apart, frame)] = 0.0
        rows, columns = linear_sum_assignment(-alike)
        good = alike[rows, columns] >= MATCH
        return rows[good].tolist(), columns[good].tolist()

    def _add(self, person: Person, frame: Frame, found: Estimates) -> None:
        """Add the pose of a frame to a person."""
        skeleton = self.estimator.skeleton
        middle = torso_middles(found.joints2d[None], skeleton)[0]
        sight = Sight(
            frame.index, frame.time, found.joints2d, found.score, found.next_crops, middle
        )
        is_alone = self._is_alone(person, found.joints2d, frame)
        person.add(sight, self._step, is_alone=is_alone)
        if person.colour is None or (is_alone and len(person.sights) % EVERY == 1):
            colour = torso_colour(frame.image, found.joints2d, skeleton)
            if colour is not None:
                old = person.colour
                person.colour = colour if old is None else 0.7 * old + 0.3 * colour


def colour_fits(colours_apart: NDArray[np.float64]) -> NDArray[np.float64]:
    """How well clothes agree, ± COLOUR_WEIGHT / 2, from their distances; 0 for NaN."""
    return np.asarray(COLOUR_WEIGHT * np.nan_to_num(0.5 - np.minimum(1, colours_apart / 60)))


def shows_people(found: Estimates, estimator: Estimator) -> NDArray[np.bool_]:
    """Which estimates show a person in the image, (N,).

    An estimator whose presence is no probability of its own, but the mean of the joints' scores,
    needs half of `PRESENT`.
    """
    lowest = PRESENT if estimator.settings().get("presence", True) else PRESENT / 2
    return np.asarray(
        (found.presence >= lowest)
        & np.isfinite(found.joints2d).all((1, 2))
        & (found.next_crops[:, 2] >= 16)
    )


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
