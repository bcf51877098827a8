"""2D and 3D skeletons drawn as RGB images, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.dashboard.canvas import (
    FAINT,
    INK,
    PAPER,
    TRUTH,
    Colour,
    Image,
    add_title,
    blank_canvas,
    contact_sheet,
    draw_disc,
    draw_line,
    draw_text,
    enlarge,
    place_side_by_side,
    side_colours,
)
from pipeline.skeleton import Skeleton


def draw_joints2d(
    image: Image,
    joints2d: ArrayLike,
    skeleton: Skeleton,
    score: ArrayLike | None = None,
    *,
    least_score: float = 0.2,
    colour: Colour | None = None,
    thickness: int | None = None,
) -> Image:
    """Draw a 2D skeleton over an image.

    Args:
        image: RGB, (H, W, 3).
        joints2d: Pixels, (J, 2); joints that are not finite are left out, with their bones.
        skeleton: The joint set of `joints2d`.
        score: Trust in each joint, (J,); below `least_score` it is hollow and its bones are thin.
        least_score: Where trust ends.
        colour: One colour for all joints instead of one per side.
        thickness: Of the bones in pixels; by default it grows with the image.

    Returns:
        A new image of the same size.
    """
    canvas = np.array(image, dtype=np.uint8, order="C")
    points = np.asarray(joints2d, dtype=np.float64)
    sure = np.ones(len(points), bool) if score is None else np.asarray(score) >= least_score
    width = thickness or max(1, round(min(canvas.shape[:2]) / 90))
    colours = side_colours(skeleton) if colour is None else (colour,) * len(skeleton)
    bones = [
        (a, b, width if sure[a] and sure[b] else max(1, width // 2)) for a, b in skeleton.bones
    ]
    for parent, child, thick in bones:
        draw_line(canvas, points[parent], points[child], PAPER, thick + 2)
    for parent, child, thick in bones:
        draw_line(canvas, points[parent], points[child], colours[child], thick)
    for joint, point in enumerate(points):
        draw_disc(canvas, point, width + 1.5, PAPER)
        draw_disc(canvas, point, width + 0.5, colours[joint])
        if not sure[joint]:
            draw_disc(canvas, point, max(width - 0.5, 1), PAPER)
    return canvas


def draw_joints2d_alone(
    joints2d: ArrayLike,
    skeleton: Skeleton,
    *,
    truth: ArrayLike | None = None,
    score: ArrayLike | None = None,
    bounds: tuple[float, float, float, float] | None = None,
    size: int = 320,
) -> Image:
    """Draw a 2D skeleton on white paper, in any 2D unit.

    Args:
        joints2d: (J, 2), x right, y down.
        skeleton: The joint set.
        truth: A second skeleton, (J, 2), thin and grey behind the first.
        score: Trust in each joint, (J,); see `draw_joints2d`.
        bounds: Left, top, right, bottom of what is shown; by default `bounding_square` of what is drawn.
        size: Height and width of the image in pixels.

    Returns:
        RGB, (size, size, 3).
    """
    both = [np.asarray(joints2d, np.float64)]
    if truth is not None:
        both.append(np.asarray(truth, np.float64))
    left, top, right, bottom = bounds or bounding_square(*both)
    scale = size / max(right - left, bottom - top, 1e-9)
    offset = (size - scale * np.array([left + right, top + bottom])) / 2
    canvas = blank_canvas(size, size)
    if truth is not None:
        canvas = draw_joints2d(
            canvas, both[1] * scale + offset, skeleton, colour=TRUTH, thickness=2
        )
    return draw_joints2d(canvas, both[0] * scale + offset, skeleton, score)


def bounding_square(*joints2d: ArrayLike) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a square around all finite joints, (..., 2), with a margin."""
    points = np.concatenate([np.asarray(part, np.float64).reshape(-1, 2) for part in joints2d])
    points = points[np.isfinite(points).all(-1)]
    if not len(points):
        return -1.0, -1.0, 1.0, 1.0
    middle = (points.min(0) + points.max(0)) / 2
    half = max(float(np.ptp(points, axis=0).max()) * 0.56, 1e-6)
    x, y = middle.tolist()
    return x - half, y - half, x + half, y + half


def draw_views3d(
    predicted: ArrayLike,
    target: ArrayLike | None,
    skeleton: Skeleton,
    *,
    azimuths: Sequence[float] = (0.0, 90.0),
    reach: float | None = None,
    size: int = 320,
) -> Image:
    """Draw a 3D skeleton from the front and from the side, with the truth thin and grey behind it.

    Convention:
        Azimuth 0 looks as the camera does. Azimuth 90 looks along -x: depth grows to the right,
        the camera stands on the left. One scale for all views; lines are half a metre apart.

    Args:
        predicted: Root-relative joints in the camera frame, metres, (J, 3); those that are not
            finite are left out.
        target: The truth, (J, 3), or none.
        skeleton: The joint set.
        azimuths: One view each, degrees around the vertical axis.
        reach: Metres from the root to the border of a view; by default `view_radius` of what is drawn.
        size: Height and width of a view in pixels.

    Returns:
        RGB, the views side by side.
    """
    both = [np.asarray(predicted, np.float64)]
    if target is not None:
        both.append(np.asarray(target, np.float64))
    reach = reach or view_radius(*both)
    views = [_view(both, skeleton, np.radians(azimuth), reach, size) for azimuth in azimuths]
    captions = [_AZIMUTHS.get(azimuth, f"from {azimuth:g}°") for azimuth in azimuths]
    return contact_sheet(views, len(views), captions)


_AZIMUTHS = {0.0: "front, as the camera sees", 90.0: "side, camera on the left"}


def view_radius(*joints3d: ArrayLike) -> float:
    """Metres from the root to the border of a view of all finite joints, (..., 3); at most 3."""
    values = np.concatenate([np.abs(np.asarray(part, np.float64)).ravel() for part in joints3d])
    values = values[np.isfinite(values)]
    return float(np.clip(values.max(initial=0.5) * 1.12, 0.5, 3.0))


def _view(
    poses: Sequence[NDArray[np.float64]],
    skeleton: Skeleton,
    azimuth: float,
    reach: float,
    size: int,
) -> Image:
    canvas = blank_canvas(size, size)
    scale = size / (2 * reach)
    for metres in np.arange(-np.floor(reach * 2), np.floor(reach * 2) + 1) / 2:
        at = size / 2 + metres * scale
        shade = (205, 209, 216) if metres == 0 else FAINT
        draw_line(canvas, np.array([at, 0]), np.array([at, size]), shade, 1)
        draw_line(canvas, np.array([0, at]), np.array([size, at]), shade, 1)
    for given, is_truth in reversed(list(zip(poses, (False, True), strict=False))):
        pose = np.where(np.isfinite(given), given, np.nan)
        across = pose[:, 0] * np.cos(azimuth) + pose[:, 2] * np.sin(azimuth)
        away = pose[:, 2] * np.cos(azimuth) - pose[:, 0] * np.sin(azimuth)
        points = np.stack([across, pose[:, 1]], -1) * scale + size / 2
        if is_truth:
            _bones(canvas, points, away, skeleton, (TRUTH,) * len(skeleton), max(2, size // 140))
        else:
            _bones(canvas, points, away, skeleton, side_colours(skeleton), max(2, size // 80))
    bar = 0.5 * scale
    corner = np.array([size - 12.0, size - 12.0])
    draw_line(canvas, corner - [bar, 0], corner, INK, 2)
    draw_text(canvas, "0.5 m", (corner - [bar / 2, 5]).tolist(), size=11, anchor="ms")
    return canvas


def _bones(
    canvas: Image,
    points: NDArray[np.float64],
    away: NDArray[np.float64],
    skeleton: Skeleton,
    colours: Sequence[Colour],
    width: int,
) -> None:
    """Draw bones onto `canvas`, the farthest first, so that near limbs cover far ones."""
    depth = [away[parent] + away[child] for parent, child in skeleton.bones]
    for bone in np.argsort(depth)[::-1]:
        parent, child = skeleton.bones[bone]
        draw_line(canvas, points[parent], points[child], PAPER, width + 2)
        draw_line(canvas, points[parent], points[child], colours[child], width)
        for joint in (parent, child):
            draw_disc(canvas, points[joint], width * 0.8, colours[joint])


def draw_motion_strip(
    predicted: ArrayLike,
    target: ArrayLike | None,
    skeleton: Skeleton,
    *,
    frames: int = 8,
    images: Sequence[Image] | None = None,
    azimuths: Sequence[float] = (0.0, 90.0),
    size: int = 150,
) -> Image:
    """Several frames of a clip side by side, one row per view.

    Args:
        predicted: Root-relative joints in the camera frame, metres, (T, J, 3).
        target: The truth, (T, J, 3), or none.
        skeleton: The joint set.
        frames: How many frames, evenly spread from first to last.
        images: What goes above each frame, one per frame of the clip, or none.
        azimuths: One row each; see `draw_views3d`.
        size: Height and width of a cell in pixels.

    Returns:
        RGB.
    """
    poses = np.asarray(predicted, np.float64)
    truths = None if target is None else np.asarray(target, np.float64)
    reach = view_radius(poses, *([] if truths is None else [truths]))
    chosen = np.unique(np.linspace(0, len(poses) - 1, min(frames, len(poses))).round().astype(int))
    rows: list[Image] = [] if images is None else [enlarge(images[t], size) for t in chosen]
    for azimuth in azimuths:
        for t in chosen:
            both = [poses[t]] if truths is None else [poses[t], truths[t]]
            rows.append(_view(both, skeleton, np.radians(azimuth), reach, size))
    captions = [f"frame {t}" for t in chosen] + [""] * (len(rows) - len(chosen))
    return contact_sheet(rows, len(chosen), captions)


def draw_clip(
    predicted: ArrayLike,
    target: ArrayLike | None,
    skeleton: Skeleton,
    *,
    images: Sequence[Image] | None = None,
    joints2d: ArrayLike | None = None,
    title: str = "",
    size: int = 200,
    every: int = 1,
) -> Iterator[Image]:
    """The frames of a clip as a video: what went in, front, and side.

    Args:
        predicted: Root-relative joints in the camera frame, metres, (T, J, 3).
        target: The truth, (T, J, 3), or none.
        skeleton: The joint set.
        images: What was seen, one per frame, or none.
        joints2d: 2D that went in, in any unit, (T, J, 2); drawn where there are no images.
        title: Written above.
        size: Height of the views in pixels.
        every: Show each n-th frame only.

    Yields:
        RGB, all of one size.
    """
    poses = np.asarray(predicted, np.float64)
    truths = None if target is None else np.asarray(target, np.float64)
    reach = view_radius(poses, *([] if truths is None else [truths]))
    bounds = None if joints2d is None else bounding_square(joints2d)
    for t in range(0, len(poses), every):
        truth = None if truths is None else truths[t]
        panel = draw_views3d(poses[t], truth, skeleton, reach=reach, size=size)
        seen = None
        if images is not None:
            seen = enlarge(images[t], size)
        elif joints2d is not None:
            seen = draw_joints2d_alone(np.asarray(joints2d)[t], skeleton, bounds=bounds, size=size)
        if seen is not None:
            panel = place_side_by_side(contact_sheet([seen], 1, ["2D input"]), panel)
        yield add_title(panel, f"{title}  frame {t}".strip())
