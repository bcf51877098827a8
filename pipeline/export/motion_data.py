"""MotionData: the numbers of a motion: people, times, camera, facts; what every writer takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.export.frames import Frame
from pipeline.skeleton import Skeleton
from pipeline.sources import true_runs

MISSING, SEEN, FILLED = 0, 1, 2
"""Status of a frame of a person: not there, found in the image, or filled in between two such."""

PERSON_COLOURS: tuple[tuple[int, int, int], ...] = (
    (213, 94, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
)
"""Colours of the people in their order, RGB: those of Okabe and Ito (2008), which can be told apart
with every common colour blindness."""


@dataclass(frozen=True, eq=False)
class PersonMotion:
    """Motion of one person over all frames of a clip.

    Args:
        id: Id of the person: `A`, `B`, … in the order of the people in the output.
        joints3d: Joints relative to the root joint, metres, (T, J, 3), float32; NaN where missing.
        root: Position of the root joint, metres, (T, 3), float32; NaN where missing.
        joints2d: 2D joints that were lifted, pixels of the upright image, (T, J, 2), float32; NaN
            where missing.
        score: Score of each 2D joint, 0 to 1, (T, J), float32; 0 where missing.
        status: `MISSING`, `SEEN` or `FILLED` for each frame, (T,), uint8.
        height: Height of the person that fixes the scale, metres.
    """

    id: str
    joints3d: NDArray[np.float32]
    root: NDArray[np.float32]
    joints2d: NDArray[np.float32]
    score: NDArray[np.float32]
    status: NDArray[np.uint8]
    height: float

    @property
    def positions(self) -> NDArray[np.float32]:
        """Joints in the frame of reference of the motion, metres, (T, J, 3)."""
        return self.joints3d + self.root[:, None]

    @property
    def present(self) -> NDArray[np.bool_]:
        """Frames in which the person was seen or filled in, (T,)."""
        return self.status != MISSING

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First and last frame of each uninterrupted part, in order.

        >>> still = np.zeros((5, 1, 3), np.float32)
        >>> status = np.array([1, 2, 0, 1, 1], np.uint8)
        >>> PersonMotion("A", still, still[:, 0], still[..., :2], still[..., 0], status, 1.7).spans
        [(0, 1), (3, 4)]
        """
        return [(run.start, run.stop - 1) for run in true_runs(self.present)]

    @property
    def mean_score(self) -> float:
        """Mean score of the 2D joints over the frames in which the person was seen; 0 if none."""
        seen = self.score[self.status == SEEN]
        return float(seen.mean()) if seen.size else 0.0


@dataclass(frozen=True, eq=False)
class MotionData:
    """3D motion of all people in a clip: what `predict` returns and every file is written from.

    Args:
        people: Motion of each person; may be empty.
        skeleton: Joint set of all people.
        times: Time of each frame, seconds from the start of the source, (T,), float64, increasing.
        fps: Frames per second; the mean rate where the times are not regular.
        size: Width and height of the upright image in pixels.
        focal: Focal length in pixels.
        principal: Principal point in pixels, x and y.
        frame: Frame of reference of `root` and `joints3d`.
        camera_rotation: Rotation from the frame of reference to the camera, (3, 3), float64.
        camera_centre: Position of the camera in the frame of reference, metres, (3,), float64.
        facts: Everything else that explains the numbers, as plain values: `source` (name, kind,
            digest, rotation applied), `root` (how its position was found), `assumptions`
            (sentences), `warnings` (sentences), `weights` (of each network: name, digest, licence),
            `versions`, `command`, `smoothing`, `quality`.
    """

    people: tuple[PersonMotion, ...]
    skeleton: Skeleton
    times: NDArray[np.float64]
    fps: float
    size: tuple[int, int]
    focal: float
    principal: tuple[float, float]
    frame: Frame = "camera"
    camera_rotation: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))
    camera_centre: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        T, J = len(self.times), len(self.skeleton)
        shapes = {"joints3d": (T, J, 3), "root": (T, 3), "joints2d": (T, J, 2), "score": (T, J)}
        for person in self.people:
            for name, shape in {**shapes, "status": (T,)}.items():
                if getattr(person, name).shape != shape:
                    found = getattr(person, name).shape
                    raise ValueError(f"person {person.id}: {name} is {found}, expected {shape}")
                if np.isinf(getattr(person, name)).any():
                    raise ValueError(f"person {person.id}: {name} has infinite numbers")
            if (person.status > FILLED).any():
                raise ValueError(f"person {person.id}: a status is above {FILLED}")
            if not 0 < person.height < math.inf:
                raise ValueError(f"person {person.id}: height is {person.height:g}")
        if len({person.id for person in self.people}) != len(self.people):
            raise ValueError("two people have the same id")
        for name in ("fps", "focal"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name):g}")
        if min(self.size) < 1:
            raise ValueError(f"size is {self.size[0]} x {self.size[1]}")
        camera = {"principal": (2,), "camera_rotation": (3, 3), "camera_centre": (3,)}
        for name, shape in camera.items():
            value = np.asarray(getattr(self, name))
            if value.shape != shape or not np.isfinite(value).all():
                raise ValueError(f"{name} is not finite, or no array {shape}")
        if not (np.isfinite(self.times).all() and (np.diff(self.times) > 0).all()):
            raise ValueError("the times of the frames do not increase")

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.times)

    def person(self, identity: str) -> PersonMotion:
        """The person with this id.

        Raises:
            UsageError: If there is none.
        """
        for person in self.people:
            if person.id == identity:
                return person
        known = ", ".join(person.id for person in self.people) or "nobody"
        raise UsageError(f"there is no person {identity!r}; there is {known}")
