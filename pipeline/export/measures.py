"""Measures of a motion that people know: joint angles, speeds, foot slide, bone lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.export.frames import Frame
from pipeline.export.motion_data import SEEN, MotionData, PersonMotion
from pipeline.skeleton import Skeleton
from pipeline.sources import true_runs

Array = NDArray[np.float64]

LOW_SCORE, LOOSE_BONES = 0.4, 0.2
"""Median score of the 2D joints and change of bone lengths beyond which a motion is not usable."""

TO_UPRIGHT: dict[Frame, Array] = {
    "camera": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "world": np.eye(3),
}
"""Frame of reference -> rotation to x right, y ahead, z up; a camera is taken for a level one."""

SPEED_SECONDS = 0.2
"""Time over which a speed is measured, seconds."""

CONTACT_HEIGHT, CONTACT_SECONDS, CONTACT_SPEED = 0.03, 0.1, 0.2
"""A foot in contact: its height above its lowest place (metres), the shortest contact (seconds),
and how much faster than the body it may move (metres per second)."""

STEP_SECONDS = 0.5
"""The lowest place of a foot is looked for within this time before and after, seconds."""

_BENDS = {"knee": ("hip", "knee", "ankle"), "elbow": ("shoulder", "elbow", "wrist")}
_BONES = {
    "thigh": ("hip", "knee"),
    "lower leg": ("knee", "ankle"),
    "upper arm": ("shoulder", "elbow"),
    "forearm": ("elbow", "wrist"),
}
_MIDDLE_BONES = {
    "shoulders": ("left_shoulder", "right_shoulder"),
    "hips": ("left_hip", "right_hip"),
    "trunk": ("pelvis", "thorax"),
}


@dataclass(frozen=True)
class Contact:
    """Time in which a foot stands on the floor.

    Args:
        side: `left` or `right`.
        first: Its first frame.
        last: Its last frame.
        slide: How far the ankle moves along the floor in the middle half of this time, metres.
    """

    side: str
    first: int
    last: int
    slide: float


@dataclass(frozen=True)
class Bone:
    """Length of a bone of a person.

    Args:
        name: Plain name, such as `left thigh`.
        length: Median over time, metres.
        change: 90 % quantile over time of |length / median - 1|.
    """

    name: str
    length: float
    change: float


def is_usable(quality: Mapping[str, Any]) -> bool:
    """Whether the 2D joints of a person were good enough for a usable motion.

    Args:
        quality: Entry of a person in `facts["quality"]`; what it does not hold counts as good.
    """
    score = quality.get("median_score", 1.0)
    change = quality.get("bone_variation_before", quality.get("bone_variation", 0.0))
    return bool(score >= LOW_SCORE and change <= LOOSE_BONES)


def unsure_frames(person: PersonMotion) -> NDArray[np.bool_]:
    """Frames in which a person was seen and the median score of the joints is low, (T,)."""
    return (person.status == SEEN) & (np.median(person.score, axis=1) < LOW_SCORE)


def joint_angles(joints3d: NDArray[np.floating], skeleton: Skeleton) -> dict[str, Array]:
    """Angles of the large joints, degrees.

    Convention:
        Knees and elbows: 0 is a straight limb, 90 a right angle. Hips: angle between thigh and
        trunk, 0 when standing. Shoulders: angle between upper arm and trunk, 0 when the arm hangs,
        90 when it points to the side or ahead, 180 when it points up.

        >>> from pipeline.skeleton import H36M17
        >>> pose = np.zeros((1, 17, 3))
        >>> pose[0, H36M17.index("left_hip")] = 0, 0, 1.0
        >>> pose[0, H36M17.index("left_knee")] = 0, 0, 0.5
        >>> pose[0, H36M17.index("left_ankle")] = -0.4, 0, 0.5
        >>> round(float(joint_angles(pose, H36M17)["left knee"][0]))
        90

    Args:
        joints3d: Metres, any frame of reference, (T, J, 3); NaN where missing.
        skeleton: The joint set; an angle whose joints it lacks is left out.

    Returns:
        Plain name, such as `left knee`, to degrees, (T,); NaN where missing.
    """
    named = {name: joints3d[:, i].astype(np.float64) for i, name in enumerate(skeleton.joints)}
    found: dict[str, Array] = {}
    for side in ("left", "right"):
        for name, parts in _BENDS.items():
            above, middle, below = (named.get(f"{side}_{part}") for part in parts)
            if above is not None and middle is not None and below is not None:
                found[f"{side} {name}"] = angle_between(middle - above, below - middle)
        for name, end in (("hip", "knee"), ("shoulder", "elbow")):
            start, stop = named.get(f"{side}_{name}"), named.get(f"{side}_{end}")
            if start is not None and stop is not None and {"pelvis", "thorax"} <= named.keys():
                trunk = named["pelvis"] - named["thorax"]
                found[f"{side} {name}"] = angle_between(stop - start, trunk)
    return found


def angle_between(first: Array, second: Array) -> Array:
    """Angle between vectors, (..., 3), degrees."""
    across = np.linalg.norm(np.cross(first, second), axis=-1)
    return np.asarray(np.degrees(np.arctan2(across, (first * second).sum(axis=-1))))


def horizontal_speed(points: NDArray[np.floating], times: Array, person: PersonMotion) -> Array:
    """Speed along the floor, metres per second, (T,).

    The distance between the first and the last frame within `SPEED_SECONDS` around a frame,
    divided by the time between them; never across a gap. NaN where the person is missing, and
    where a part has a single frame.

    Args:
        points: A point of the person, z up, metres, (T, 3).
        times: Seconds, (T,).
        person: The person, for the parts in which it is there.
    """
    speed = np.full(len(times), np.nan)
    for first, last in person.spans:
        if first == last:
            continue
        t, place = times[first : last + 1], points[first : last + 1, :2].astype(np.float64)
        count = np.arange(len(t))
        start = np.searchsorted(t, t - SPEED_SECONDS / 2 - 1e-9)
        stop = np.searchsorted(t, t + SPEED_SECONDS / 2 + 1e-9) - 1
        start = np.where(start == stop, np.maximum(count - 1, 0), start)
        stop = np.where(start == stop, np.minimum(count + 1, len(t) - 1), stop)
        moved = np.linalg.norm(place[stop] - place[start], axis=1)
        speed[first : last + 1] = moved / (t[stop] - t[start])
    return speed


def find_contacts(person: PersonMotion, motion: MotionData) -> list[Contact]:
    """Times in which the feet of a person stand on the floor, in the order of feet and time.

    A foot is in contact where its ankle is at most `CONTACT_HEIGHT` above its lowest place within
    `STEP_SECONDS` before and after, and moves along the floor at most `CONTACT_SPEED` faster than
    the root. So a floor that is not quite level, or a path that drifts, does not matter. A contact
    lasts at least `CONTACT_SECONDS`. At its start and end the foot rolls and the ankle moves with
    it, so the slide is that of the middle half: the largest distance from the place at its start.
    Walking people in motion capture have 2 to 3 cm.

    Args:
        person: A person of the motion.
        motion: The motion; in the camera frame, the camera is taken for a level one.
    """
    upright = person.positions.astype(np.float64) @ TO_UPRIGHT[motion.frame].T
    root = horizontal_speed(upright[:, motion.skeleton.root], motion.times, person)
    found = []
    for side in ("left", "right"):
        if f"{side}_ankle" not in motion.skeleton.joints:
            continue
        ankle = upright[:, motion.skeleton.joints.index(f"{side}_ankle")]
        speed = horizontal_speed(ankle, motion.times, person)
        for first, last in person.spans:
            rows = slice(first, last + 1)
            height, t = ankle[rows, 2], motion.times[rows]
            start = np.searchsorted(t, t - STEP_SECONDS)
            stop = np.searchsorted(t, t + STEP_SECONDS, side="right")
            lowest = np.array([height[a:b].min() for a, b in zip(start, stop, strict=True)])
            stands = (height - lowest <= CONTACT_HEIGHT) & (
                speed[rows] <= root[rows] + CONTACT_SPEED
            )
            for a, b in true_spans(stands):
                if t[b] - t[a] >= CONTACT_SECONDS - 1e-9:
                    quarter = (b - a + 1) // 4
                    place = ankle[first + a + quarter : first + b + 1 - quarter, :2]
                    slide = float(np.linalg.norm(place - place[0], axis=1).max())
                    found.append(Contact(side, first + a, first + b, slide))
    return found


def foot_slide(person: PersonMotion, motion: MotionData) -> float | None:
    """How far a foot slides while it stands: median over its contacts, metres; None without any."""
    slides = [contact.slide for contact in find_contacts(person, motion)]
    return float(np.median(slides)) if slides else None


def add_foot_slide(motion: MotionData, upright: MotionData) -> dict[str, Any]:
    """Facts of a motion with `foot_slide` in the quality of each person, metres.

    Args:
        motion: The motion whose facts are extended.
        upright: The same motion with its true up direction, which slides along the floor need.
    """
    quality = {name: dict(value) for name, value in motion.facts.get("quality", {}).items()}
    for person in upright.people:
        quality.setdefault(person.id, {})["foot_slide"] = foot_slide(person, upright)
    return {**motion.facts, "quality": quality}


def measure_bones(joints3d: NDArray[np.floating], skeleton: Skeleton) -> list[Bone]:
    """Lengths of the bones that have plain names; those whose joints are missing are left out.

    Args:
        joints3d: Metres, (T, J, 3); NaN where missing.
        skeleton: The joint set.
    """
    pairs = {
        f"{side} {name}": (f"{side}_{start}", f"{side}_{end}")
        for name, (start, end) in _BONES.items()
        for side in ("left", "right")
    }
    found = []
    for name, (start, end) in {**pairs, **_MIDDLE_BONES}.items():
        if not {start, end} <= set(skeleton.joints):
            continue
        ends = [skeleton.joints.index(joint) for joint in (start, end)]
        length = np.linalg.norm(np.diff(joints3d[:, ends].astype(np.float64), axis=1)[:, 0], axis=1)
        length = length[np.isfinite(length)]
        if length.size and (median := float(np.median(length))) > 0:
            change = float(np.quantile(np.abs(length / median - 1), 0.9))
            found.append(Bone(name, median, change))
    return found


def true_spans(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last index of each run of true values.

    >>> true_spans(np.array([True, True, False, True]))
    [(0, 1), (3, 3)]
    """
    return [(run.start, run.stop - 1) for run in true_runs(mask)]
