"""Sequences prepared for a lifter: normalised 2D, visibility, root-relative 3D."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.camera import normalise, project, world_to_camera
from pipeline.errors import DataError
from pipeline.skeleton import Skeleton, conversion
from pipeline.sources import Sequence


@dataclass(frozen=True, eq=False)
class PreparedSequence:
    """One video as lifters see it.

    Args:
        sequence: Where it comes from.
        joints2d: Normalised 2D, (T, J, 2), float32; zero where not visible.
        visible: Which joints have a 2D position, (T, J).
        joints3d: Root-relative joints in the camera frame, metres, (T, J, 3), float32; none where
            unknown.
        valid: Frames that may be trained on and scored, (T,).
    """

    sequence: Sequence
    joints2d: NDArray[np.float32]
    visible: NDArray[np.bool_]
    joints3d: NDArray[np.float32] | None
    valid: NDArray[np.bool_]


def exact_joints2d(sequence: Sequence) -> NDArray[np.float64]:
    """Where the joints of a sequence are in its images, pixels, (T, J, 2), in its joint set.

    Raises:
        DataError: If it has neither 2D nor 3D joints.
    """
    if sequence.joints2d is not None:
        return sequence.joints2d.astype(np.float64)
    if sequence.joints3d is None:
        raise DataError(
            f"{sequence.name}: has neither 2D nor 3D joints; "
            "give `detections` a checkpoint or a file"
        )
    seen = world_to_camera(sequence.joints3d, sequence.camera)
    return np.asarray(project(seen, sequence.camera), np.float64)


def prepare_sequence(
    sequence: Sequence,
    skeleton: Skeleton,
    joints2d: NDArray[np.floating],
    score: NDArray[np.floating],
) -> PreparedSequence:
    """A video for a lifter, from pixels.

    Args:
        sequence: Gives camera, 3D and which frames are valid.
        skeleton: The lifter's joint set.
        joints2d: Pixels, (T, J, 2), in the lifter's joint set; NaN where missing.
        score: (T, J); 0 where missing.
    """
    visible = np.isfinite(joints2d).all(-1) & (score > 0)
    flat = normalise(np.where(visible[..., None], joints2d, 0.0), sequence.camera.size)
    joints3d = None
    if sequence.joints3d is not None:
        world = conversion(sequence.skeleton, skeleton).joints(sequence.joints3d)
        seen = world_to_camera(world, sequence.camera)
        joints3d = (seen - seen[:, skeleton.root, None]).astype(np.float32)
        _refuse_non_finite(sequence, joints3d)
    valid = np.ones(len(sequence), bool) if sequence.valid is None else sequence.valid
    return PreparedSequence(
        sequence,
        np.where(visible[..., None], flat, 0.0).astype(np.float32),
        visible,
        joints3d,
        valid,
    )


def _refuse_non_finite(sequence: Sequence, joints3d: NDArray[np.float32]) -> None:
    good = np.isfinite(joints3d).all((1, 2))
    if sequence.valid is not None:
        good |= ~sequence.valid
    if not good.all():
        frame = int(np.argmin(good))
        raise DataError(
            f"{sequence.name}: frame {frame} has a 3D joint that is not finite "
            f"({int((~good).sum())} such frames); repair it or mark those frames as not valid"
        )


def require_joints3d(track: PreparedSequence) -> NDArray[np.float32]:
    """3D joints of a track.

    Raises:
        DataError: If it has none.
    """
    if track.joints3d is None:
        raise DataError(
            f"{track.sequence.name}: has no 3D joints, so it cannot be trained on or scored"
        )
    return track.joints3d


def flip_joints(joints: torch.Tensor, swap: Many[int]) -> torch.Tensor:
    """Joints of a mirrored image, (..., J, C): x negated, left and right exchanged; a copy."""
    order = torch.as_tensor(swap, device=joints.device)
    mirrored = joints.index_select(-2, order)
    mirrored[..., 0].neg_()
    return mirrored
