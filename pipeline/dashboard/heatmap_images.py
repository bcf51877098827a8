"""Heatmaps drawn over the image they belong to."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.dashboard.canvas import (
    CENTRE,
    LEFT,
    PAPER,
    RIGHT,
    Image,
    contact_sheet,
    draw_disc,
    draw_line,
    resize_to_height,
    side_colours,
)
from pipeline.dashboard.skeletons import draw_joints2d
from pipeline.skeleton import Skeleton


def draw_heatmaps(
    image: Image, heatmaps: ArrayLike, skeleton: Skeleton, *, peak: float | None = None
) -> Image:
    """Draw all heatmaps over a darkened image, each in the colour of its joint's side.

    Args:
        image: Input of the network as RGB, (H, W, 3).
        heatmaps: Heatmaps, (J, h, w), covering the same area as the image.
        skeleton: Joint set.
        peak: Value drawn with full opacity; by default the maximum of these heatmaps.

    Returns:
        New RGB image, (H, W, 3).
    """
    maps = _without_negatives(heatmaps)
    height, width = image.shape[:2]
    top = peak or max(float(maps.max(initial=0.0)), 1e-6)
    canvas = _dark_grey(image)
    colours = np.array(side_colours(skeleton), np.float32)
    # Brighter than the line colours: grey and blue would be invisible on the dark image.
    bright_colours = {LEFT: (255, 150, 30), RIGHT: (60, 160, 255), CENTRE: (225, 230, 240)}
    for side, bright in bright_colours.items():
        chosen = (colours == np.array(side, np.float32)).all(-1)
        if not chosen.any():
            continue
        strength = _resize_map(maps[chosen].max(0) / top, width, height)[..., None]
        canvas += (np.array(bright, np.float32) - canvas) * np.clip(strength, 0, 1)
    return canvas.round().astype(np.uint8)


def draw_heatmap_sheet(
    image: Image, heatmaps: ArrayLike, skeleton: Skeleton, *, columns: int = 6, size: int = 160
) -> Image:
    """Draw every heatmap in its own tile, with the joint's name and the value of its peak.

    Args:
        image: Input of the network as RGB, (H, W, 3).
        heatmaps: Heatmaps, (J, h, w).
        skeleton: Joint set.
        columns: Number of tiles in a row.
        size: Height of a tile in pixels.

    Returns:
        RGB image.
    """
    maps = _without_negatives(heatmaps)
    enlarged = resize_to_height(image, size)
    height, width = enlarged.shape[:2]
    top = max(float(maps.max(initial=0.0)), 1e-6)
    dimmed = _dark_grey(enlarged)
    tiles, captions = [], []
    for joint, heat in enumerate(maps):
        strength = np.clip(_resize_map(heat / top, width, height), 0, 1)
        coded = cv2.applyColorMap((strength * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
        colour = np.asarray(coded)[..., ::-1].astype(np.float32)
        opacity = np.sqrt(strength)[..., None]
        tiles.append((dimmed + (colour - dimmed) * opacity).round().astype(np.uint8))
        captions.append(f"{heat.max():.2f}  {skeleton.joints[joint].replace('_', ' ')}")
    return contact_sheet(tiles, columns, captions)


def draw_detection(
    image: Image,
    maps: ArrayLike,
    joints: ArrayLike,
    truth: ArrayLike,
    skeleton: Skeleton,
    *,
    score: ArrayLike | None = None,
    size: int = 320,
) -> Image:
    """Draw one panel of the 2D stage: true joints, heatmaps, detected joints with their errors.

    Args:
        image: Input of the network as RGB, (H, W, 3).
        maps: Heatmaps, (J, h, w).
        joints: Detected joints in pixels of `image`, (J, 2).
        truth: True joints in pixels of `image`, (J, 2); NaN where unlabelled.
        skeleton: Joint set.
        score: Score of each detected joint, (J,), or None.
        size: Height of the images in the panel, pixels.

    Returns:
        RGB, three images side by side; in the last one a red line connects each detected joint
        with its true position.
    """
    enlarged = resize_to_height(image, size)
    scale = enlarged.shape[0] / image.shape[0]
    # Integer coordinates are pixel centres, so resizing shifts them by half a pixel.
    found = (np.asarray(joints, np.float64) + 0.5) * scale - 0.5
    exact = (np.asarray(truth, np.float64) + 0.5) * scale - 0.5
    detected = draw_joints2d(enlarged, found, skeleton, score)
    for start, end in zip(found, exact, strict=True):
        if np.hypot(*(end - start)) > 0.02 * size:
            draw_line(detected, start, end, PAPER, 4)
            draw_line(detected, start, end, (214, 30, 50), 2)
            draw_disc(detected, end, 3, (214, 30, 50))
    return contact_sheet(
        [
            draw_joints2d(enlarged, exact, skeleton),
            draw_heatmaps(enlarged, maps, skeleton),
            detected,
        ],
        3,
        ["truth", "heatmaps", "detection, red: its error"],
    )


def _without_negatives(heatmaps: ArrayLike) -> NDArray[np.float32]:
    maps = np.nan_to_num(np.asarray(heatmaps, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return np.maximum(maps, 0)


def _resize_map(heat: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    resized = cv2.resize(
        np.ascontiguousarray(heat), (width, height), interpolation=cv2.INTER_LINEAR
    )
    return np.asarray(resized, np.float32)


def _dark_grey(image: Image) -> NDArray[np.float32]:
    """The image in dark grey, (H, W, 3), as background for colours."""
    grey = np.asarray(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY), np.float32)
    return np.repeat(grey[..., None] * 0.5 + 10, 3, axis=2)
