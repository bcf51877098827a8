"""Square crops that turn with the person: from two points, cut from an image, and the way back."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.heatmap.crop import apply_affine, crop_matrix, invert_affine

Floats = NDArray[np.float64]

POINTS_TO_SIDE = 2.5
"""Side of a crop over the distance of its two points: 1.25 x twice the radius around the hips."""


def crops_from_points(points: ArrayLike) -> Floats:
    """Square crops around people from the two points that BlazePose gives for each.

    Convention:
        A crop is (x, y, side, angle): its centre and side in pixels of the image, and the angle in
        radians by which it is turned on the screen, clockwise. Point 0 is the centre; point 1 lies
        straight above it in the crop. A person who lies with the head to the right:

        >>> crops_from_points([[10.0, 20.0], [14.0, 20.0]]).round(4).tolist()
        [10.0, 20.0, 10.0, 1.5708]

    Args:
        points: Middle of the hips, and a point above it on the circle around the person, pixels of
            the image, (..., 2, 2).

    Returns:
        Crops, (..., 4).
    """
    points = np.asarray(points, np.float64)
    x, y = np.moveaxis(points[..., 1, :] - points[..., 0, :], -1, 0)
    side = POINTS_TO_SIDE * np.hypot(x, y)
    return np.concatenate([points[..., 0, :], np.stack([side, np.arctan2(x, -y)], -1)], axis=-1)


def square_matrix(crops: ArrayLike, size: int) -> Floats:
    """Affine maps from pixels of an image to pixels of square crops.

    Convention:
        Integer coordinates are pixel centres. The centre of a crop maps to ((size-1)/2,
        (size-1)/2):

        >>> apply_affine(square_matrix([10.0, 20.0, 100.0, 0.0], 50), [[10.0, 20.0], [12.0, 20.0]])
        array([[24.5, 24.5],
               [25.5, 24.5]])

    Args:
        crops: Centre x, y, side and angle, (..., 4).
        size: Side of the crops in their own pixels.

    Returns:
        Maps, (..., 2, 3); `invert_affine` gives the way back.
    """
    crops = np.asarray(crops, np.float64)
    side = crops[..., 2:3]
    boxes = np.concatenate([crops[..., :2] - side / 2, side, side], axis=-1)
    return crop_matrix(boxes, (size, size), padding=1, rotation=-np.rad2deg(crops[..., 3]))


def cut_crop(image: NDArray[np.uint8], crop: ArrayLike, size: int) -> NDArray[np.uint8]:
    """What a crop shows of an image, black outside it.

    Args:
        image: uint8, (H, W, 3).
        crop: Centre x, y, side and angle, (4,).
        size: Side of the result in pixels.

    Returns:
        uint8, (size, size, 3).

    Raises:
        ValueError: If the crop is not finite or smaller than a pixel.
    """
    numbers = np.asarray(crop, np.float64)
    if not np.isfinite(numbers).all() or not numbers[2] >= 1:
        raise ValueError(f"a crop {numbers.tolist()} cannot be cut; its side must be 1 or more")
    matrix = square_matrix(numbers, size)
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR)  # type: ignore[return-value]


def cut_crops(image: NDArray[np.uint8], crops: ArrayLike, size: int) -> NDArray[np.uint8]:
    """What several crops, (N, 4), show of an image, uint8, (N, size, size, 3)."""
    crops = np.asarray(crops, np.float64).reshape(-1, 4)
    found = np.empty((len(crops), size, size, 3), np.uint8)
    for i, crop in enumerate(crops):
        found[i] = cut_crop(image, crop, size)
    return found


def to_image(points: ArrayLike, crops: ArrayLike, size: int) -> Floats:
    """Points in pixels of crops, (..., N, 2), as pixels of the image; crops (..., 4)."""
    return apply_affine(invert_affine(square_matrix(crops, size)), points)


def whole_image(width: int, height: int) -> Floats:
    """The square crop that shows a whole image, with black bars, (1, 4)."""
    return np.array([[(width - 1) / 2, (height - 1) / 2, max(width, height), 0.0]])


def overlapping_squares(width: int, height: int, count: int = 3) -> Floats:
    """Square crops of the shorter side of an image, evenly spaced along the longer side.

    >>> overlapping_squares(1768, 994)[:, 0].tolist()
    [496.5, 883.5, 1270.5]

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        count: How many; more overlap more.

    Returns:
        Crops, (count, 4).
    """
    side = min(width, height)
    first, last = (side - 1) / 2, max(width, height) - (side + 1) / 2
    along = np.linspace(first, last, count) if count > 1 else np.array([(first + last) / 2])
    across = np.full(count, (side - 1) / 2)
    x, y = (along, across) if width >= height else (across, along)
    return np.stack([x, y, np.full(count, float(side)), np.zeros(count)], axis=-1)


def box_overlaps(first: NDArray[np.floating], second: NDArray[np.floating]) -> Floats:
    """Intersection over union of boxes, left, top, right, bottom, (..., 4) and (..., 4) -> (...).

    >>> box_overlaps(np.array([0, 0, 4, 2]), np.array([[0, 0, 4, 2], [2, 1, 6, 3]])).tolist()
    [1.0, 0.14285714285714285]
    """
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., 2:], second[..., 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = (np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1) for boxes in (first, second))
    return np.asarray(shared / np.maximum(sum(areas) - shared, 1e-9), np.float64)
