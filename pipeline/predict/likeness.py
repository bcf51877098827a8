"""How alike poses in one image are: their joints, boxes and places, and the colour of clothes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.predict.square_crops import box_overlaps
from pipeline.skeleton import Skeleton


def similarities(
    first: NDArray[np.floating], second: NDArray[np.floating], skeleton: Skeleton
) -> NDArray[np.float64]:
    """OKS of all pairs of poses: 1 for equal ones, 0 for distant ones.

    All joints have one falloff: a joint counts exp(-d²/2) for a distance of d tenths of the size of
    the larger person. Joints of the face, the hands and the feet are left out.

    Args:
        first: Pixels, (N, J, 2).
        second: Pixels, (M, J, 2).
        skeleton: Joint set of both.

    Returns:
        (N, M).
    """
    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)))
    body = [i for i, name in enumerate(skeleton.joints) if not _is_detail(name)]
    a, b = first[:, body].astype(np.float64), second[:, body].astype(np.float64)
    size = np.maximum(pose_sizes(a)[:, None], pose_sizes(b)[None])
    apart = np.linalg.norm(a[:, None] - b[None], axis=-1) / (0.1 * size[..., None])
    return np.asarray(np.exp(-(apart**2) / 2).mean(-1))


def _is_detail(name: str) -> bool:
    """Whether a joint belongs to the face, a hand or a foot, whose joints lie close together."""
    parts = ("eye", "ear", "mouth", "pinky", "index", "thumb", "heel", "toe")
    return any(part in name for part in parts)


def pose_sizes(joints2d: NDArray[np.floating]) -> NDArray[np.float64]:
    """Larger side of the box around the joints, pixels, (N, J, 2) -> (N,); at least 1."""
    extent = joints2d.max(axis=1) - joints2d.min(axis=1)
    return np.maximum(extent.max(-1), 1.0).astype(np.float64)


def pose_overlaps(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Intersection over union of the boxes around poses, (N, J, 2) and (M, J, 2) -> (N, M)."""
    boxes = [np.concatenate([p.min(axis=1), p.max(axis=1)], axis=-1) for p in (first, second)]
    return box_overlaps(boxes[0][:, None], boxes[1][None])


def distances(
    first: NDArray[np.floating], second: NDArray[np.floating], skeleton: Skeleton
) -> NDArray[np.float64]:
    """Distances of the torsos, in sizes of the first pose, (N, J, 2) and (M, J, 2) -> (N, M)."""
    apart = torso_middles(first, skeleton)[:, None] - torso_middles(second, skeleton)[None]
    return np.asarray(np.linalg.norm(apart, axis=-1) / pose_sizes(first)[:, None])


def torso_middles(joints2d: NDArray[np.floating], skeleton: Skeleton) -> NDArray[np.float64]:
    """Middle of the torso, pixels, (N, J, 2) -> (N, 2)."""
    return joints2d[:, _torso(skeleton)].mean(axis=1).astype(np.float64)


def _torso(skeleton: Skeleton) -> list[int]:
    """Indices of shoulders and hips."""
    names = skeleton.vocabulary
    return [names[f"{side}_{part}"] for part in ("shoulder", "hip") for side in ("left", "right")]


def torso_colour(
    image: NDArray[np.uint8], joints2d: NDArray[np.floating], skeleton: Skeleton
) -> NDArray[np.float64] | None:
    """Median colour of the torso, in units of CIELAB, (3,); None where it is outside of the image.

    Args:
        image: RGB, uint8, (H, W, 3).
        joints2d: Pixels, (J, 2).
        skeleton: Joint set of `joints2d`.
    """
    torso = joints2d[_torso(skeleton)]
    if not np.isfinite(torso).all():
        return None
    middle, half = torso.mean(axis=0), 0.35 * (torso.max(axis=0) - torso.min(axis=0))
    low = np.maximum(np.round(middle - half), 0).astype(int)
    high = np.minimum(np.round(middle + half) + 1, image.shape[1::-1]).astype(int)
    if (high - low < 2).any():
        return None
    patch = image[low[1] : high[1], low[0] : high[0]]
    step = max(1, int(min(patch.shape[:2]) // 8))
    lab = cv2.cvtColor(np.ascontiguousarray(patch[::step, ::step]), cv2.COLOR_RGB2LAB)
    return np.median(lab.reshape(-1, 3), axis=0).astype(np.float64)


def colour_distances(
    first: Sequence[NDArray[np.float64] | None], second: Sequence[NDArray[np.float64] | None]
) -> NDArray[np.float64]:
    """Distances of the colours of all pairs, (N, M), in units of CIELAB; NaN where one is None.

    Lightness counts half: it changes with the light on a person who turns.

    Args:
        first: Colours, each (3,), or None where it is not known.
        second: The same, of others.
    """
    unknown = np.full(3, np.nan)
    one, other = (
        np.array([unknown if colour is None else colour for colour in colours]).reshape(-1, 3)
        for colours in (first, second)
    )
    return np.asarray(np.linalg.norm((one[:, None] - other[None]) * (0.5, 1, 1), axis=-1))
