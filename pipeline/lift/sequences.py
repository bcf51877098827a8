"""Sequences prepared for a lifter: normalised 2D, visibility, root-relative 3D."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.camera import CAMERA_FRAME, denormalise, normalise, project, world_to_camera
from pipeline.errors import DataError
from pipeline.lift.crop_camera import CropCamera
from pipeline.skeleton import Skeleton, make_conversion
from pipeline.sources import Sequence


@dataclass(frozen=True, eq=False)
class PreparedSequence:
    """One sequence in the coordinates and the joint set of a lifter.

    Args:
        sequence: The sequence of the data source.
        joints2d: Normalised 2D, (T, J, 2), float32; 0 where not visible.
        visible: Visibility of the joints, whether they have a 2D position, bool, (T, J).
        joints3d: Root-relative joints in the camera frame, metres, (T, J, 3), float32; None where
            unknown.
        valid: Frames used in training and evaluation, (T,).
        score: Score of each 2D joint, (T, J), float32; 0 where not visible.
        crop: Crop camera that the joints are seen through; None for the camera of the sequence.
    """

    sequence: Sequence
    joints2d: NDArray[np.float32]
    visible: NDArray[np.bool_]
    joints3d: NDArray[np.float32] | None
    valid: NDArray[np.bool_]
    score: NDArray[np.float32]
    crop: CropCamera | None = None


def exact_joints2d(sequence: Sequence) -> NDArray[np.float64]:
    """Exact 2D joints of a sequence, pixels, (T, J, 2), in its own joint set.

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
    in_camera = world_to_camera(sequence.joints3d, sequence.camera)
    return np.asarray(project(in_camera, sequence.camera), np.float64)


def prepare_sequence(
    sequence: Sequence,
    skeleton: Skeleton,
    joints2d: NDArray[np.floating],
    score: NDArray[np.floating],
) -> PreparedSequence:
    """Prepare a sequence for a lifter, with given 2D joints.

    Args:
        sequence: Sequence that gives camera, 3D joints and valid frames.
        skeleton: Joint set of the lifter.
        joints2d: 2D joints in that joint set, pixels, (T, J, 2); NaN where missing.
        score: Score of each joint, (T, J); 0 where missing.

    Raises:
        DataError: If a 3D joint of a valid frame is not finite.
    """
    visible = np.isfinite(joints2d).all(-1) & (score > 0)
    normalised = normalise(np.where(visible[..., None], joints2d, 0.0), sequence.camera.size)
    joints3d = None
    if sequence.joints3d is not None:
        world = make_conversion(sequence.skeleton, skeleton).joints(sequence.joints3d)
        in_camera = world_to_camera(world, sequence.camera)
        joints3d = (in_camera - in_camera[:, skeleton.root, None]).astype(np.float32)
        _check_finite(sequence, joints3d)
    valid = sequence.valid_frames
    kept_score = np.where(visible, score, 0.0).astype(np.float32)
    if (kept_score == 1).all():  # exact 2D: takes no memory
        kept_score = np.broadcast_to(np.float32(1), visible.shape)
    return PreparedSequence(
        sequence,
        np.where(visible[..., None], normalised, 0.0).astype(np.float32),
        visible,
        joints3d,
        valid,
        kept_score,
    )


def person_sizes(prepared: PreparedSequence) -> NDArray[np.float32]:
    """Size of the person in the valid frames in which at least half of the joints are visible.

    Returns:
        Larger side of the box around the visible joints, normalised units (2 is the width of the
        image), (N,).
    """
    shown = prepared.valid & (2 * prepared.visible.sum(axis=1) >= prepared.visible.shape[1])
    joints2d, visible = prepared.joints2d[shown, :, :2], prepared.visible[shown, :, None]
    high = np.where(visible, joints2d, -np.inf).max(axis=1, initial=-np.inf)
    low = np.where(visible, joints2d, np.inf).min(axis=1, initial=np.inf)
    return np.asarray((high - low).max(axis=1, initial=0), np.float32)


def size_range(sequences: Many[PreparedSequence]) -> tuple[float, float] | None:
    """Quantiles of 1 and 99 % of the sizes of people; None if no frame shows enough joints."""
    sizes = np.concatenate([person_sizes(prepared) for prepared in sequences])
    if not len(sizes):
        return None
    low, high = np.quantile(sizes, (0.01, 0.99)).tolist()
    return low, high


def describe_unusual_sizes(
    sequences: Many[PreparedSequence], trained: tuple[float, float], *, share: float = 0.05
) -> str:
    """Warning about people whose size in the image a lifter was not trained on.

    Args:
        sequences: Sequences that are lifted.
        trained: Range of the sizes in training, see `size_range`.
        share: Largest share of frames that may lie more than 25 % outside of that range without a
            warning.

    Returns:
        One line, or "" if there is nothing to warn about.
    """
    sizes = np.concatenate([person_sizes(prepared) for prepared in sequences])
    if not len(sizes):
        return ""
    low, high = trained
    for word, outside in (("smaller", sizes < low / 1.25), ("larger", sizes > high * 1.25)):
        if outside.mean() > share:
            return (
                f"heatlift: warning: {100 * outside.mean():.0f} % of the frames show the person "
                f"{word} than training did (median {np.median(sizes) / 2:.2f} of the image width, "
                f"training {low / 2:.2f} to {high / 2:.2f}): expect larger errors"
            )
    return ""


def prediction_facts(prepared: PreparedSequence, skeleton: Skeleton) -> dict[str, Any]:
    """What a file with the lifted joints of a sequence has besides them.

    Args:
        prepared: The sequence.
        skeleton: Joint set of the lifter.

    Returns:
        Name, subject and action of the sequence; its joint set; unit and frame of reference of
        `joints3d` (for a crop camera also its rotations, `crop_rotation`, (T, 3, 3)); `fps` and the
        `time` of each frame, seconds; the 2D input, `joints2d` in pixels (NaN where missing) and
        `score`; `valid`, frames that an evaluation counts; the camera of the data source.
    """
    sequence, T = prepared.sequence, len(prepared.joints2d)
    frame, turned = CAMERA_FRAME, {}
    if prepared.crop is None:
        pixels = denormalise(prepared.joints2d, sequence.camera.size)
    else:
        pixels = prepared.crop.uncrop_joints(prepared.joints2d).astype(np.float32)
        frame = f"crop camera, turned from the camera by crop_rotation: {CAMERA_FRAME}"
        turned = {"crop_rotation": prepared.crop.rotation}
    camera = dataclasses.asdict(sequence.camera)
    return {
        "name": sequence.name,
        "subject": sequence.subject,
        "action": sequence.action,
        **skeleton.facts(),
        "unit": "m",
        "frame": f"{frame}; relative to {skeleton.joints[skeleton.root]}",
        **turned,
        "fps": sequence.fps,
        "time": np.arange(T) / sequence.fps,
        "joints2d": np.where(prepared.visible[..., None], pixels, np.float32(np.nan)),
        "score": prepared.score,
        "valid": prepared.valid,
        **{f"camera_{name}": value for name, value in camera.items()},
    }


def _check_finite(sequence: Sequence, joints3d: NDArray[np.float32]) -> None:
    good = np.isfinite(joints3d).all((1, 2))
    if sequence.valid is not None:
        good |= ~sequence.valid
    if not good.all():
        frame = int(np.argmin(good))
        raise DataError(
            f"{sequence.name}: frame {frame} has a 3D joint that is not finite "
            f"({int((~good).sum())} such frames); repair it or mark those frames as not valid"
        )


def require_joints3d(prepared: PreparedSequence) -> NDArray[np.float32]:
    """3D joints of a sequence, which must have some.

    Raises:
        DataError: If it has none.
    """
    if prepared.joints3d is None:
        raise DataError(
            f"{prepared.sequence.name}: has no 3D joints, so it cannot be trained on or evaluated"
        )
    return prepared.joints3d


def lift_with_mirror(
    lift: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    joints2d: torch.Tensor,
    visible: torch.Tensor,
    swap: Many[int],
) -> torch.Tensor:
    """The flip test: mean of a lifted clip and its lifted mirror image, mirrored back.

    Few windows are lifted together with their mirror images: a network takes hardly longer for
    twice as many of them.

    Args:
        lift: Function of 2D joints and their visibility that gives 3D joints, (..., J, 3).
        joints2d: Normalised 2D of a clip or of windows, (..., J, C).
        visible: Visibility of the joints, bool, (..., J).
        swap: For each joint, the joint of the other side.
    """
    mirrored, seen = flip_joints(joints2d, swap), visible[..., list(swap)]
    if visible.ndim == 3 and visible.shape[:2].numel() <= _FEW_FRAMES:
        both = lift(torch.cat([joints2d, mirrored]), torch.cat([visible, seen]))
        lifted, flipped = both.chunk(2)
    else:
        lifted, flipped = lift(joints2d, visible), lift(mirrored, seen)
    return (lifted + flip_joints(flipped, swap)) / 2


_FEW_FRAMES = 512
"""Frames of the windows that are lifted together with their mirror images."""


def flip_joints(joints: torch.Tensor, swap: Many[int]) -> torch.Tensor:
    """Joints of a mirrored image, (..., J, C): x negated, left and right exchanged; a copy.

    Args:
        joints: Joints, x first.
        swap: For each joint, the joint of the other side.
    """
    order = torch.as_tensor(swap, device=joints.device)
    mirrored = joints.index_select(-2, order)
    mirrored[..., 0].neg_()
    return mirrored
