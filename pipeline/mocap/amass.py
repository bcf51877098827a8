"""AMASS: SMPL-H parameters from npz files, converted to joints by a body model file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.archive import Npz, check_array
from pipeline.mocap.mapping import SLOWEST_MOTION

BODY22 = (
    *("pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2"),
    *("left_ankle", "right_ankle", "spine3", "left_foot", "right_foot", "neck", "left_collar"),
    *("right_collar", "head", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow"),
    *("left_wrist", "right_wrist"),
)
"""Joints of SMPL-H without the hands, in its order."""

RATES = ("mocap_framerate", "mocap_frame_rate")
"""Names that the frame rate has in AMASS files; some have both."""
MODELS = {24: "SMPL", 52: "SMPL-H", 55: "SMPL-X"}
"""Number of joints -> body model."""

CHUNK = 256
"""Number of frames whose surface is in memory at once, 6,890 points per frame."""


@dataclass(frozen=True, eq=False)
class SmplMotion:
    """SMPL-H parameters of one recording.

    Args:
        poses: Rotation vectors of the joints, radians, (T, K, 3).
        translation: Translation of the root, metres, (T, 3).
        shape: Shape coefficients of the body, (S,).
        fps: Frames per second, Hz.
        model: Name of the body model that the file states, or empty.
    """

    poses: NDArray[np.float64]
    translation: NDArray[np.float64]
    shape: NDArray[np.float64]
    fps: float
    model: str = ""


@dataclass(frozen=True, eq=False)
class BodyModel:
    """Arrays of an SMPL-H model, for V surface points, K joints and S shape coefficients.

    Args:
        surface: Surface of the mean body, metres, (V, 3).
        shapes: Displacement of the points per shape coefficient, (V, 3, S).
        corrections: Displacement of the points per rotation matrix entry, (V, 3, 9 (K - 1)).
        regressor: Matrix from surface points to joints, (K, V).
        weights: Skinning weights of the joints for each point, (V, K).
        parents: Index of each joint's parent, -1 for the root.
    """

    surface: NDArray[np.float64]
    shapes: NDArray[np.float64]
    corrections: NDArray[np.float64]
    regressor: NDArray[np.float64]
    weights: NDArray[np.float64]
    parents: tuple[int, ...]


def read_motion(path: Path, fps: float | None = None) -> SmplMotion:
    """Read `poses`, `trans`, `betas`, the frame rate and the model from an AMASS file.

    Args:
        path: The npz file.
        fps: Frame rate, Hz, for a file without one; a file with several must have this among them.

    Raises:
        DataError: If the file is not an AMASS file, or its frame rate is not known.
    """
    archive = Npz(path)
    fps = _frame_rate(archive, path, fps)
    poses = check_array(archive.array("poses"), (None, None), f"{path}: poses")
    if poses.shape[1] % 3 or poses.shape[1] < 3 * len(BODY22):
        raise DataError(f"{path}: poses has {poses.shape[1]} numbers per frame, not 3 per joint")
    translation = check_array(archive.array("trans"), (len(poses), 3), f"{path}: trans")
    shape = check_array(archive.array("betas"), (None,), f"{path}: betas")
    model = _text(archive, "surface_model_type")
    rotations = poses.reshape(len(poses), -1, 3).astype(np.float64)
    return SmplMotion(
        rotations, translation.astype(np.float64), shape.astype(np.float64), fps, model
    )


def _frame_rate(archive: Npz, path: Path, given: float | None) -> float:
    """Frame rate of an AMASS file, Hz; `given` is the one of the command line.

    Raises:
        DataError: If there is none, or two that differ.
    """
    rates: dict[str, float] = {}
    for name in RATES:
        if name in archive.names:
            rate = archive.array(name)
            fps = float(rate.flat[0]) if rate.size == 1 and rate.dtype.kind in "iuf" else 0.0
            if not SLOWEST_MOTION <= fps <= 1000:
                raise DataError(
                    f"{path}: {name} is {fps:g}; a rate from {SLOWEST_MOTION:g} to 1000 is expected"
                )
            rates[name] = fps
    if given is not None and (not rates or given in rates.values()):
        return given
    listed = " and ".join(f"{name} {fps:g}" for name, fps in rates.items())
    if given is not None:
        raise DataError(f"{path}: has {listed}, not the {given:g} of --fps; leave --fps out")
    if not rates:
        raise DataError(
            f"{path}: has no {RATES[0]}; if it is a file of AMASS, give its rate, as in --fps 120"
        )
    if len(set(rates.values())) > 1:
        raise DataError(f"{path}: has two frame rates, {listed}; give the right one with --fps")
    return next(iter(rates.values()))


def _text(archive: Npz, name: str) -> str:
    """A text in an npz file; empty if there is none."""
    value = archive.array(name) if name in archive.names else np.array("")
    return str(value.flat[0]) if value.size == 1 and value.dtype.kind == "U" else ""


def require_same_model(motion: SmplMotion, body: BodyModel, path: Path) -> None:
    """Check that the parameters of a motion belong to a body model.

    The coefficients of a shape mean something else in another model, and so do the joints after
    the first 22.

    Raises:
        DataError: If the numbers of joints differ, or the file names another model.
    """
    joints, needed = motion.poses.shape[1], len(body.parents)
    of_file = motion.model.upper() if motion.model else MODELS.get(joints, "another model")
    of_body = MODELS.get(needed, "another one")
    stated = motion.model.lower().replace("-", "").replace("+", "")
    named = stated and stated != of_body.lower().replace("-", "")
    if joints != needed or (named and needed in MODELS):
        raise DataError(
            f"{path}: has the parameters of {of_file}, {joints} joints, but the body model is "
            f"{of_body} with {needed}; give the body model that the file was made with"
        )


def read_body_model(path: Path) -> BodyModel:
    """Read a body model from the npz file as published (SMPL-H: `model.npz`).

    Raises:
        DataError: If the file is not a body model.
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
    """Joints of a motion, world metres, z up as in AMASS files, (T, J, 3).

    Args:
        motion: SMPL-H parameters of the recording.
        body: The body model that the parameters belong to.
        regressor: Matrix from surface points to joints, (J, V), for example for Human3.6M's joints;
            by default the joints are the model's own, of which the first are `BODY22`.

    Raises:
        DataError: If the motion has fewer joints than the body model.

    Source: Loper et al. 2015, equations 2 to 10; Romero et al. 2017 for the hands.
    """
    K, T = len(body.parents), len(motion.poses)
    if motion.poses.shape[1] < K:
        raise DataError(f"the motion turns {motion.poses.shape[1]} joints, the body model has {K}")
    S = min(len(motion.shape), body.shapes.shape[2])
    rest = body.surface + body.shapes[..., :S] @ motion.shape[:S]
    rest_joints = body.regressor @ rest
    chunks = [slice(start, start + CHUNK) for start in range(0, T, CHUNK)]
    return np.concatenate(
        [_chunk_joints(motion, body, rest, rest_joints, regressor, chunk) for chunk in chunks]
    )


def _chunk_joints(
    motion: SmplMotion,
    body: BodyModel,
    rest: NDArray[np.float64],
    rest_joints: NDArray[np.float64],
    regressor: NDArray[np.floating] | None,
    chunk: slice,
) -> NDArray[np.float64]:
    """Joints of some frames of a motion, from the surface and joints of the body at rest."""
    K = len(body.parents)
    local = rotation_matrices(motion.poses[chunk, :K])
    rotations, positions = local.copy(), np.repeat(rest_joints[None], len(local), axis=0)
    for joint, parent in enumerate(body.parents):
        if parent >= 0:
            rotations[:, joint] = rotations[:, parent] @ local[:, joint]
            bone = rest_joints[joint] - rest_joints[parent]
            positions[:, joint] = positions[:, parent] + rotations[:, parent] @ bone
    translation = motion.translation[chunk, None]
    if regressor is None:
        return positions + translation
    pose_features = (local[:, 1:] - np.eye(3)).reshape(len(local), -1)
    points = rest + np.einsum("vcp,tp->tvc", body.corrections, pose_features, optimize=True)
    offsets = positions - np.einsum("tkij,kj->tki", rotations, rest_joints)
    blended = np.einsum("vk,tkij->tvij", body.weights, rotations, optimize=True)
    surface = np.einsum("tvij,tvj->tvi", blended, points) + body.weights @ offsets
    return np.asarray(regressor, np.float64) @ surface + translation


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
    """Read a regressor (J, V) from an npz file with one array.

    Args:
        path: The npz file.
        points: Number of surface points, V.

    Raises:
        DataError: If the file has several arrays or one of another shape.
    """
    archive = Npz(path)
    if len(archive.names) != 1:
        raise DataError(f"{path}: holds {', '.join(archive.names)}; one array is expected")
    return check_array(archive.array(archive.names[0]), (None, points), f"{path}: regressor")
