"""`heatlift data mapping`: a joint mapping proposed for recordings, by names and geometry."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, printable
from pipeline.mocap.body_facts import BodyFacts, measure_body
from pipeline.mocap.body_faults import ADULT_HEIGHT, check_set, file_axis
from pipeline.mocap.bvh import read_bvh
from pipeline.mocap.joint_names import LIMBS, back_joints, find_by_name, find_by_tree
from pipeline.mocap.mapping import SHIPPED, UNITS, JointMapping, Point, read_mapping
from pipeline.mocap.preparation import read_positions
from pipeline.mocap.recordings import find_recordings
from pipeline.skeleton import H36M17

RECORDINGS_READ = 5
"""Recordings of a folder that are read, evenly spaced by name."""
FRAMES_READ = 100
"""Frames of each that are looked at, evenly spaced."""
UNRESOLVED = "UNRESOLVED"


@dataclass(frozen=True, eq=False)
class Example:
    """Positions of all joints of one recording in some frames.

    Args:
        name: Name of the recording.
        joints: Names of its joints.
        positions: File units and axes, (T, N, 3).
        rotations: Rotations of the joints' frames, (T, N, 3, 3); none for files of positions.
        parents: Index of each joint's parent; none for files of positions.
        ends: Joint -> offset of its End Site.
        offsets: Offset of each joint in its parent's frame, (N, 3); none for files of positions.
    """

    name: str
    joints: tuple[str, ...]
    positions: NDArray[np.float64]
    rotations: NDArray[np.float64] | None = None
    parents: tuple[int, ...] | None = None
    ends: dict[str, tuple[float, ...]] = field(default_factory=dict)
    offsets: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Proposal:
    """A proposed mapping.

    Args:
        text: YAML file with a comment behind each line that tells its reason.
        unresolved: Keys and joints for which nothing was found.
        faults: Faults of the recordings, as the mapping reads them.
        shipped: Name of a shipped mapping that fits; empty if none does.
    """

    text: str
    unresolved: tuple[str, ...]
    faults: tuple[str, ...]
    shipped: str = ""


def propose_mapping(folder: Path) -> Proposal:
    """Propose a joint mapping to H36M17 for the recordings in a folder.

    Args:
        folder: Folder with recordings at any depth.

    Raises:
        DataError: If there is no recording, or one that is read is damaged.
    """
    files = [paths[0] for paths in find_recordings(folder).values()]
    chosen = np.linspace(0, len(files) - 1, min(RECORDINGS_READ, len(files))).round().astype(int)
    examples = [_read_example(files[k]) for k in chosen]
    joints, count = Counter(example.joints for example in examples).most_common(1)[0]
    others = [example.name for example in examples if example.joints != joints]
    examples = [example for example in examples if example.joints == joints]
    notes = [
        f"Proposed by `heatlift data mapping {folder}` from {count} of {len(files)} recordings."
    ]
    if others:
        notes.append(f"{', '.join(others)} have other joints: they need a mapping of their own.")
    if shipped := _fitting_shipped(examples):
        text = f"# {notes[0]}\n# The shipped mapping fits: write mapping: {shipped}\n"
        return Proposal(text, (), (), shipped)
    points, reasons = _find_points(examples)
    settings, facts = _find_settings(examples, points)
    unresolved = [joint for joint in H36M17.joints if joint not in points]
    unresolved += [key for key, (value, _) in settings.items() if value == "null"]
    faults: tuple[str, ...] = ()
    if facts is not None:
        whole = check_set(*facts)
        faults = whole.faults
        notes.append(f"It makes people of: {', '.join(whole.facts)}.")
        notes += [f"CHECK: {doubt}" for doubt in whole.doubts]
    notes.append(f"Joints of the files: {', '.join(joints)}")
    text = _write(notes, settings, points, reasons)
    return Proposal(text, tuple(unresolved), faults)


def _read_example(file: Path) -> Example:
    """Positions of a recording in `FRAMES_READ` frames."""
    name = file.name.split(".")[0]
    if file.suffix.lower() == ".npz":
        positions, _, joints = read_positions(file)
        return Example(name, tuple(joints), positions[:: -(-len(positions) // FRAMES_READ)])
    motion = read_bvh(file)
    kept = slice(min(10, len(motion) // 2), None, max(1, len(motion) // FRAMES_READ))
    positions, rotations = motion.pose(motion.joints, kept)
    return Example(
        name, motion.joints, positions, rotations, motion.parents, motion.ends, motion.offsets
    )


def _fitting_shipped(examples: list[Example]) -> str:
    """Name of the shipped mapping that makes people of the recordings; empty if none does."""
    for name in (*SHIPPED, H36M17.name):
        mapping = read_mapping(name)
        if not {s for point in mapping.points for s in point.sources} <= {*examples[0].joints}:
            continue
        if any(point.offset for point in mapping.points) and examples[0].rotations is None:
            continue
        report = check_set(_measure(examples, mapping), mapping)
        if not report.faults and not report.doubts:
            return name
    return ""


def _measure(examples: list[Example], mapping: JointMapping) -> list[BodyFacts]:
    """Facts of the examples, as a mapping reads them; their frames have no common rate."""
    return [
        measure_body(example.name, _apply(example, mapping), mapping.skeleton, 0.0, file_fps=50.0)
        for example in examples
    ]


def _apply(example: Example, mapping: JointMapping) -> NDArray[np.float64]:
    """Joints of an example, world metres, (T, J, 3)."""
    joints = np.empty((len(example.positions), len(mapping.points), 3))
    for target, point in enumerate(mapping.points):
        indices = [example.joints.index(source) for source in point.sources]
        joints[:, target] = example.positions[:, indices].mean(axis=1)
        if point.offset and example.rotations is not None:
            joints[:, target] += example.rotations[:, indices[0]] @ np.array(point.offset)
    return joints @ (mapping.unit * mapping.axes.T)


def _find_points(examples: list[Example]) -> tuple[dict[str, Point], dict[str, str]]:
    """Points of H36M17's joints that were found, and the reason for each."""
    first = examples[0]
    positions = np.concatenate([example.positions for example in examples])
    found = find_by_name(first.joints)
    limbs = [f"{side}_{joint}" for joint in LIMBS for side in ("left", "right")]
    if first.parents is not None and not {*limbs, "neck", "skull"} <= found.keys():
        found = find_by_tree(first.joints, first.parents, positions) | found
    points = {name: Point((found[name][0],)) for name in limbs if name in found}
    reasons = {name: found[name][1] for name in points}
    pairs = {"pelvis": ("right_hip", "left_hip"), "thorax": ("right_shoulder", "left_shoulder")}
    for target, pair in pairs.items():
        if {*pair} <= points.keys():
            points[target] = Point(tuple(points[name].sources[0] for name in pair))
            reasons[target] = f"the middle of {pair[0]} and {pair[1]}"
    if "neck" in found:
        points["thorax"], reasons["thorax"] = Point((found["neck"][0],)), found["neck"][1]
    _find_spine(first, positions, points, reasons)
    _find_head(first, found, points, reasons)
    return points, reasons


def _find_spine(
    example: Example,
    positions: NDArray[np.float64],
    points: dict[str, Point],
    reasons: dict[str, str],
) -> None:
    """Add the joint of the back, or the middle of two, that is half-way from pelvis to thorax."""
    if not {"pelvis", "thorax"} <= points.keys():
        return
    at = {
        name: positions[:, [example.joints.index(s) for s in points[name].sources]].mean(axis=1)
        for name in ("pelvis", "thorax")
    }
    candidates = back_joints(example.joints)
    if example.parents is not None:
        candidates = _ancestors(example, points["thorax"].sources[0]) or candidates
    way = at["thorax"] - at["pelvis"]
    share = {}
    for joint in candidates:
        offset = positions[:, example.joints.index(joint)] - at["pelvis"]
        along = np.einsum("ti,ti->t", offset, way) / np.einsum("ti,ti->t", way, way)
        share[joint] = float(np.median(along))
    share = {joint: value for joint, value in share.items() if 0.05 < value < 0.95}
    if not share:
        return
    best = min(share, key=lambda joint: abs(share[joint] - 0.5))
    points["spine"] = Point((best,))
    reasons["spine"] = f"at {100 * share[best]:.0f} % of the way from pelvis to thorax"
    below = max((j for j in share if share[j] < 0.5), key=lambda j: share[j], default="")
    above = min((j for j in share if share[j] >= 0.5), key=lambda j: share[j], default="")
    if below and above and abs(share[below] + share[above] - 1) < 2 * abs(share[best] - 0.5):
        points["spine"] = Point((below, above))
        middle = 50 * (share[below] + share[above])
        reasons["spine"] = f"their middle is at {middle:.0f} % of the way from pelvis to thorax"


def _ancestors(example: Example, joint: str) -> list[str]:
    """Joints above a joint in the tree, without the root."""
    assert example.parents is not None
    names, index = [], example.parents[example.joints.index(joint)]
    while index > 0:
        names.append(example.joints[index])
        index = example.parents[index]
    return names


def _find_head(
    example: Example,
    found: dict[str, tuple[str, str]],
    points: dict[str, Point],
    reasons: dict[str, str],
) -> None:
    """Add nose (the base of the skull, as in the shipped mappings) and head (its top)."""
    if "skull" not in found:
        return
    skull, reason = found["skull"]
    points["nose"], reasons["nose"] = Point((skull,)), f"{reason}; the base of the skull"
    end = example.ends.get(skull)
    if "top" in found and found["top"][0] != skull:
        points["head"], reasons["head"] = Point((found["top"][0],)), found["top"][1]
    elif end is not None and np.linalg.norm(end) > 0:
        points["head"] = Point((skull,), (end[0], end[1], end[2]))
        reasons["head"] = f"the End Site of {skull}"
    elif example.rotations is not None:
        points["head"] = Point((skull,), _estimated_top(example, skull))
        reasons["head"] = "estimated: the files have no end of the head; look at the image"
    elif "neck" in found:
        points["head"], reasons["head"] = Point((skull,)), f"{reason}; the highest joint"
        points["nose"] = Point((found["neck"][0], skull))
        reasons["nose"] = f"the middle, because the files have nothing above {skull}"


def _estimated_top(example: Example, skull: str) -> tuple[float, float, float]:
    """Offset of the top of the head: where the head is from the root at rest, 8 % of the body."""
    assert example.offsets is not None
    chain = [example.joints.index(name) for name in (skull, *_ancestors(example, skull))]
    direction = example.offsets[chain].sum(axis=0)
    size = np.median(np.ptp(example.positions, axis=1).max(axis=1))
    scale = 0.08 * size / max(float(np.linalg.norm(direction)), 1e-9)
    x, y, z = (scale * direction).round(3).tolist()
    return x, y, z


def _find_settings(
    examples: list[Example], points: dict[str, Point]
) -> tuple[dict[str, tuple[str, str]], tuple[list[BodyFacts], JointMapping] | None]:
    """Unit, up and forward with their reasons, and the facts that they lead to.

    If a joint is missing there is no body to measure, and all three are unresolved.
    """
    if len(points) < len(H36M17):
        nothing = ("null", f"{UNRESOLVED}: it cannot be measured while a joint is missing")
        return {"unit": nothing, "up": nothing, "forward": nothing}, None
    plain = JointMapping("proposal", H36M17, tuple(points[joint] for joint in H36M17.joints))
    raw = _measure(examples, plain)
    height = float(np.median([facts.height for facts in raw]))
    unit, why_unit = _find_unit(height)
    shares = np.mean([facts.directions for facts in raw], axis=0)
    up = file_axis(plain, int(shares.argmax()))
    forward, share = _find_forward(examples, plain, up)
    settings = {
        "unit": (unit, why_unit),
        "up": (up, f"the head is there, seen from the feet, in {100 * shares.max():.0f} %"),
        "forward": (forward, f"the people face there in {100 * share:.0f} %; any axis will do"),
    }
    mapping = dataclasses.replace(
        plain,
        name="the proposal",
        unit=UNITS[unit] if unit in UNITS else float(unit),
        up=("xyz".index(up[-1]), -1.0 if up[0] == "-" else 1.0),
        forward=("xyz".index(forward[-1]), -1.0 if forward[0] == "-" else 1.0),
    )
    return settings, (_measure(examples, mapping), mapping)


def _find_unit(height: float) -> tuple[str, str]:
    """The unit that makes a body of `height` units an adult, or else metres in one unit."""
    unit = min(UNITS, key=lambda name: abs(np.log(max(height, 1e-9) * UNITS[name] / ADULT_HEIGHT)))
    metres = height * UNITS[unit]
    others = [f"{n}: {height * m:.3g} m" for n, m in UNITS.items() if n != unit]
    listed = ", ".join(text for text in others if 0.35 < float(text.split()[1]) < 2.6)
    also = f"; a child would be {listed}" if listed else ""
    if 1.2 <= metres <= 2.1:
        return unit, f"{height:.4g} units from ankles to head are {metres:.2f} m{also}"
    scale = ADULT_HEIGHT / max(height, 1e-9)
    return (
        f"{scale:.4g}",
        f"no unit makes an adult of {height:.4g} units; {ADULT_HEIGHT:.2f} m assumed",
    )


def _find_forward(examples: list[Example], mapping: JointMapping, up: str) -> tuple[str, float]:
    """The axis that people face most often, level, and its share of the frames."""
    joints = np.concatenate([_apply(example, mapping) for example in examples])
    at = {name: joints[:, H36M17.index(name)] for name in H36M17.joints}
    ahead = np.cross(at["left_hip"] - at["right_hip"], at["thorax"] - at["pelvis"])
    level = [axis for axis in ("x", "y", "z") if axis != up[-1]]
    signed = [(sign + axis) for axis in level for sign in ("", "-")]
    strength = np.stack(
        [ahead[:, "xyz".index(axis[-1])] * (-1 if axis[0] == "-" else 1) for axis in signed]
    )
    counts = np.bincount(strength.argmax(axis=0), minlength=len(signed)) / len(ahead)
    return signed[int(counts.argmax())], float(counts.max())


def _write(
    notes: list[str],
    settings: dict[str, tuple[str, str]],
    points: dict[str, Point],
    reasons: dict[str, str],
) -> str:
    """The YAML file of a proposal."""
    lines = [f"# {printable(note)}" for note in notes] + [f"skeleton: {H36M17.name}"]
    rows = [(f"{key}: {value}", why) for key, (value, why) in settings.items()] + [("joints:", "")]
    for joint in H36M17.joints:
        if joint in points:
            rows.append((f"  {joint}: {_point_text(points[joint])}", reasons[joint]))
        else:
            rows.append((f"  {joint}: null", f"{UNRESOLVED}: write the name of a joint here"))
    width = max(len(text) for text, _ in rows)
    lines += [f"{text:<{width}}  # {printable(why)}" if why else text for text, why in rows]
    return "\n".join(lines) + "\n"


def _point_text(point: Point) -> str:
    """A point as YAML."""
    names = [_quoted(source) for source in point.sources]
    if point.offset:
        return f"{{joint: {names[0]}, offset: [{', '.join(f'{v:g}' for v in point.offset)}]}}"
    return names[0] if len(names) == 1 else f"{{midpoint: [{', '.join(names)}]}}"


def _quoted(name: str) -> str:
    """A name as YAML, in quotes unless it is surely a plain word."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]+", name) and name.lower() not in _YAML_WORDS
    return name if plain else json.dumps(name)


_YAML_WORDS = {"null", "true", "false", "yes", "no", "on", "off"}


def require_resolved(proposal: Proposal, file: str) -> None:
    """Raise an error with the next step for what a proposal leaves open.

    Raises:
        DataError: If something is unresolved, or the recordings are no people with the proposal.
    """
    if proposal.unresolved:
        raise DataError(
            f"{file}: nothing was found for {', '.join(proposal.unresolved)}; fill in the lines "
            f"marked {UNRESOLVED}, from the names in the comment at the top"
        )
    if proposal.faults:
        raise DataError(f"{file}: look at this proposal with care: {proposal.faults[0]}")
