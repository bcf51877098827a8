"""A person whom the tracker follows: the sights so far, which of them are certain, the velocity."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.predict.media import Frame
from pipeline.predict.square_crops import Floats

STEADY = 0.2
"""Seconds for which somebody near others must be seen without a break, until that is certain."""

SPAN = 0.5
"""Seconds over which a velocity is measured."""


@dataclass(frozen=True, eq=False)
class Sight:
    """A person in a frame: the estimates of one row, and the middle of the torso in pixels."""

    index: int
    time: float
    joints2d: NDArray[np.float32]
    score: NDArray[np.float32]
    crop: Floats
    middle: NDArray[np.float64]


@dataclass(eq=False)
class Person:
    """A person who is followed; the first `certain` sights are certain."""

    number: int
    sights: list[Sight] = field(default_factory=list)
    certain: int = 0
    velocity: Floats = field(default_factory=lambda: np.zeros(2))
    colour: NDArray[np.float64] | None = None
    _since: float = 0.0  # the time from which there is no break

    @property
    def last(self) -> Sight:
        """The last sight; there is always one, except while the person is made."""
        return self.sights[-1]

    def is_seen(self, frame: Frame) -> bool:
        """Whether the person is seen in this frame, the newest one."""
        return self.last.index == frame.index

    def moved(self, time: float) -> Floats:
        """Movement since the last sight, pixels, at a constant velocity."""
        return self.velocity * (time - self.last.time)

    def expected(self, time: float) -> NDArray[np.float64]:
        """The pose that is expected at a time, pixels, (J, 2)."""
        return self.last.joints2d + self.moved(time)

    def add(self, sight: Sight, step: float, *, is_alone: bool) -> None:
        """Add a sight; `step` is the time since the frame before, seconds."""
        if not self.sights or self.last.index < sight.index - 1:
            self._since = sight.time
        self.sights.append(sight)
        if is_alone or sight.time - self._since + step >= STEADY:
            self.certain = len(self.sights)
        self._measure_velocity()

    def go_back(self) -> None:
        """Forget the sights after the last certain one, if there is one."""
        if 0 < self.certain < len(self.sights):
            del self.sights[self.certain :]
            self._measure_velocity()

    def certain_sights(self, step: float) -> list[Sight]:
        """The sights of the track: without those at its end that are not certain.

        Somebody who was lost and is then seen for less than STEADY seconds, for the last time, is
        mostly a piece at the edge of the image, or somebody else.

        Args:
            step: Time from one frame to the next, seconds.
        """
        kept = self.sights[: self.certain or None]
        end = len(kept)
        for start in range(end - 1, -1, -1):
            if start == 0 or kept[start].index > kept[start - 1].index + 1:  # a run begins
                if kept[end - 1].time - kept[start].time + step >= STEADY:
                    return kept[:end]
                end = start
        return kept

    def _measure_velocity(self) -> None:
        """Measure the velocity of the torso over the last SPAN seconds."""
        path = [sight for sight in self.sights[-100:] if sight.time >= self.last.time - SPAN]
        if len(path) < 2:
            path = self.sights[-2:]
        times = np.array([sight.time for sight in path])
        self.velocity = theil_sen(times, np.stack([sight.middle for sight in path]))


def theil_sen(times: NDArray[np.float64], places: NDArray[np.floating]) -> NDArray[np.float64]:
    """Velocity as the median slope of all pairs of sights, which some wrong places do not change.

    Args:
        times: Seconds, increasing, (N,).
        places: Pixels, (N, 2).

    Returns:
        Pixels per second, (2,); 0 for a single sight.
    """
    i, k = np.triu_indices(len(times), 1)
    if not len(i):
        return np.zeros(2)
    steps = np.maximum(times[k] - times[i], 1e-3)
    return np.asarray(np.median((places[k] - places[i]) / steps[:, None], axis=0), np.float64)
