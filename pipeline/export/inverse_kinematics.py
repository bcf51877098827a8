"""Inverse kinematics: the rotations of a body with constant bones that follow a motion's joints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from pipeline.camera import rotation_from_quaternion
from pipeline.errors import UsageError
from pipeline.export.body_frames import HINGES, LEFT, UP, bone_frames, hold_last, rotation, unit
from pipeline.export.frames import Frame
from pipeline.export.motion_data import MotionData, PersonMotion
from pipeline.export.rest_skeleton import JOINTS, PARENTS, PLACES, RestSkeleton, rest_skeleton
from pipeline.skeleton import H36M17

Array = NDArray[np.float64]

TO_Y_UP: dict[Frame, Array] = {
    "camera": np.diag([1.0, -1.0, -1.0]),
    "world": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
}
"""Frame of reference -> rotation to x right, y up, z towards the camera (no mirror image): by 180
degrees about x for the camera's x right, y down, z forward; by -90 for the world's z up."""

FLOOR_QUANTILE = 0.05
"""Share of the frames in which the lower foot may be below the floor, where no floor is known."""

_TRUST = 0.01
"""Error of the joints that turns a bone by one radian from where it began, metres."""
_TRUST_TWIST = 0.02
"""The same about the line of upper arms and thighs, whose twist is seen only where they bend."""
_ITERATIONS, _DONE = 12, 1e-5
_FRAMES_AT_ONCE = 256  # bounds the memory of the derivatives
_FALLBACK_HEIGHT = 1.7


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
    offsets: Array
    ends: Mapping[int, Array]
    root: Array
    rotations: Array
    error: Array


def fit_body(
    motion: MotionData, person: PersonMotion, *, height: float | None = None
) -> BodyMotion:
    """Rotations of a body with constant bones that follow the joints of a person, y up.

    The bones have the person's median lengths. The rotations are those that leave the smallest sum
    of squared distances to the joints, with elbows and knees that bend one way, found by
    Levenberg's and Marquardt's method in each frame. Missing frames have the last pose before
    them, the first ones that of the first frame in which the person is there; joints that are
    missing in some frames follow their bone from before to after.

    In the camera's frame of reference there is no floor: the person is moved up or down so that the
    lower foot is on y = 0 in all but 5 % of the frames.

    Args:
        motion: The motion, of the joints of H36M17.
        person: One of its people.
        height: Height that gives the length of bones that are never seen, metres; that of the
            person by default.

    Raises:
        UsageError: If the motion has other joints.
    """
    if motion.skeleton.joints != H36M17.joints:
        raise UsageError(
            f"the motion has the joints of {motion.skeleton.name}, and rotations are known for "
            f"{H36M17.name}; export it as npz, json, csv or trc"
        )
    points = person.positions.astype(np.float64) @ TO_Y_UP[motion.frame].T
    points[~np.isfinite(points).all(-1)] = np.nan
    there = person.present & np.isfinite(points).any((1, 2))
    height = person.height if height is None else height
    rest = rest_skeleton(points[there], height if height > 0 else _FALLBACK_HEIGHT)
    count = len(points)
    root = np.tile(rest.offsets[0], (count, 1))
    rotations = np.zeros((count, len(JOINTS), 4))
    rotations[..., 0] = 1.0
    error = np.full((count, len(H36M17)), np.nan)
    if there.any():
        seen = points[there]
        fitted_root, local = _fit(seen, rest, motion.fps)
        error[there] = np.linalg.norm(_places(fitted_root, local, rest) - seen, axis=-1)
        if motion.frame == "camera":
            fitted_root[:, 1] -= _floor(fitted_root, local, rest)
        frame_of = (np.cumsum(there) - 1)[hold_last(there)]
        root, rotations = fitted_root[frame_of], _quaternions(local)[frame_of]
    return BodyMotion(JOINTS, PARENTS, rest.offsets, rest.ends, root, rotations, error)


def forward_positions(body: BodyMotion) -> Array:
    """Positions of all joints of a body in each frame, metres, y up, (T, B, 3)."""
    local = rotation_from_quaternion(body.rotations)
    return _forward(body.root, local, body.offsets, body.parents)[0]


def _forward(
    root: Array, local: Array, offsets: Array, parents: tuple[int, ...] = PARENTS
) -> tuple[Array, Array]:
    """Positions, (T, B, 3), and rotations in the world, (T, B, 3, 3), of all joints."""
    positions, world = np.empty(local.shape[:-1]), np.empty_like(local)
    for joint, parent in enumerate(parents):
        if parent < 0:
            positions[:, joint], world[:, joint] = root, local[:, joint]
        else:
            positions[:, joint] = positions[:, parent] + world[:, parent] @ offsets[joint]
            world[:, joint] = world[:, parent] @ local[:, joint]
    return positions, world


_HEAD = JOINTS.index("Head")
_PLACES = np.array([JOINTS.index(PLACES.get(name, "Head")) for name in H36M17.joints])
_TOP = H36M17.index("head")


def _places(root: Array, local: Array, rest: RestSkeleton) -> Array:
    """Where a body has the joints of H36M17, metres, (T, 17, 3)."""
    positions, world = _forward(root, local, rest.offsets)
    return _at_joints(positions, world, rest)


def _at_joints(positions: Array, world: Array, rest: RestSkeleton) -> Array:
    found = positions[:, _PLACES]
    found[:, _TOP] += world[:, _HEAD] @ rest.ends[_HEAD]
    return found


def _floor(root: Array, local: Array, rest: RestSkeleton) -> float:
    """Height of the floor under a person, from the heights of the lower ankle, metres."""
    feet = [H36M17.index("left_ankle"), H36M17.index("right_ankle")]
    lower = _places(root, local, rest)[:, feet, 1].min(axis=1)
    return float(np.quantile(lower, FLOOR_QUANTILE)) - rest.ankle_height


def _quaternions(local: Array) -> Array:
    """Quaternions w, x, y, z of rotations, (T, B, 4), whose sign is continuous over time."""
    found = Rotation.from_matrix(local.reshape(-1, 3, 3)).as_quat().reshape(*local.shape[:2], 4)
    found = np.roll(found, 1, axis=-1)
    found[0] *= np.where(found[0, :, :1] < 0, -1.0, 1.0)
    flips = (found[1:] * found[:-1]).sum(-1) < 0
    found[1:] *= np.where(np.cumsum(flips, axis=0) % 2, -1.0, 1.0)[..., None]
    return found


def _fill(points: Array) -> Array:
    """Joints, (T, 17, 3), without gaps: a missing one follows its bone from before to after.

    Pelvis, spine and neck that are never seen are made up; limbs, nose and head stay NaN.
    """
    filled = points.copy()
    at = {name: filled[:, i] for i, name in enumerate(H36M17.joints)}  # views
    for middle, one, other in (
        ("pelvis", "left_hip", "right_hip"),
        ("thorax", "left_shoulder", "right_shoulder"),
        ("spine", "pelvis", "thorax"),
    ):
        gaps = np.isnan(at[middle][:, 0])
        at[middle][gaps] = (at[one][gaps] + at[other][gaps]) / 2
    root = at["pelvis"]
    if np.isnan(root).all():
        root[:] = np.nanmean(points, axis=1)
    _interpolate(root)
    for parent, child in H36M17.bones:
        bone = filled[:, child] - filled[:, parent]
        _interpolate(bone)
        filled[:, child] = filled[:, parent] + bone
    for lower, upper, length in (("pelvis", "spine", 0.24), ("spine", "thorax", 0.25)):
        if np.isnan(at[upper]).any():
            at[upper][:] = at[lower] + length * UP
    for part, middle in (("hip", "pelvis"), ("shoulder", "thorax")):
        left, right = at[f"left_{part}"], at[f"right_{part}"]
        if np.isnan(left).any() and not np.isnan(right).any():
            left[:] = 2 * at[middle] - right
        elif np.isnan(right).any() and not np.isnan(left).any():
            right[:] = 2 * at[middle] - left
    for part, other, middle in (("hip", "shoulder", "pelvis"), ("shoulder", "hip", "thorax")):
        across = at[f"left_{other}"] - at[f"right_{other}"]
        across = unit(np.where(np.isnan(across), LEFT, across))
        for side, sign in (("left", 0.15), ("right", -0.15)):
            if np.isnan(at[f"{side}_{part}"]).any():
                at[f"{side}_{part}"][:] = at[middle] + sign * across
    return filled


def _interpolate(values: Array) -> None:
    """Fill gaps of a path, (T, 3), in place, on straight lines; a path without a point stays."""
    known = np.isfinite(values).all(-1)
    if known.any() and not known.all():
        times = np.arange(len(values))
        for axis in range(3):
            values[~known, axis] = np.interp(times[~known], times[known], values[known, axis])


def _fit(points: Array, rest: RestSkeleton, fps: float) -> tuple[Array, Array]:
    """Positions of the root, (T, 3), and rotations of all joints to their parents, (T, B, 3, 3).

    Args:
        points: Joints of H36M17, metres, y up, (T, 17, 3); NaN where missing.
        rest: The skeleton.
        fps: Frames per second, Hz.
    """
    filled = _fill(points)
    world, hinges = bone_frames(filled, rest, fps)
    local = world.copy()
    for joint, parent in enumerate(PARENTS):
        if parent >= 0:
            local[:, joint] = world[:, parent].transpose(0, 2, 1) @ world[:, joint]
    root = filled[:, 0].copy()
    for start in range(0, len(points), _FRAMES_AT_ONCE):
        part = slice(start, start + _FRAMES_AT_ONCE)
        _refine(points[part], rest, root[part], local[part], hinges[part])
    return root, local


def _freedoms() -> tuple[NDArray[np.int64], Array, Array, dict[int, int]]:
    """Freedoms of joints to turn: joint, (N,), axis, (N, 3), trust, (N,); freedom -> its hinge."""
    rows: list[tuple[int, Array, float]] = []
    hinges = {}
    for index, name in enumerate(JOINTS):
        if name in HINGES:
            hinges[len(rows)] = list(HINGES).index(name)
            rows.append((index, HINGES[name][0], _TRUST))
        elif not name.endswith(("Hand", "Foot")):
            trust = np.full(3, _TRUST)
            if name.endswith(("Arm", "UpLeg")):
                trust[0 if name.endswith("Arm") else 1] = _TRUST_TWIST
            rows += [(index, np.eye(3)[axis], trust[axis]) for axis in range(3)]
    joints, axes, trusts = ([row[i] for row in rows] for i in range(3))
    return np.array(joints), np.array(axes), np.array(trusts), hinges


_JOINT, _AXIS, _PRIOR, _HINGE = _freedoms()
_LOW, _HIGH = np.radians([[low, high] for _, low, high in HINGES.values()]).T
_HINGE_COLUMNS = np.array(list(_HINGE))
_HINGE_ORDER = np.array(list(_HINGE.values()))


def _moved_joints() -> NDArray[np.bool_]:
    """Whether a joint of H36M17 moves with each freedom, (17, N)."""
    moved = np.zeros((len(H36M17), len(_JOINT)), bool)
    for place, joint in enumerate(_PLACES):
        above = {_HEAD} if place == _TOP else set[int]()
        while (joint := PARENTS[joint]) >= 0:
            above.add(int(joint))
        moved[place] = np.isin(_JOINT, list(above))
    return moved


_MOVED = _moved_joints()


def _refine(points: Array, rest: RestSkeleton, root: Array, local: Array, hinges: Array) -> None:
    """Move the root and turn the joints to the least squares of the distances, in place.

    Args:
        points: Joints of H36M17, metres, y up, (T, 17, 3); NaN where missing.
        rest: The skeleton.
        root: Positions of the root, metres, (T, 3).
        local: Rotations relative to the parents, (T, B, 3, 3).
        hinges: Angles of `HINGES`, radians, (T, 5).
    """
    count, N = len(points), len(_JOINT)
    known = np.isfinite(points)
    wanted = np.where(known, points, 0.0)
    turned = np.zeros((count, N))  # from where they began, radians
    prior = np.concatenate([np.full(3, 1e-6), _PRIOR**2])
    damping = np.full(count, 1e-3)
    busy = np.arange(count)
    state = _forward(root, local, rest.offsets)
    cost = _cost(*state, rest, wanted, known, turned)
    for _ in range(_ITERATIONS):
        positions, world = state[0][busy], state[1][busy]
        residual = np.where(known[busy], wanted[busy] - _at_joints(positions, world, rest), 0.0)
        J = _derivatives(positions, world, rest) * known[busy].reshape(len(busy), -1, 1)
        gradient = np.einsum("tij,ti->tj", J, residual.reshape(len(busy), -1))
        gradient[:, 3:] -= _PRIOR**2 * turned[busy]
        A = J.transpose(0, 2, 1) @ J
        own = 3 + _HINGE_COLUMNS
        bent, push = hinges[busy][:, _HINGE_ORDER], gradient[:, own]
        low, high = _LOW[_HINGE_ORDER], _HIGH[_HINGE_ORDER]
        fixed = np.zeros(gradient.shape, bool)
        fixed[:, own] = ((bent <= low) & (push < 0)) | ((bent >= high) & (push > 0))
        A = np.where(fixed[:, :, None] | fixed[:, None, :], 0.0, A)
        diagonal = prior + damping[busy, None] + fixed
        A[:, np.arange(N + 3), np.arange(N + 3)] += diagonal
        step = np.linalg.solve(A, np.where(fixed, 0.0, gradient)[..., None])[..., 0]
        step[:, own] = np.clip(bent + step[:, own], low, high) - bent
        new_root, new_turned = root[busy] + step[:, :3], turned[busy] + step[:, 3:]
        new_local = _turn_joints(local[busy], np.asarray(step[:, 3:]))
        new_state = _forward(new_root, new_local, rest.offsets)
        new_cost = _cost(*new_state, rest, wanted[busy], known[busy], new_turned)
        better = new_cost <= cost[busy]
        kept = busy[better]
        root[kept], local[kept], turned[kept] = (
            new_root[better], new_local[better], new_turned[better],
        )  # fmt: skip
        hinges[np.ix_(kept, _HINGE_ORDER)] += step[better][:, own]
        state[0][kept], state[1][kept] = new_state[0][better], new_state[1][better]
        cost[kept] = new_cost[better]
        damping[busy] = np.where(better, damping[busy] / 30, damping[busy] * 30)
        small = np.abs(step).max(axis=1) < _DONE
        busy = busy[~(small & better) & (damping[busy] < 1e3)]
        if not len(busy):
            break


def _cost(
    positions: Array,
    world: Array,
    rest: RestSkeleton,
    wanted: Array,
    known: NDArray[np.bool_],
    turned: Array,
) -> Array:
    """Sum of squared distances to the joints, and of the turns weighted by trust, (T,)."""
    residual = np.where(known, wanted - _at_joints(positions, world, rest), 0.0)
    return (residual**2).sum((1, 2)) + ((_PRIOR * turned) ** 2).sum(1)


def _derivatives(positions: Array, world: Array, rest: RestSkeleton) -> Array:
    """Derivatives of the joints by the root's position and all freedoms, (T, 51, 3 + N)."""
    points = _at_joints(positions, world, rest)
    axes = np.einsum("tnij,nj->tni", world[:, _JOINT], _AXIS)
    arms = points[:, :, None] - positions[:, _JOINT][:, None]  # (T, 17, N, 3)
    turns = np.empty((len(points), len(H36M17), 3, 3 + len(_JOINT)))
    turns[..., :3] = np.eye(3)
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        cross = axes[:, None, :, j] * arms[..., k] - axes[:, None, :, k] * arms[..., j]
        turns[:, :, i, 3:] = cross * _MOVED
    return turns.reshape(len(points), -1, 3 + len(_JOINT))


def _turn_joints(local: Array, steps: Array) -> Array:
    """Rotations, (T, B, 3, 3), turned about the axes of all freedoms by angles, (T, N)."""
    vectors = np.zeros((len(local), len(_JOINT), len(JOINTS), 3))
    vectors[:, np.arange(len(_JOINT)), _JOINT] = steps[..., None] * _AXIS
    return local @ rotation(vectors.sum(axis=1))
