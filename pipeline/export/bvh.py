"""Motion as BVH files for animation programs, one per person, with a JSON file beside each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.camera import rotation_from_quaternion
from pipeline.export.body_names import read_names
from pipeline.export.even import even_motion
from pipeline.export.frames import Y_UP_TO_Z_UP
from pipeline.export.inverse_kinematics import (
    TO_Y_UP,
    BodyMotion,
    fit_body,
    forward_positions,
)
from pipeline.export.motion_data import FILLED, MotionData, PersonMotion
from pipeline.export.options import ExportOptions
from pipeline.export.rest_skeleton import PLACES
from pipeline.export.trc import person_path
from pipeline.files.json_documents import read_json
from pipeline.files.writing import write_atomically
from pipeline.skeleton import H36M17
from pipeline.sources import true_runs

Array = NDArray[np.float64]

UNITS = {"cm": 100.0, "m": 1.0}
"""Unit of a file -> how many of it make a metre."""

AXES = {
    "y": "x right, y up, z towards the camera; the rest pose faces +z, its left is at +x",
    "z": "x right, y away from the camera, z up; the rest pose faces -y, its left is at +x",
}
"""Axis that points up -> the axes of a file in words."""

FAR = 50.0
"""Error of a joint from which its place is printed, mm."""

_DECIMALS = 6
_FLAT = 1e-7
"""Cosine of the middle angle below which only the sum of the two others is known."""


def write_bvh(motion: MotionData, path: Path, options: ExportOptions) -> list[Path]:
    """Write a BVH file for each person, and beside each a JSON file that explains it.

    The bones are constant; `fit_body` finds the rotations. A motion at an uneven rate is resampled,
    because the format has one rate. The JSON file has the name of the BVH file and `.json`: unit,
    axes, source, names of the joints, error in mm, missing and filled-in frames.

    Args:
        motion: The motion, of the joints of H36M17.
        path: Path of the file; with several people each file gets the id: `x_A.bvh`.
        options: Axis that points up (y by default), unit and names of the joints.

    Returns:
        The files.

    Raises:
        UsageError: If the motion has other joints.
        DataError: If the file with names cannot be read.
        StorageError: If a file cannot be written.
    """
    names = read_names(options.bvh_names)
    even = even_motion(motion)
    files = []
    for person in even.people:
        body = fit_body(even, person)
        file = person_path(path, person, even)
        text = bvh_text(body, even.fps, names=names, unit=options.bvh_unit, up=options.up or "y")
        facts = _facts(even, person, body, file.name, names, options)
        facts["resampled"] = even is not motion
        beside = file.with_name(f"{file.name}.json")
        for target, content in ((file, text), (beside, json.dumps(facts, indent=1) + "\n")):
            write_atomically(target, lambda stream, c=content: stream.write(c.encode()))  # type: ignore[misc]
            files.append(target)
    return files


def bvh_errors(files: Iterable[Path]) -> list[str]:
    """What to print about the BVH files among some files, a line for each.

    Raises:
        DataError: If a JSON file beside a BVH file cannot be read.
    """
    lines = []
    for file in files:
        if file.suffix.lower() != ".bvh":
            continue
        facts = read_json(file.with_name(f"{file.name}.json"))
        mean, worst = facts["error_mm"]["mean"], facts["error_mm"]["worst"]
        if mean is None:
            found = "nobody in any frame; the file has the rest pose"
        else:
            found = f"mean {mean:.0f} mm, worst {worst:.0f} mm from the joints{_where(facts)}"
        lines.append(f"bvh {facts['person']}: {found}")
    return lines


def _where(facts: Mapping[str, Any]) -> str:
    """Joint and time of the worst error, if it is a large one."""
    error = facts["error_mm"]
    if error["worst"] < FAR:
        return ""
    frame = error["worst_frame"]
    filled = any(first <= frame <= last for first, last in facts["filled_frames"])
    joint = error["worst_joint"].replace("_", " ")
    return f" ({joint} at {frame / facts['fps']:.1f} s{', filled in' if filled else ''})"


def _facts(
    motion: MotionData,
    person: PersonMotion,
    body: BodyMotion,
    name: str,
    names: Mapping[str, str],
    options: ExportOptions,
) -> dict[str, Any]:
    """The content of the file beside a BVH file."""
    up = options.up or "y"
    rotation = TO_Y_UP[motion.frame] if up == "y" else Y_UP_TO_Z_UP @ TO_Y_UP[motion.frame]
    source = motion.facts.get("source")
    source = source if isinstance(source, Mapping) else {}
    error = 1000 * body.error
    known = np.asarray(np.isfinite(error))
    worst = (
        np.unravel_index(np.argmax(np.where(known, error, -1)), error.shape)
        if known.any()
        else None
    )
    return {
        "format": "heatlift bvh 1",
        "file": name,
        "person": person.id,
        "unit": options.bvh_unit,
        "up": up,
        "axes": AXES[up],
        "rotation": rotation.tolist(),
        "moved_up_m": round(_moved_up(motion, person, body), 5),
        "floor": (
            "height of the lower foot that is undercut in 5 % of the frames"
            if motion.frame == "camera"
            else "that of the motion, z = 0"
        ),
        "fps": motion.fps,
        "frames": len(motion),
        "source": {key: source.get(key) for key in ("name", "sha256")},
        "names": dict(names),
        "error_mm": {
            "mean": round(float(error[known].mean()), 2) if worst else None,
            "worst": round(float(error[worst]), 2) if worst else None,
            "worst_joint": H36M17.joints[worst[1]] if worst else None,
            "worst_frame": int(worst[0]) if worst else None,
        },
        "missing_frames": _spans(np.asarray(~known.any(axis=1))),
        "filled_frames": _spans(np.asarray(person.status == FILLED)),
        "missing": "frames that hold the pose before them, at the beginning the first pose",
    }


def _moved_up(motion: MotionData, person: PersonMotion, body: BodyMotion) -> float:
    """How far a person was moved up to stand on the floor, metres."""
    if motion.frame != "camera" or not np.isfinite(body.error).any():
        return 0.0
    joints = [i for i, name in enumerate(H36M17.joints) if name in PLACES]
    places = [body.joints.index(PLACES[H36M17.joints[i]]) for i in joints]
    heights = person.positions[:, joints] @ TO_Y_UP[motion.frame][1]
    return float(np.nanmedian(forward_positions(body)[:, places, 1] - heights))


def _spans(frames: NDArray[np.bool_]) -> list[list[int]]:
    """First and last frame of each uninterrupted part, as JSON."""
    return [[run.start, run.stop - 1] for run in true_runs(frames)]


def bvh_text(
    body: BodyMotion, fps: float, *, names: Mapping[str, str], unit: str = "cm", up: str = "y"
) -> str:
    """The text of a BVH file.

    The root has six channels, and its OFFSET is zero: programs do not agree whether its position
    replaces the offset. The others have three: ZYX in the legs, which hips and knees can bend past
    90 degrees, else ZXY.

    Args:
        body: Motion of one person.
        fps: Frames per second, Hz.
        names: Joint of the body -> name in the file.
        unit: Unit of lengths, `cm` or `m`.
        up: Axis that points up, `y` or `z`.
    """
    turn = np.eye(3) if up == "y" else Y_UP_TO_Z_UP
    scale = UNITS[unit]
    order = _walk(body.parents)
    lines = ["HIERARCHY"]
    offsets = body.offsets @ turn.T * scale
    offsets[0] = 0.0
    _write_joint(
        lines, 0, body, offsets, {j: e @ turn.T * scale for j, e in body.ends.items()}, names
    )
    quaternions = body.rotations.copy()
    quaternions[..., 1:] = quaternions[..., 1:] @ turn.T
    angles = np.degrees(euler_angles(quaternions, [_channels(name) for name in body.joints]))
    values = np.concatenate(
        [body.root @ turn.T * scale, angles[:, order].reshape(len(angles), -1)], axis=1
    )
    lines += ["MOTION", f"Frames: {len(values)}", f"Frame Time: {1 / fps:.8f}"]
    row = " ".join([f"%.{_DECIMALS}f"] * values.shape[1])
    values = np.round(values, _DECIMALS) + 0.0  # no -0.0
    lines += [row % tuple(frame) for frame in values.tolist()]
    return "\n".join(lines) + "\n"


def _channels(name: str) -> str:
    """Order of the three rotations of a joint."""
    return "ZYX" if name.endswith(("Leg", "Foot")) else "ZXY"


def _walk(parents: tuple[int, ...], joint: int = 0) -> list[int]:
    """Joints in the order in which a file has them: each before its children."""
    below = [_walk(parents, child) for child, parent in enumerate(parents) if parent == joint]
    return [joint, *(one for walk in below for one in walk)]


def _write_joint(
    lines: list[str],
    joint: int,
    body: BodyMotion,
    offsets: Array,
    ends: Mapping[int, Array],
    names: Mapping[str, str],
    depth: int = 0,
) -> None:
    """Append the lines of a joint and of all below it."""
    tabs = "\t" * depth
    name = body.joints[joint]
    rotations = " ".join(f"{axis}rotation" for axis in _channels(name))
    positions = "" if depth else "Xposition Yposition Zposition "
    lines += [
        f"{tabs}{'JOINT' if depth else 'ROOT'} {names[name]}",
        f"{tabs}{{",
        f"{tabs}\tOFFSET {_numbers(offsets[joint])}",
        f"{tabs}\tCHANNELS {3 if depth else 6} {positions}{rotations}",
    ]
    for child, parent in enumerate(body.parents):
        if parent == joint:
            _write_joint(lines, child, body, offsets, ends, names, depth + 1)
    if joint in ends:
        offset = f"{tabs}\t\tOFFSET {_numbers(ends[joint])}"
        lines += [f"{tabs}\tEnd Site", f"{tabs}\t{{", offset, f"{tabs}\t}}"]
    lines.append(f"{tabs}}}")


def _numbers(vector: Array) -> str:
    """Plain decimals with single spaces between them."""
    return " ".join(f"{x:.{_DECIMALS}f}" for x in np.round(vector, _DECIMALS) + 0.0)


def euler_angles(quaternions: Array, orders: list[str]) -> Array:
    """Angles of rotations about moving axes, continuous over time, radians, (T, B, 3).

    Of the two triples that give a rotation, that which is nearer to the frame before it is taken,
    and each angle goes on past 180 degrees.

    Args:
        quaternions: Unit quaternions w, x, y, z, (T, B, 4).
        orders: Order of the axes of each joint, as `ZXY`: the rotation is Z @ X @ Y.
    """
    matrices = rotation_from_quaternion(quaternions)  # (T, B, 3, 3)
    axes = np.array([["XYZ".index(axis) for axis in order] for order in orders])  # (B, 3)
    sign = np.where((axes[:, 1] - axes[:, 0]) % 3 == 1, 1.0, -1.0)
    joint = np.arange(len(orders))
    # the axes in the order of each joint: entries as those of X @ Y @ Z
    M = matrices[:, joint[:, None, None], axes[:, :, None], axes[:, None, :]]
    first = np.arctan2(-sign * M[..., 1, 2], M[..., 2, 2])
    middle = np.arcsin(np.clip(sign * M[..., 0, 2], -1, 1))
    last = np.arctan2(-sign * M[..., 0, 1], M[..., 0, 0])
    one = np.stack([first, middle, last], axis=-1)
    other = np.stack([first + np.pi, np.pi - middle, last + np.pi], axis=-1)
    flat = np.hypot(M[..., 0, 0], M[..., 0, 1]) < _FLAT
    angles = np.empty_like(one)
    before = np.zeros(one.shape[1:])
    for t in range(len(one)):
        choices = np.stack([one[t], other[t]])
        if flat[t].any():
            choices[:, flat[t]] = _flat_angles(M[t], one[t], before, sign)[flat[t]]
        choices += 2 * np.pi * np.round((before - choices) / (2 * np.pi))
        steps = ((choices - before) ** 2).sum(-1)
        before = np.where((steps[0] <= steps[1])[:, None], choices[0], choices[1])
        angles[t] = before
    return angles


def _flat_angles(M: Array, angles: Array, before: Array, sign: Array) -> Array:
    """Angles of one frame, (B, 3), where the first and last axis are parallel: the first one stays.

    Args:
        M: Rotations, axes in the order of each joint, (B, 3, 3).
        angles: Angles, of which the middle ones are right, radians, (B, 3).
        before: Angles of the frame before, radians, (B, 3).
        sign: 1 where the order of the axes is right-handed, else -1, (B,).
    """
    cos, sin = np.cos(before[:, 0]), sign * np.sin(before[:, 0])
    # row 1 of the rotation without the first one: (sign * sin(last), cos(last), 0)
    left, own = (cos * M[:, 1, i] + sin * M[:, 2, i] for i in (0, 1))
    return np.stack([before[:, 0], angles[:, 1], np.arctan2(sign * left, own)], axis=-1)
