"""From exact to detected 2D: what the errors of a detector are, and what each of them costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.detections.build import person_boxes
from pipeline.detections.cache import load_detector, load_or_detect
from pipeline.detections.request import DetectionRequest
from pipeline.heatmap.crop import crop_matrix
from pipeline.lift.detector_noise import LIMBS
from pipeline.lift.module import LiftModule
from pipeline.lift.sequences import exact_joints2d, prepare_sequence, require_joints3d
from pipeline.metrics.pose_metrics import MPJPE
from pipeline.skeleton import H36M17, Skeleton
from pipeline.sources import MotionSource
from pipeline.sources import Sequence as SourceSequence

Floats = NDArray[np.float64]

MISSED = 0.1
"""Error from which a joint is missed, as a share of the person's box; that of PCK@0.1."""

PARTS = {
    "bias": "bias: constant in a clip",
    "noise": "noise: changes from frame to frame",
    "swaps": "left and right exchanged",
    "missed": "missed: off by over a tenth of the box",
}
"""Parts of the errors of a detector, in the order of the table, and what they are in words."""

EXACT, ALL = "exact", "all"
"""2D input without errors, and with all of them: the detections."""


@dataclass(frozen=True, eq=False)
class DetectedClip:
    """Joints that a detector found in a sequence, beside their true places.

    Args:
        sequence: The sequence, with 3D joints.
        exact: True joints in H36M17, pixels of the image, (T, 17, 2).
        found: Found joints, likewise; NaN where missing.
        size: Longer side of the box around the true joints, pixels of the image, (T,).
        zoom: Pixels of the detector's crop per pixel of the image, (T,).
    """

    sequence: SourceSequence
    exact: Floats
    found: Floats
    size: Floats
    zoom: Floats


@dataclass(frozen=True)
class InputErrors:
    """2D errors of one kind of input, and the errors of lifters that get it.

    Args:
        name: Exact 2D, a part of the errors as in `PARTS`, or all of them.
        affected: Share of the joints whose error is not 0, or that are missing.
        pixels: Mean 2D error of a found joint, pixels of the detector's crop.
        relative: The same as a share of the longer side of the person's box.
        mpjpe: MPJPE of each lifter, mm, by its name.
    """

    name: str
    affected: float
    pixels: float
    relative: float
    mpjpe: Mapping[str, float]


def find_swaps(
    found: Floats, exact: Floats, skeleton: Skeleton, joints: Sequence[str], least: float | Floats
) -> NDArray[np.bool_]:
    """Frames in which a pair of limbs is nearer to its truth when the sides are exchanged, (T,).

    Args:
        found: Found joints, (T, J, 2), in any unit; a frame with a missing joint is no swap.
        exact: True joints, likewise.
        skeleton: Joint set of J.
        joints: Joints of the limb, without their side.
        least: Mean error of the joints of both limbs above which they may be exchanged, a number or
            (T,).
    """
    here, there = _sides(skeleton, joints)
    direct = np.linalg.norm(found[:, here] - exact[:, here], axis=-1).mean(axis=1)
    other = np.linalg.norm(found[:, here] - exact[:, there], axis=-1).mean(axis=1)
    return np.asarray((direct > least) & (other < 0.5 * direct))


def split_errors(found: Floats, exact: Floats, size: Floats) -> dict[str, Floats]:
    """Split the errors of the joints of a clip into parts.

    First the step to the other side of limbs that are exchanged is taken out (`find_swaps`). Of
    what is left, `bias` is the mean over the frames in which the joint is not missed, `missed` the
    rest in frames in which it is, and `noise` the rest in the others.

    Args:
        found: Found joints in H36M17, pixels, (T, 17, 2); NaN where missing.
        exact: True joints, likewise.
        size: Size of the person, pixels, (T,), see `MISSED`.

    Returns:
        Part -> its errors, pixels, (T, 17, 2), 0 where a joint is missing; their sum is the error.
    """
    seen = np.isfinite(found).all(-1, keepdims=True)
    swaps = np.zeros_like(exact)
    for joints in LIMBS.values():
        here, there = _sides(H36M17, joints)
        swapped = find_swaps(found, exact, H36M17, joints, MISSED / 2 * size)
        rows = np.flatnonzero(swapped)[:, None]
        swaps[rows, here] = exact[rows, there] - exact[rows, here]
    rest = np.where(seen, found - exact - swaps, 0.0)
    missed = np.linalg.norm(rest, axis=-1, keepdims=True) > MISSED * size[:, None, None]
    kept = seen & ~missed
    bias = (rest * kept).sum(axis=0) / np.maximum(kept.sum(axis=0), 1) * seen
    return {
        "bias": bias,
        "noise": np.where(kept, rest - bias, 0.0),
        "swaps": np.where(seen, swaps, 0.0),
        "missed": np.where(missed, rest - bias, 0.0),
    }


def _sides(skeleton: Skeleton, joints: Sequence[str]) -> tuple[list[int], list[int]]:
    """Indices of the joints of both limbs, and of the same joints of the other side."""
    left = [skeleton.index(f"left_{name}") for name in joints]
    right = [skeleton.index(f"right_{name}") for name in joints]
    return left + right, right + left


def load_detected_clips(source: MotionSource, detector: str | Path) -> list[DetectedClip]:
    """The test split of a source with the joints that a detector finds, from the cache.

    Args:
        source: Data source in H36M17, with images.
        detector: Checkpoint of a 2D stage.
    """
    module = load_detector(detector)
    detections = load_or_detect(source, DetectionRequest.parse(str(detector)), "test")
    clips = []
    for sequence in source.sequences("test"):
        boxes = person_boxes(sequence)
        matrix = crop_matrix(boxes, module.input_size, padding=module.padding)
        found, _ = detections.of(sequence.name, H36M17)
        exact, size = exact_joints2d(sequence), boxes[:, 2:].max(axis=1)
        zoom = np.linalg.norm(matrix[:, 0, :2], axis=-1)
        clips.append(DetectedClip(sequence, exact, np.asarray(found, np.float64), size, zoom))
    return clips


def measure_inputs(
    clips: Sequence[DetectedClip], lifters: Mapping[str, LiftModule]
) -> list[InputErrors]:
    """Lift exact 2D, exact 2D with one part of the detector's errors, and the detections.

    Args:
        clips: Clips with the joints of a detector.
        lifters: Lifters in H36M17 by name.

    Returns:
        One row per 2D input: exact, the parts in the order of `PARTS`, all errors.
    """
    parts = [split_errors(clip.found, clip.exact, clip.size) for clip in clips]
    inputs: dict[str, list[Floats]] = {EXACT: [clip.exact for clip in clips]}
    for part in PARTS:
        inputs[part] = [clip.exact + split[part] for clip, split in zip(clips, parts, strict=True)]
        if part == "missed":
            inputs[part] = [
                np.where(np.isfinite(clip.found), joints2d, np.nan)
                for clip, joints2d in zip(clips, inputs[part], strict=True)
            ]
    inputs[ALL] = [clip.found for clip in clips]
    return [_measure(name, clips, joints2d, lifters) for name, joints2d in inputs.items()]


def _measure(
    name: str,
    clips: Sequence[DetectedClip],
    joints2d: Sequence[Floats],
    lifters: Mapping[str, LiftModule],
) -> InputErrors:
    """Errors of one kind of 2D input, pixels of the image, (T, 17, 2) for each clip."""
    length = [
        np.linalg.norm(given - clip.exact, axis=-1)
        for clip, given in zip(clips, joints2d, strict=True)
    ]
    zoom = [clip.zoom[:, None] for clip in clips]
    size = [clip.size[:, None] for clip in clips]
    all_lengths = np.concatenate(length)
    metrics = {lifter: MPJPE() for lifter in lifters}
    for clip, given in zip(clips, joints2d, strict=True):
        prepared = prepare_sequence(
            clip.sequence, H36M17, given, np.isfinite(given).all(-1).astype(float)
        )
        target = torch.from_numpy(require_joints3d(prepared))
        inputs = torch.from_numpy(prepared.joints2d), torch.from_numpy(prepared.visible)
        for lifter, module in lifters.items():
            with torch.inference_mode():
                metrics[lifter].update(module.lift(*inputs), target)
    return InputErrors(
        name,
        1 - float(np.mean(all_lengths == 0)),
        float(np.nanmean(np.concatenate([e * z for e, z in zip(length, zoom, strict=True)]))),
        float(np.nanmean(np.concatenate([e / s for e, s in zip(length, size, strict=True)]))),
        {lifter: float(metric.compute()) for lifter, metric in metrics.items()},
    )
