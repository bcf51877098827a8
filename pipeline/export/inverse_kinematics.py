"""Inverse kinematics: the rotations of a body with constant bones that follow a motion's joints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.export.motion_data import MotionData, PersonMotion


@dataclass(frozen=True, eq=False)
class BodyMotion:
    """Motion of one person as rotations of a body with constant bones, y up.

    Convention:
        The rest pose is a T-pose that faces +Z, with the person's left at +X; all its rotations are
        identity. A joint is at its parent's position + the parent's rotation @ offset.

    Args:
        joints: Names of the joints, parents before children, the root first.
        parents: Index of each joint's parent, -1 for the root.
        offsets: Offset of each joint from its parent in the rest pose, metres, (B, 3); for the root
            its position at rest, the hips at standing height above y = 0.
        ends: Joint -> offset of its end site in its own frame, metres, (3,).
        root: Position of the root, metres, (T, 3).
        rotations: Rotations relative to the parent, unit quaternions w, x, y, z, (T, B, 4); their
            sign is continuous over time.
        error: Distance of the fitted joints from those of the motion, metres, (T, J), with the
            joints of H36M17; NaN where one is missing.
    """

    joints: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: NDArray[np.float64]
    ends: Mapping[int, NDArray[np.float64]]
    root: NDArray[np.float64]
    rotations: NDArray[np.float64]
    error: NDArray[np.float64]


def fit_body(
    motion: MotionData, person: PersonMotion, *, height: float | None = None
) -> BodyMotion:
    """Rotations of a body with constant bones that follow the joints of a person, y up.

    Args:
        motion: The motion.
        person: One of its people.
        height: Height that gives the length of bones that are never seen, metres; that of the
            person by default.
    """
    raise NotImplementedError


def forward_positions(body: BodyMotion) -> NDArray[np.float64]:
    """Positions of all joints of a body in each frame, metres, y up, (T, B, 3)."""
    raise NotImplementedError
