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
    place_side_by_side,
    resize_to_height,
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
        image: RGB image, (H, W, 3).
        joints2d: Pixels, (J, 2); joints that are not finite are left out, with their bones.
        skeleton: Joint set of `joints2d`.
        score: Score of each joint, (J,), or None; joints below `least_score` are drawn hollow,
            with thin bones.
        least_score: Score from which a joint is drawn filled.
        colour: One colour for all joints instead of one per side.
        thickness: Thickness of the bones in pixels; by default proportional to the image size.

    Returns:
        New image of the same size.
    """
    canvas = np.array(image, dtype=np.uint8, order="C")
    points = np.asarray(joints2d, dtype=np.float64)
    confident = np.ones(len(points), bool) if score is None else np.asarray(score) >= least_score
    width = thickness or max(1, round(min(canvas.shape[:2]) / 90))
    colours = side_colours(skeleton) if colour is None else (colour,) * len(skeleton)
    bones = [
        (a, b, width if confident[a] and confident[b] else max(1, width // 2))
        for a, b in skeleton.bones
    ]
    for parent, child, thick in bones:
        draw_line(canvas, points[parent], points[child], PAPER, thick + 2)
    for parent, child, thick in bones:
        draw_line(canvas, points[parent], points[child], colours[child], thick)
    for joint, point in enumerate(points):
        draw_disc(canvas, point, width + 1.5, PAPER)
        draw_disc(canvas, point, width + 0.5, colours[joint])
        if not confident[joint]:
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
    """Draw a 2D skeleton in any unit on a white background.

    Args:
        joints2d: Joints, (J, 2), x right, y down.
        skeleton: Joint set.
        truth: True joints, (J, 2), drawn thin and grey behind the others; or None.
        score: Score of each joint, (J,); see `draw_joints2d`.
        bounds: Left, top, right, bottom of the visible area; by default `bounding_square` of the
            joints.
        size: Height and width of the image in pixels.

    Returns:
        RGB image, (size, size, 3).
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
        Azimuth 0 is the view of the camera. Azimuth 90 looks along -x: depth grows to the right,
        the camera is on the left. One scale for all views; grid lines are half a metre apart.

    Args:
        predicted: Root-relative joints in the camera frame, metres, (J, 3); joints that are not
            finite are left out.
        target: True joints, (J, 3), or None.
        skeleton: Joint set.
        azimuths: Azimuth of each view, degrees around the vertical axis.
        reach: Metres from the root to the border of a view; by default `view_radius` of the joints.
        size: Height and width of a view in pixels.

    Returns:
        RGB image, the views side by side.
    """
    both = [np.asarray(predicted, np.float64)]
    if target is not None:
        both.append(np.asarray(target, np.float64))
    reach = reach or view_radius(*both)
    views = [_draw_view(both, skeleton, np.radians(azimuth), reach, size) for azimuth in azimuths]
    captions = [_VIEW_CAPTIONS.get(azimuth, f"from {azimuth:g}°") for azimuth in azimuths]
    return contact_sheet(views, len(views), captions)


_VIEW_CAPTIONS = {0.0: "front, as the camera sees", 90.0: "side, camera on the left"}


def view_radius(*joints3d: ArrayLike) -> float:
    """Metres from the root to the border of a view that shows all joints, (..., 3); 0.5 to 3."""
    values = np.concatenate([np.abs(np.asarray(part, np.float64)).ravel() for part in joints3d])
    values = values[np.isfinite(values)]
    return float(np.clip(values.max(initial=0.5) * 1.12, 0.5, 3.0))


def _draw_view(
    poses: Sequence[NDArray[np.float64]],
    skeleton: Skeleton,
    azimuth: float,
    reach: float,
    size: int,
) -> Image:
    canvas = blank_canvas(size, size)
    scale = size / (2 * reach)
    for metres in np.arange(-np.floor(reach * 2), np.floor(reach * 2) + 1) / 2:
        offset = size / 2 + metres * scale
        shade = (205, 209, 216) if metres == 0 else FAINT
        draw_line(canvas, np.array([offset, 0]), np.array([offset, size]), shade, 1)
        draw_line(canvas, np.array([0, offset]), np.array([size, offset]), shade, 1)
    for joints3d, is_truth in reversed(list(zip(poses, (False, True), strict=False))):
        pose = np.where(np.isfinite(joints3d), joints3d, np.nan)
        across = pose[:, 0] * np.cos(azimuth) + pose[:, 2] * np.sin(azimuth)
        depth = pose[:, 2] * np.cos(azimuth) - pose[:, 0] * np.sin(azimuth)
        points = np.stack([across, pose[:, 1]], -1) * scale + size / 2
        if is_truth:
            _draw_bones(
                canvas, points, depth, skeleton, (TRUTH,) * len(skeleton), max(2, size // 140)
            )
        else:
            _draw_bones(canvas, points, depth, skeleton, side_colours(skeleton), max(2, size // 80))
    bar = 0.5 * scale
    corner = np.array([size - 12.0, size - 12.0])
    draw_line(canvas, corner - [bar, 0], corner, INK, 2)
    draw_text(canvas, "0.5 m", (corner - [bar / 2, 5]).tolist(), size=11, anchor="ms")
    return canvas


def _draw_bones(
    canvas: Image,
    points: NDArray[np.float64],
    depth: NDArray[np.float64],
    skeleton: Skeleton,
    colours: Sequence[Colour],
    width: int,
) -> None:
    """Draw bones onto `canvas`, the farthest first, so that near limbs cover far ones."""
    bone_depth = [depth[parent] + depth[child] for parent, child in skeleton.bones]
    for bone in np.argsort(bone_depth)[::-1]:
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
    """Draw several frames of a clip side by side, one row per view.

    Args:
        predicted: Root-relative joints in the camera frame, metres, (T, J, 3).
        target: True joints, (T, J, 3), or None.
        skeleton: Joint set.
        frames: Number of frames, evenly spaced from first to last.
        images: Images shown above the views, one per frame of the clip, or None.
        azimuths: Azimuth of each row; see `draw_views3d`.
        size: Height and width of a cell in pixels.

    Returns:
        RGB image.
    """
    poses = np.asarray(predicted, np.float64)
    truths = None if target is None else np.asarray(target, np.float64)
    reach = view_radius(poses, *([] if truths is None else [truths]))
    chosen = np.unique(np.linspace(0, len(poses) - 1, min(frames, len(poses))).round().astype(int))
    rows: list[Image] = (
        [] if images is None else [resize_to_height(images[t], size) for t in chosen]
    )
    for azimuth in azimuths:
        for t in chosen:
            both = [poses[t]] if truths is None else [poses[t], truths[t]]
            rows.append(_draw_view(both, skeleton, np.radians(azimuth), reach, size))
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
    """Draw the frames of a video of a clip: 2D input, front view and side view.

    Args:
        predicted: Root-relative joints in the camera frame, metres, (T, J, 3).
        target: True joints, (T, J, 3), or None.
        skeleton: Joint set.
        images: Images of the camera, one per frame, or None.
        joints2d: 2D input in any unit, (T, J, 2), or None; drawn if there are no images.
        title: Title of the video.
        size: Height of the views in pixels.
        every: Interval between drawn frames; 1 draws all.

    Yields:
        RGB images, all of one size.
    """
    poses = np.asarray(predicted, np.float64)
    truths = None if target is None else np.asarray(target, np.float64)
    reach = view_radius(poses, *([] if truths is None else [truths]))
    bounds = None if joints2d is None else bounding_square(joints2d)
    for t in range(0, len(poses), every):
        truth = None if truths is None else truths[t]
        panel = draw_views3d(poses[t], truth, skeleton, reach=reach, size=size)
        input2d = None
        if images is not None:
            input2d = resize_to_height(images[t], size)
        elif joints2d is not None:
            input2d = draw_joints2d_alone(
                np.asarray(joints2d)[t], skeleton, bounds=bounds, size=size
            )
        if input2d is not None:
            panel = place_side_by_side(contact_sheet([input2d], 1, ["2D input"]), panel)
        yield add_title(panel, f"{title}  frame {t}".strip())
