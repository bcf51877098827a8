"""Faults of recordings as people: wrong heights, sides, up axes, joints and speeds."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.mocap.bodies import BONES
from pipeline.mocap.body_facts import DISTANCES, BodyFacts, measure_speeds
from pipeline.mocap.mapping import ACCEPTABLE, UNITS, JointMapping
from pipeline.skeleton import Skeleton

POSSIBLE_HEIGHT = (0.35, 2.6)
"""Heights that people have, from a newborn to the tallest, by `body_height`, metres. It is about
0.9 of the height of the standing person: all CMU recordings have 1.50 to 1.55 m."""
USUAL_HEIGHT = (0.8, 2.2)
"""Heights outside of this range are printed as a warning: children of less than two years."""
LEAST_LEFT_ON_LEFT = 0.5
"""CMU's recordings have 0.93 to 1; with swapped sides they have 0 to 0.07."""
LEAST_MATCHING_SIDES = 0.7
"""Left hip and left shoulder on the same side: CMU's recordings have 0.89 to 1."""
LIMB_VARIATION = 0.15
"""Limb bones of CMU's recordings vary by less than 0.02, those of marker sets by some percent."""
TORSO_VARIATION = 0.6
"""Bones of spine and head vary by up to 0.25 in CMU's recordings: midpoints bend with the back."""
SYMMETRY = 1.25
"""CMU's recordings have 1.00."""
LIMB_PROPORTION = (0.55, 1.7)
"""Share of a limb bone in the height, divided by that of an adult: CMU's have 0.87 to 1.08, and a
newborn's limbs about 0.65."""
WIDTH_PROPORTION = (0.35, 1.8)
"""The same for hips and shoulders: CMU's have 0.69 and 0.84."""
SPINE_SHARE = (0.2, 0.8)
"""Share of the joint `spine` in the way from pelvis to thorax: CMU's recordings have 0.46."""
PELVIS_FROM_HIPS = 0.1
"""Distance from the pelvis to the midpoint of the hips, in heights: CMU's recordings have 0."""
HEAD_FROM_NECK = 0.33
"""Distance from the base of the neck to the top of the head, in heights: CMU's have 0.15, an adult
0.14, a newborn 0.27."""
LEAST_STRETCH = 0.3
"""Distance from hip to ankle over thigh + shin in the 10 % most stretched frames: CMU's recordings
have 0.91 to 1, people who sit cross-legged 0.4."""
CLIMB = 0.7
"""Range of the lowest joint's height, metres, that people who only lie do not have. They face the
floor or the sky most of the time, too."""
ROOT_SPEED, JOINT_SPEED = 15.0, 20.0
"""Speeds in m/s that no person exceeds in 10 % of the frames. CMU's undamaged recordings have up to
4 and 6; a sprinter's root has 12."""
SLOW_RATE = 20.0
"""Frame rates below are printed as a warning, Hz; see `mapping.SLOWEST_MOTION`."""

ADULT_HEIGHT = sum(
    sum(BONES[bone]) / 2 for bone in ("knee", "ankle", "spine", "thorax", "nose", "head")
)
"""Height of an adult by `body_height`, metres."""
_LIMBS, _WIDTHS = ("knee", "ankle", "elbow", "wrist"), ("hip", "shoulder")
_DIRECTIONS = ("x", "y", "z", "-x", "-y", "-z")

_log = logging.getLogger(__name__)


class Fault(NamedTuple):
    """Something that people do not have.

    Args:
        kind: One of `mapping.ACCEPTABLE`, or `height`.
        text: What was found, and what to do.
        certain: Whether it is an error; a doubt is printed as a warning.
    """

    kind: str
    text: str
    certain: bool = True


@dataclass(frozen=True)
class SetReport:
    """Result of checking a set of recordings.

    Args:
        facts: Short descriptions of what was measured over the whole set.
        faults: Errors that the mapping does not accept.
        doubts: Warnings, and errors that the mapping accepts.
    """

    facts: tuple[str, ...]
    faults: tuple[str, ...]
    doubts: tuple[str, ...]


def check_set(measured: Many[BodyFacts], mapping: JointMapping) -> SetReport:
    """Check whether recordings, as a mapping reads them, are recordings of people.

    A mapping is right or wrong for the whole set, so that all but height and speed is decided on
    the median over the recordings: a set may have people who lie or stand on their hands.

    Args:
        measured: Facts of each recording, at least one.
        mapping: Joint mapping that the recordings were read with.
    """
    found = _height_faults(measured, mapping)
    if not any(fault.certain for fault in found):  # a wrong unit has many consequences
        found += _joint_faults(measured) or _bone_faults(measured, mapping.skeleton)
        found += [*_side_faults(measured), *_direction_faults(measured, mapping)]
        found += _speed_faults(measured)
    accepted = [fault for fault in found if fault.kind in mapping.accept]
    return SetReport(
        _describe_set(measured),
        tuple(_with_remedy(f) for f in found if f.certain and f not in accepted),
        tuple(f.text for f in found if not f.certain and f not in accepted)
        + tuple(f"accepted by {mapping.name} ({f.kind}): {f.text}" for f in accepted),
    )


def _with_remedy(fault: Fault) -> str:
    """Text of a fault, with the line of the mapping that accepts it."""
    if fault.kind not in ACCEPTABLE:
        return fault.text
    return f"{fault.text} (if it is really so, add accept: [{fault.kind}] to the mapping)"


def require_people(measured: Many[BodyFacts], mapping: JointMapping, folder: str) -> None:
    """Check a set of recordings when it is read; doubts are printed as warnings.

    Raises:
        DataError: If they cannot be recordings of people.
    """
    report = check_set(measured, mapping)
    if report.faults:
        more = f" (and {len(report.faults) - 1} more)" if len(report.faults) > 1 else ""
        raise DataError(
            f"{folder}: with mapping {mapping.name} these are no people: {report.faults[0]}{more}; "
            f"see `heatlift data validate {folder} --mapping {mapping.name}`"
        )
    for doubt in report.doubts:
        _log.warning("heatlift: warning: %s: %s", folder, doubt)


def _describe_set(measured: Many[BodyFacts]) -> tuple[str, ...]:
    """Facts of the whole set for people who read a report."""
    heights = [facts.height for facts in measured]
    return (
        f"{len(measured)} recordings" if len(measured) != 1 else "1 recording",
        f"{sum(facts.frames for facts in measured)} frames",
        f"height {min(heights):.3g} to {max(heights):.3g} m",
        f"left hip on the left in {_percent(_median(measured, 'left_on_left'))}",
        f"head above the feet in {_percent(_median(measured, 'upright'))}",
    )


def describe_recording(facts: BodyFacts) -> tuple[str, ...]:
    """Facts of one recording for people who read a report."""
    return (
        f"{facts.frames} frames",
        f"{facts.fps:g} Hz",
        f"height {facts.height:.3g} m",
        f"left hip on the left in {_percent(facts.left_on_left)}",
        f"head above the feet in {_percent(facts.upright)}",
    )


def _height_faults(measured: Many[BodyFacts], mapping: JointMapping) -> list[Fault]:
    """Heights that no person has, and those that only a small child or a giant has."""
    low, high = POSSIBLE_HEIGHT
    wrong = [facts for facts in measured if not low <= facts.height <= high]
    if wrong:
        height = float(np.median([facts.height for facts in wrong]))
        text = (
            f"a height of {height:.3g} m in {_names(wrong, measured)} is that of no person; "
            f"{_suggest_unit(height, mapping)}"
        )
        return [Fault("height", text)]
    unusual = [f for f in measured if not USUAL_HEIGHT[0] <= f.height <= USUAL_HEIGHT[1]]
    if not unusual:
        return []
    height = float(np.median([facts.height for facts in unusual]))
    who = "a small child" if height < 1 else "a very tall person"
    text = f"a height of {height:.2f} m in {_names(unusual, measured)} is that of {who}"
    if (remedy := _suggest_unit(height, mapping)) and "with unit" in remedy:
        text += f"; if it is not: {remedy}"
    return [Fault("height", text, certain=False)]


def _suggest_unit(height: float, mapping: JointMapping) -> str:
    """What to do about a wrong height: the unit that makes an adult of it."""
    own = next((name for name, metres in UNITS.items() if metres == mapping.unit), mapping.unit)
    fitting = {name: height / mapping.unit * metres for name, metres in UNITS.items()}
    fitting = {name: value for name, value in fitting.items() if 1.2 <= value <= 2.1}
    if not fitting:
        return f"`unit` is {own}, and no other one makes an adult of it: look for a wrong joint"
    best = min(fitting, key=lambda name: abs(np.log(fitting[name] / ADULT_HEIGHT)))
    return f"`unit` is {own}; with unit: {best} it is {fitting[best]:.2f} m"


def _joint_faults(measured: Many[BodyFacts]) -> list[Fault]:
    """Joints at the same place in most recordings."""
    pairs = [pair for facts in measured for pair in facts.same_place]
    common = [pair for pair in dict.fromkeys(pairs) if 2 * pairs.count(pair) > len(measured)]
    listed = ", ".join(f"{one} and {other}" for one, other in common[:3])
    if len(common) > 3:
        listed += ", …"
    text = f"{listed} are at the same place; name another joint for one of the two"
    return [Fault("joints", text)] if common else []


def _bone_faults(measured: Many[BodyFacts], skeleton: Skeleton) -> list[Fault]:
    """Bones that change their length, differ from left to right, or have no human proportion."""
    names = [skeleton.joints[child] for _, child in skeleton.bones]
    length = dict(zip(names, np.median([f.bones for f in measured], axis=0), strict=True))
    varies = dict(zip(names, np.median([f.variation for f in measured], axis=0), strict=True))
    found = []
    limits = {n: LIMB_VARIATION if n.split("_")[-1] in _LIMBS else TORSO_VARIATION for n in names}
    changing = [name for name in names if varies[name] > limits[name]]
    if changing:
        worst = max(changing, key=lambda name: varies[name] / limits[name])
        text = (
            f"the bone that ends at {worst} changes its length by {_percent(varies[worst])} "
            f"({len(changing)} such bones); {worst} or its parent is another joint"
        )
        found.append(Fault("bones", text))
    uneven = [
        (left, right)
        for left, right in zip(skeleton.left, skeleton.right, strict=True)
        if (name := skeleton.joints[left]) in length
        and not 1 / SYMMETRY < length[name] / max(length[skeleton.joints[right]], 1e-9) < SYMMETRY
    ]
    if uneven:
        left, right = (skeleton.joints[index] for index in uneven[0])
        text = (
            f"the bone that ends at {left} has {1000 * length[left]:.0f} mm, at {right} "
            f"{1000 * length[right]:.0f} mm; one of the two is another joint"
        )
        found.append(Fault("symmetry", text))
    if not found:
        found += _proportion_faults(length, _median(measured, "height"))
        found += _order_faults(measured, length)
    return found


def _order_faults(measured: Many[BodyFacts], length: dict[str, float]) -> list[Fault]:
    """Joints of trunk, head and legs that are not where the body has them."""
    at = {pair: float(np.median([f.distances[pair] for f in measured])) for pair in DISTANCES}
    problems = []
    if at["pelvis hips"] > PELVIS_FROM_HIPS:
        problems.append("pelvis is far from the midpoint of the hips")
    if {"spine", "thorax"} <= length.keys():
        share = length["spine"] / max(length["spine"] + length["thorax"], 1e-9)
        bent = (length["spine"] + length["thorax"]) / max(_median(measured, "height"), 1e-9)
        if bent > 1.5 * at["pelvis thorax"]:
            problems.append("spine is not between pelvis and thorax")
        elif not SPINE_SHARE[0] <= share <= SPINE_SHARE[1]:
            problems.append(
                f"spine is at {_percent(share)} of the way from pelvis to thorax, not in the middle"
            )
    for joint in ("nose", "head"):
        if at[f"pelvis {joint}"] < at["pelvis thorax"]:
            problems.append(f"{joint} is below thorax")
        elif at[f"thorax {joint}"] > HEAD_FROM_NECK:
            problems.append(f"{joint} is far from thorax")
    if at["thorax nose"] > 1.1 * at["thorax head"]:
        problems.append("nose is farther from thorax than head, the top of the head")
    if _median(measured, "stretch") < LEAST_STRETCH:
        problems.append("an ankle is next to its hip all the time")
    return [
        Fault("proportions", f"{problem}; one of these is another joint") for problem in problems
    ]


def _proportion_faults(length: dict[str, float], height: float) -> list[Fault]:
    """Limb bones, hips and shoulders whose share in the height is not human."""
    found = []
    for name, metres in length.items():
        bone = name.split("_")[-1]
        if bone not in (*_LIMBS, *_WIDTHS) or not height > 0:
            continue
        low, high = LIMB_PROPORTION if bone in _LIMBS else WIDTH_PROPORTION
        adult = sum(BONES[bone]) / 2 * height / ADULT_HEIGHT
        if not low <= metres / adult <= high:
            found.append(
                Fault(
                    "proportions",
                    f"the bone that ends at {name} has {1000 * metres:.0f} mm, an adult of "
                    f"{height:.2f} m has about {1000 * adult:.0f} mm; {name} or its parent is "
                    "another joint",
                )
            )
    return found


def _side_faults(measured: Many[BodyFacts]) -> list[Fault]:
    """Swapped sides of the whole body, or of hips and shoulders against each other."""
    on_left, matching = _median(measured, "left_on_left"), _median(measured, "matching_sides")
    found = []
    if matching < LEAST_MATCHING_SIDES:
        text = (
            f"the left hip and the left shoulder are on the same side in {_percent(matching)} of "
            "the frames only; the arms or the legs have their sides swapped"
        )
        found.append(Fault("sides", text))
    elif on_left < LEAST_LEFT_ON_LEFT:
        text = (
            f"the left hip is on the left in {_percent(on_left)} of the frames only; swap left and "
            "right in the mapping (or the files are mirrored: a left-handed system of axes)"
        )
        found.append(Fault("sides", text))
    elif mirrored := [f for f in measured if f.left_on_left < LEAST_LEFT_ON_LEFT]:
        text = f"left and right look swapped in {_names(mirrored, measured)} alone"
        found.append(Fault("sides", text, certain=False))
    return found


def _direction_faults(measured: Many[BodyFacts], mapping: JointMapping) -> list[Fault]:
    """A set in which people are not upright, but point along another axis most of the time."""
    frames = np.array([facts.frames for facts in measured])
    shares = np.average([facts.directions for facts in measured], axis=0, weights=frames)
    best = int(np.argmax(shares)) if np.isfinite(shares).all() else 2
    if best == 2 or shares[best] < 0.5:
        return []
    axis = file_axis(mapping, best)
    seen = (
        f"the head is above the feet in {_percent(shares[2])} of the frames, and towards {axis} "
        f"of the files in {_percent(shares[best])}"
    )
    if best == 5:
        certain = bool(_median(measured, "wrists_below_head") < 0.5)
        remedy = "" if certain else "if these are not handstands, "
    else:
        lie = _median(measured, "facing_floor_or_sky") > 0.5
        certain = not lie or max(facts.climb for facts in measured) > CLIMB
        remedy = "" if certain else "if nobody lies here, "
    return [Fault("up", f"{seen}; {remedy}set up: {axis}", certain)]


def file_axis(mapping: JointMapping, direction: int) -> str:
    """Axis of the files that a mapping turns to a direction of the world.

    Args:
        mapping: Joint mapping.
        direction: Index into x, y, z, -x, -y, -z of the world.
    """
    vector: NDArray[np.float64] = mapping.axes[direction % 3] * (1 if direction < 3 else -1)
    axis = int(np.abs(vector).argmax())
    return _DIRECTIONS[axis if vector[axis] > 0 else axis + 3]


def _speed_faults(measured: Many[BodyFacts]) -> list[Fault]:
    """Recordings that are faster than people, and those with few frames per second."""
    found = []
    fast = [f for f in measured if f.root_speed > ROOT_SPEED or f.joint_speed > JOINT_SPEED]
    if fast:
        worst = max(fast, key=lambda f: max(f.root_speed / ROOT_SPEED, f.joint_speed / JOINT_SPEED))
        text = (
            f"{_describe_speed(worst.root_speed, worst.joint_speed)} in a tenth of the frames of "
            f"{_names(fast, measured)}, which no person is; look for a wrong unit or frame rate "
            "(recorded_fps: in the mapping), or leave the recording out"
        )
        found.append(Fault("speed", text))
    slow = [facts for facts in measured if facts.fps < SLOW_RATE]
    if slow:
        text = (
            f"{_names(slow, measured)} have {min(f.fps for f in slow):g} frames per second; what "
            "happens between two frames is interpolated. If the files name a wrong rate, set "
            "recorded_fps: in the mapping"
        )
        found.append(Fault("speed", text, certain=False))
    return found


def _describe_speed(root: float, joint: float) -> str:
    """The speed, m/s, that exceeds its limit by the larger factor."""
    if root / ROOT_SPEED > joint / JOINT_SPEED:
        return f"the pelvis is faster than {root:.3g} m/s"
    return f"a joint is faster than {joint:.3g} m/s relative to the pelvis"


def require_human_speed(joints3d: NDArray[np.floating], fps: float, name: str) -> None:
    """Check that the joints of a recording are not faster than those of people.

    Args:
        joints3d: Metres, root first, (T, J, 3).
        fps: Frame rate, Hz.
        name: Name of the file, for the error message.

    Raises:
        DataError: If they are.
    """
    root, joint = measure_speeds(joints3d, fps)
    if root > ROOT_SPEED or joint > JOINT_SPEED:
        raise DataError(
            f"{name}: {_describe_speed(root, joint)} in a tenth of the frames, which no person is; "
            f"look for a wrong frame rate (here {fps:g} Hz) or unit (metres are expected)"
        )


def _median(measured: Many[BodyFacts], name: str) -> float:
    """Median of a fact over the recordings."""
    return float(np.median([getattr(facts, name) for facts in measured]))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _names(some: Many[BodyFacts], measured: Many[BodyFacts]) -> str:
    """Names of up to three recordings, and their number if not all are meant."""
    if len(some) == len(measured) > 3:
        return f"all {len(some)} recordings"
    listed = ", ".join(facts.name for facts in some[:3])
    return listed if len(some) <= 3 else f"{listed}, … ({len(some)} of {len(measured)} recordings)"
