"""The mesh of a simple body: capsules that follow the bones of a rest skeleton, and a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.export.inverse_kinematics import BodyMotion

Array = NDArray[np.float64]

SIDES, RINGS = 14, 4
"""Corners around a capsule, and rings in each of its two round ends."""

_LIMBS = {
    ("Spine", "Chest"): (0.068, 0.084, 0.68),
    ("Chest", "Neck"): (0.086, 0.052, 0.7),
    ("Shoulder", "Arm"): (0.045, 0.036, 0.9),
    ("Arm", "ForeArm"): (0.032, 0.024, 1.0),
    ("ForeArm", "Hand"): (0.024, 0.017, 1.0),
    ("UpLeg", "Leg"): (0.052, 0.034, 1.0),
    ("Leg", "Foot"): (0.034, 0.023, 1.0),
}
"""First and last joint of a capsule (without the side) -> radius at both, as shares of the height,
and depth as a share of the width. Chosen by eye, so that a body looks like one."""

_HIPS, _NECK, _WRIST, _FINGERS, _HEEL, _TOES = 0.062, 0.03, 0.02, 0.014, 0.021, 0.017
_SKULL, _JAW, _FACE = 0.054, 0.042, 0.075  # radii, and the distance of their centres


class _Part(NamedTuple):
    """A capsule: the joint that it follows, two centres (3,), two radii, depth over width."""

    joint: str
    start: Array
    end: Array
    near: float
    far: float
    depth: float = 1.0


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles of a body at rest; each closed part follows one joint.

    Args:
        points: Corners, metres, y up, (V, 3).
        normals: Outward unit vectors, (V, 3).
        joints: Joint that each corner follows, (V,).
        triangles: Corners of each triangle, counter-clockwise seen from outside, (F, 3).
    """

    points: Array
    normals: Array
    joints: NDArray[np.int64]
    triangles: NDArray[np.int64]


def rest_positions(body: BodyMotion) -> Array:
    """Positions of the joints of a body at rest, metres, (B, 3)."""
    places = body.offsets.copy()
    for joint, parent in enumerate(body.parents):
        if parent >= 0:
            places[joint] += places[parent]
    return places


def make_body_mesh(body: BodyMotion) -> Mesh:
    """The mesh of a body at rest, from the soles at y = 0 to the top of the head."""
    points, normals, joints, triangles = [], [], [], []
    count = 0
    for part in _body_parts(body):
        corners, outward, faces = _capsule(part)
        points.append(corners)
        normals.append(outward)
        joints.append(np.full(len(corners), body.joints.index(part.joint)))
        triangles.append(faces + count)
        count += len(corners)
    return Mesh(
        np.concatenate(points),
        np.concatenate(normals),
        np.concatenate(joints),
        np.concatenate(triangles),
    )


def _body_parts(body: BodyMotion) -> list[_Part]:
    """The capsules of a body at rest."""
    at = dict(zip(body.joints, rest_positions(body), strict=True))
    ends = {name: at[name] + body.ends.get(i, 0.0) for i, name in enumerate(body.joints)}
    height = float(ends["Head"][1])
    left, right = ((at["Hips"] + at[f"{side}UpLeg"]) / 2 for side in ("Left", "Right"))
    parts = [_Part("Hips", left, right, _HIPS, _HIPS, 0.8)]
    for (first, last), (near, far, depth) in _LIMBS.items():
        for side in ("",) if first in at else ("Left", "Right"):
            joint, end = side + first, side + last
            parts.append(_Part(joint, at[joint], at[end], near, far, depth))
    skull = ends["Head"] - (0, _SKULL * height, 0)
    jaw = skull - (0, _FACE * height, 0)
    parts += [
        _Part("Head", jaw, skull, _JAW, _SKULL),
        _Part("Neck", at["Neck"], jaw, _NECK, _NECK),
    ]
    for side in ("Left", "Right"):
        hand, foot = f"{side}Hand", f"{side}Foot"
        fingers = ends[hand] - (np.sign(ends[hand][0]) * _FINGERS * height, 0, 0)
        heel = at[foot] * (1, 0, 1) + np.array([0, _HEEL, 0]) * height
        toes = ends[foot] + np.array([0, _TOES, -_TOES]) * height
        parts += [
            _Part(hand, at[hand], fingers, _WRIST, _FINGERS),
            _Part(foot, heel, toes, _HEEL, _TOES),
        ]
    return [_Part(p.joint, p.start, p.end, p.near * height, p.far * height, p.depth) for p in parts]


def _capsule(part: _Part) -> tuple[Array, Array, NDArray[np.int64]]:
    """Corners, normals and triangles of two spheres and the cone around them, closed."""
    _, start, end, near, far, depth = part
    length = float(np.linalg.norm(end - start))
    along = (end - start) / length if length > 0 else np.array([0.0, 1.0, 0.0])
    across = np.eye(3)[np.argmin(np.abs(along))]
    across = np.cross(along, across)
    across /= np.linalg.norm(across)
    # where the cone touches both spheres; the larger one alone where it encloses the other
    touch = np.arcsin(np.clip((near - far) / max(length, 1e-9), -0.99, 0.99))
    latitude = np.r_[
        np.linspace(-np.pi / 2, touch, RINGS + 1), np.linspace(touch, np.pi / 2, RINGS + 1)
    ]
    around = np.arange(SIDES) * 2 * np.pi / SIDES
    ring = np.cos(around)[:, None] * across + np.sin(around)[:, None] * np.cross(along, across)
    normals = np.cos(latitude)[:, None, None] * ring + np.sin(latitude)[:, None, None] * along
    first = np.arange(len(latitude)) <= RINGS
    centres = np.where(first[:, None], start, end)[:, None]
    points = centres + np.where(first, near, far)[:, None, None] * normals
    axis_z = centres[..., 2]
    points[..., 2] = axis_z + depth * (points[..., 2] - axis_z)
    normals = normals * (1, 1, 1 / depth)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return _with_poles(points), _with_poles(normals), _triangles(len(latitude) - 2)


def _with_poles(values: Array) -> Array:
    """Values of all corners, with one corner at each pole: first pole, rings, last pole."""
    return np.concatenate([values[0, :1], values[1:-1].reshape(-1, 3), values[-1, :1]])


def _triangles(rings: int) -> NDArray[np.int64]:
    """Triangles between the first pole, rings of `SIDES` corners, and the last pole."""
    one = np.arange(SIDES)
    two = (one + 1) % SIDES
    last = 1 + rings * SIDES
    top = 1 + (rings - 1) * SIDES
    faces = [np.stack([0 * one, 1 + two, 1 + one], 1)]
    for low in range(1, top, SIDES):
        high = low + SIDES
        faces.append(np.stack([low + one, low + two, high + two], 1))
        faces.append(np.stack([low + one, high + two, high + one], 1))
    faces.append(np.stack([0 * one + last, top + one, top + two], 1))
    return np.concatenate(faces)
