"""AMASS: SMPL-H parameters in npz files, turned into joints by a body model that the user has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.archive import Npz
from pipeline.files.pickles import check_array

BODY22 = (
    *("pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2"),
    *("left_ankle", "right_ankle", "spine3", "left_foot", "right_foot", "neck", "left_collar"),
    *("right_collar", "head", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow"),
    *("left_wrist", "right_wrist"),
)
"""SMPL-H's joints without the hands, in its order."""

CHUNK = 256
"""Frames whose surface is in memory at once: 6,890 points each."""


@dataclass(frozen=True, eq=False)
class SmplMotion:
    """Parameters of one recording.

    Args:
        poses: Rotation vectors of the joints, (T, K, 3).
        shift: Of the root, metres, (T, 3).
        shape: Of the body, (S,).
        fps: Frames per second, Hz.
    """

    poses: NDArray[np.float64]
    shift: NDArray[np.float64]
    shape: NDArray[np.float64]
    fps: float


@dataclass(frozen=True, eq=False)
class BodyModel:
    """SMPL-H's arrays that joints and surface depend on; V points, K joints, S shapes.

    Args:
        surface: The mean body, metres, (V, 3).
        shapes: What each shape adds, (V, 3, S).
        corrections: What bent joints add, (V, 3, 9 (K - 1)).
        regressor: Points -> joints, (K, V).
        weights: How far each point follows each joint, (V, K).
        parents: Index of each joint's parent, -1 for the root.
    """

    surface: NDArray[np.float64]
    shapes: NDArray[np.float64]
    corrections: NDArray[np.float64]
    regressor: NDArray[np.float64]
    weights: NDArray[np.float64]
    parents: tuple[int, ...]


def read_motion(path: Path) -> SmplMotion:
    """The parameters of an AMASS file: `poses`, `trans`, `betas`, `mocap_framerate`.

    Raises:
        DataError: If it is no such file.
    """
    archive = Npz(path)
    rates = [name for name in ("mocap_framerate", "mocap_frame_rate") if name in archive.names]
    if not rates:
        raise DataError(f"{path}: has no mocap_framerate; is it a file of AMASS?")
    rate = archive.array(rates[0])
    fps = float(rate.flat[0]) if rate.size == 1 and rate.dtype.kind in "iuf" else 0.0
    if not 1 <= fps <= 1000:
        raise DataError(f"{path}: {rates[0]} is no rate of frames")
    poses = check_array(archive.array("poses"), (None, None), f"{path}: poses")
    if poses.shape[1] % 3 or poses.shape[1] < 3 * len(BODY22):
        raise DataError(f"{path}: poses has {poses.shape[1]} numbers per frame, not 3 per joint")
    shift = check_array(archive.array("trans"), (len(poses), 3), f"{path}: trans")
    shape = check_array(archive.array("betas"), (None,), f"{path}: betas")
    turns = poses.reshape(len(poses), -1, 3).astype(np.float64)
    return SmplMotion(turns, shift.astype(np.float64), shape.astype(np.float64), fps)


def read_body_model(path: Path) -> BodyModel:
    """A body model from the npz file that its makers give out (SMPL-H: `model.npz`).

    Raises:
        DataError: If it is no such file.
    """
    archive = Npz(path)
    surface = check_array(archive.array("v_template"), (None, 3), f"{path}: v_template")
    V = len(surface)
    regressor = check_array(archive.array("J_regressor"), (None, V), f"{path}: J_regressor")
    K = len(regressor)
    weights = check_array(archive.array("weights"), (V, K), f"{path}: weights")
    shapes = check_array(archive.array("shapedirs"), (V, 3, None), f"{path}: shapedirs")
    corrections = check_array(archive.array("posedirs"), (V, 3, 9 * (K - 1)), f"{path}: posedirs")
    tree = archive.array("kintree_table")
    if tree.shape != (2, K) or tree.dtype.kind not in "iu":
        raise DataError(f"{path}: kintree_table has the shape {tree.shape}, not (2, {K})")
    parents = (-1, *(int(parent) for parent in tree[0, 1:]))
    if any(not 0 <= parent < child for child, parent in enumerate(parents) if child):
        raise DataError(f"{path}: kintree_table names a joint before its parent")
    return BodyModel(
        surface=surface.astype(np.float64),
        shapes=shapes.astype(np.float64),
        corrections=corrections.astype(np.float64),
        regressor=regressor.astype(np.float64),
        weights=weights.astype(np.float64),
        parents=parents,
    )


def smpl_joints(
    motion: SmplMotion, body: BodyModel, regressor: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """Joints of a motion in the world, metres, z up as in the files, (T, J, 3).

    Args:
        motion: Parameters.
        body: The model that they are parameters of.
        regressor: Points of the surface -> joints, (J, V), as the user has one for Human3.6M's
            joints; none for the model's own, the first of which are `BODY22`.

    Raises:
        DataError: If motion and model do not fit.

    Source: Loper et al. 2015, equations 2 to 10; Romero et al. 2017 for the hands.
    """
    K, T = len(body.parents), len(motion.poses)
    if motion.poses.shape[1] < K:
        raise DataError(f"the motion turns {motion.poses.shape[1]} joints, the body model has {K}")
    S = min(len(motion.shape), body.shapes.shape[2])
    rest = body.surface + body.shapes[..., :S] @ motion.shape[:S]
    starts = body.regressor @ rest
    chunks = [slice(start, start + CHUNK) for start in range(0, T, CHUNK)]
    found = [_chunk(motion, body, rest, starts, regressor, chunk) for chunk in chunks]
    return np.concatenate(found)


def _chunk(
    motion: SmplMotion,
    body: BodyModel,
    rest: NDArray[np.float64],
    starts: NDArray[np.float64],
    regressor: NDArray[np.floating] | None,
    chunk: slice,
) -> NDArray[np.float64]:
    K = len(body.parents)
    local = rotation_matrices(motion.poses[chunk, :K])
    turns, places = local.copy(), np.repeat(starts[None], len(local), axis=0)
    for joint, parent in enumerate(body.parents):
        if parent >= 0:
            turns[:, joint] = turns[:, parent] @ local[:, joint]
            bone = starts[joint] - starts[parent]
            places[:, joint] = places[:, parent] + turns[:, parent] @ bone
    shift = motion.shift[chunk, None]
    if regressor is None:
        return places + shift
    bent = (local[:, 1:] - np.eye(3)).reshape(len(local), -1)
    points = rest + np.einsum("vcp,tp->tvc", body.corrections, bent, optimize=True)
    moved = places - np.einsum("tkij,kj->tki", turns, starts)
    blend = np.einsum("vk,tkij->tvij", body.weights, turns, optimize=True)
    skin = np.einsum("tvij,tvj->tvi", blend, points) + body.weights @ moved
    return np.asarray(regressor, np.float64) @ skin + shift


def rotation_matrices(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrices of rotation vectors, (..., 3) -> (..., 3, 3), by Rodrigues' formula."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1)
    cross = cross.reshape(*vectors.shape, 3)
    sine, cosine = np.sinc(angle / np.pi), 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + sine * cross + cosine * (cross @ cross)


def read_regressor(path: Path, points: int) -> NDArray[np.float32]:
    """A regressor (J, V) from an npz file with one array.

    Raises:
        DataError: If it is no such file.
    """
    archive = Npz(path)
    if len(archive.names) != 1:
        raise DataError(f"{path}: holds {', '.join(archive.names)}; one array is expected")
    return check_array(archive.array(archive.names[0]), (None, points), f"{path}: regressor")
