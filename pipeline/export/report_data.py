"""Numbers of a motion for the scripts of its page: plain values, with arrays as text in base64."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.export.measures import (
    TO_UPRIGHT,
    find_contacts,
    horizontal_speed,
    joint_angles,
    true_spans,
    unsure_frames,
)
from pipeline.export.motion_data import PERSON_COLOURS, MotionData, PersonMotion

NO_INT16, NO_INT32 = -(2**15), -(2**31)
"""Stand for a missing number in the data of the page."""

ANGLE_STEP, SPEED_STEP, POSITION_STEP = 0.1, 0.001, 0.001
"""Units of the numbers in the page: degrees, metres per second, metres."""

STEPS_2D = 16_000
"""Number of steps of a 2D coordinate along the longer side of the image."""

FOOT_HEIGHT = 0.08
"""Height of an ankle above the floor, metres; only to draw the floor of the camera frame."""


def page_data(motion: MotionData) -> dict[str, Any]:
    """What the scripts of the page draw, as plain values: arrays are text in base64.

    Positions are millimetres in the motion's frame of reference: `joints3d` relative to the root
    (int16), `root` (int32). 2D joints are in steps of `step2d` pixels (int16), scores in 1/255
    (uint8), angles in 0.1 degrees and speeds in mm/s (int16). `times` are float64.
    """
    step2d = max(motion.size) / STEPS_2D
    upright = TO_UPRIGHT[motion.frame]
    return {
        "frames": len(motion),
        "times": _base64(motion.times - (motion.times[0] if len(motion) else 0), "<f8"),
        "fps": motion.fps,
        "size": list(motion.size),
        "step2d": step2d,
        "joints": list(motion.skeleton.joints),
        "parents": list(motion.skeleton.parents),
        "left": list(motion.skeleton.left),
        "upright": upright.tolist(),
        "floor": _floor(motion),
        "camera": _finite_list(upright @ motion.camera_centre),
        "people": [
            _person_data(motion, person, PERSON_COLOURS[i % len(PERSON_COLOURS)], step2d)
            for i, person in enumerate(motion.people)
        ],
        "video": None,
    }


def _person_data(
    motion: MotionData, person: PersonMotion, colour: tuple[int, int, int], step2d: float
) -> dict[str, Any]:
    """The entry of a person in the data of the page."""
    upright = person.positions.astype(np.float64) @ TO_UPRIGHT[motion.frame].T
    speed = horizontal_speed(upright[:, motion.skeleton.root], motion.times, person)
    angles = joint_angles(person.joints3d, motion.skeleton)
    return {
        "id": person.id,
        "colour": list(colour),
        "joints3d": _steps(person.joints3d, POSITION_STEP),
        "root": _steps(person.root, POSITION_STEP, wide=True),
        "joints2d": _steps(person.joints2d, step2d),
        "score": _base64(np.round(255 * np.clip(np.nan_to_num(person.score), 0, 1)), "u1"),
        "status": _base64(person.status, "u1"),
        "unsure": true_spans(unsure_frames(person)),
        "angles": {name: _steps(values, ANGLE_STEP) for name, values in angles.items()},
        "speed": _steps(speed, SPEED_STEP),
        "contacts": [
            [contact.side, contact.first, contact.last, round(1000 * contact.slide)]
            for contact in find_contacts(person, motion)
        ],
    }


def _steps(values: NDArray[np.floating], step: float, *, wide: bool = False) -> str:
    """Numbers in multiples of a step as int16 or int32 in base64; missing ones are the lowest."""
    missing = NO_INT32 if wide else NO_INT16
    number = np.asarray(values, np.float64) / step
    limit = -missing - 1
    whole = np.where(np.isfinite(number), np.clip(np.round(number), -limit, limit), missing)
    return _base64(whole, "<i4" if wide else "<i2")


def _base64(values: NDArray[Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values.astype(kind)).tobytes()).decode()


def _finite_list(values: NDArray[np.floating]) -> list[float]:
    return [float(x) for x in np.nan_to_num(values)]


def _floor(motion: MotionData) -> float:
    """Height of the floor in the upright frame, metres: 0 in a world, else under the feet."""
    if motion.frame == "world":
        return 0.0
    joints = motion.skeleton.joints
    feet = [joints.index(name) for name in ("left_ankle", "right_ankle") if name in joints]
    up = TO_UPRIGHT[motion.frame][2]
    heights = [p.positions[:, feet or slice(None)].astype(np.float64) @ up for p in motion.people]
    known = np.concatenate([h.ravel() for h in heights]) if heights else np.zeros(0)
    known = known[np.isfinite(known)]
    return float(np.quantile(known, 0.05)) - FOOT_HEIGHT if known.size else 0.0
