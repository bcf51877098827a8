"""Heatmaps, 2D and 3D skeletons, clips, bars and curves as RGB pictures, and their files."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.checkpoint import fsync_folder
from pipeline.errors import StorageError
from pipeline.skeleton import Skeleton

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

Image = NDArray[np.uint8]
"""RGB, (H, W, 3)."""

Colour = tuple[int, int, int]

# Orange and blue stay apart in every common kind of colour blindness (Okabe and Ito 2008).
LEFT: Colour = (238, 128, 20)
RIGHT: Colour = (30, 112, 206)
CENTRE: Colour = (92, 99, 112)
TRUTH: Colour = (140, 147, 158)
PAPER: Colour = (255, 255, 255)
INK: Colour = (34, 39, 48)
FAINT: Colour = (228, 231, 236)
SERIES: tuple[Colour, ...] = (
    *(RIGHT, LEFT, (0, 145, 110), (190, 80, 150), CENTRE, (150, 105, 20)),
    *((200, 40, 40), (70, 175, 205), INK),
)
_FEW = 6
"""So many lines of a chart are all unbroken, and have their names inside it."""

GAP = 10
_SUBPIXEL = 4
_FAR = 1e5


def side_colours(skeleton: Skeleton) -> tuple[Colour, ...]:
    """Colour of each joint, (J,): orange on the body's left, blue on its right, grey between."""
    left, right = set(skeleton.left), set(skeleton.right)
    return tuple(
        LEFT if i in left else RIGHT if i in right else CENTRE for i in range(len(skeleton))
    )


# ---- 2D ----------------------------------------------------------------------------------------


def joints_over(
    image: Image,
    joints2d: ArrayLike,
    skeleton: Skeleton,
    score: ArrayLike | None = None,
    *,
    least_score: float = 0.2,
    colour: Colour | None = None,
    thickness: int | None = None,
) -> Image:
    """Draw a 2D skeleton over a picture.

    Args:
        image: RGB, (H, W, 3).
        joints2d: Pixels, (J, 2); joints that are not finite are left out, with their bones.
        skeleton: The joint set of `joints2d`.
        score: Trust in each joint, (J,); below `least_score` it is hollow and its bones are thin.
        least_score: Where trust ends.
        colour: One colour for all joints instead of one per side.
        thickness: Of the bones in pixels; by default it grows with the picture.

    Returns:
        A new picture of the same size.
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
        _line(canvas, points[parent], points[child], PAPER, thick + 2)
    for parent, child, thick in bones:
        _line(canvas, points[parent], points[child], colours[child], thick)
    for joint, point in enumerate(points):
        _disc(canvas, point, width + 1.5, PAPER)
        _disc(canvas, point, width + 0.5, colours[joint])
        if not sure[joint]:
            _disc(canvas, point, max(width - 0.5, 1), PAPER)
    return canvas


def joints_alone(
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
        score: Trust in each joint, (J,); see `joints_over`.
        bounds: Left, top, right, bottom of what is shown; by default `bounds2d` of what is drawn.
        size: Height and width of the picture in pixels.

    Returns:
        RGB, (size, size, 3).
    """
    both = [np.asarray(joints2d, np.float64)]
    if truth is not None:
        both.append(np.asarray(truth, np.float64))
    left, top, right, bottom = bounds or bounds2d(*both)
    scale = size / max(right - left, bottom - top, 1e-9)
    offset = (size - scale * np.array([left + right, top + bottom])) / 2
    canvas = _paper(size, size)
    if truth is not None:
        canvas = joints_over(canvas, both[1] * scale + offset, skeleton, colour=TRUTH, thickness=2)
    return joints_over(canvas, both[0] * scale + offset, skeleton, score)


def bounds2d(*joints2d: ArrayLike) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a square around all finite joints, (..., 2), with a margin."""
    points = np.concatenate([np.asarray(part, np.float64).reshape(-1, 2) for part in joints2d])
    points = points[np.isfinite(points).all(-1)]
    if not len(points):
        return -1.0, -1.0, 1.0, 1.0
    middle = (points.min(0) + points.max(0)) / 2
    half = max(float(np.ptp(points, axis=0).max()) * 0.56, 1e-6)
    x, y = middle.tolist()
    return x - half, y - half, x + half, y + half


def heatmaps_over(
    image: Image, heatmaps: ArrayLike, skeleton: Skeleton, *, peak: float | None = None
) -> Image:
    """Lay all heatmaps over a dimmed picture, each in the colour of its joint's side.

    Args:
        image: The network's input as RGB, (H, W, 3).
        heatmaps: (J, h, w), covering the same field as the picture.
        skeleton: The joint set.
        peak: Value that is drawn at full strength; by default the highest one of these maps.

    Returns:
        A new picture, (H, W, 3).
    """
    maps = _maps(heatmaps)
    height, width = image.shape[:2]
    top = peak or max(float(maps.max(initial=0.0)), 1e-6)
    canvas = _dimmed(image)
    colours = np.array(side_colours(skeleton), np.float32)
    # The sides glow brighter than their line colours, or grey and blue would drown in the picture.
    glow = {LEFT: (255, 150, 30), RIGHT: (60, 160, 255), CENTRE: (225, 230, 240)}
    for side, bright in glow.items():
        chosen = (colours == np.array(side, np.float32)).all(-1)
        if not chosen.any():
            continue
        strength = _enlarged(maps[chosen].max(0) / top, width, height)[..., None]
        canvas += (np.array(bright, np.float32) - canvas) * np.clip(strength, 0, 1)
    return canvas.round().astype(np.uint8)


def heatmap_sheet(
    image: Image, heatmaps: ArrayLike, skeleton: Skeleton, *, columns: int = 6, size: int = 160
) -> Image:
    """Every heatmap in a tile of its own, with the joint's name and the value of its peak.

    Args:
        image: The network's input as RGB, (H, W, 3).
        heatmaps: (J, h, w).
        skeleton: The joint set.
        columns: Tiles in a row.
        size: Height of a tile in pixels.

    Returns:
        RGB.
    """
    maps = _maps(heatmaps)
    enlarged = enlarge(image, size)
    height, width = enlarged.shape[:2]
    top = max(float(maps.max(initial=0.0)), 1e-6)
    dimmed = _dimmed(enlarged)
    tiles, captions = [], []
    for joint, heat in enumerate(maps):
        strength = np.clip(_enlarged(heat / top, width, height), 0, 1)
        coded = cv2.applyColorMap((strength * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
        colour = np.asarray(coded)[..., ::-1].astype(np.float32)
        opacity = np.sqrt(strength)[..., None]
        tiles.append((dimmed + (colour - dimmed) * opacity).round().astype(np.uint8))
        captions.append(f"{heat.max():.2f}  {skeleton.joints[joint].replace('_', ' ')}")
    return contact_sheet(tiles, columns, captions)


def truth_beside_prediction(
    image: Image,
    maps: ArrayLike,
    joints: ArrayLike,
    truth: ArrayLike,
    skeleton: Skeleton,
    *,
    score: ArrayLike | None = None,
    size: int = 320,
) -> Image:
    """One panel for the 2D stage: exact joints, heatmaps, and the detection with its errors.

    Args:
        image: The network's input as RGB, (H, W, 3).
        maps: Heatmaps, (J, h, w).
        joints: Detected joints in pixels of `image`, (J, 2).
        truth: Exact joints in pixels of `image`, (J, 2); NaN where unlabelled.
        skeleton: The joint set.
        score: Trust in each detected joint, (J,).
        size: Height of the pictures in the panel.

    Returns:
        RGB, three pictures side by side; in the last a red line runs from each detected joint
        to its exact place.
    """
    enlarged = enlarge(image, size)
    scale = enlarged.shape[0] / image.shape[0]
    # Integer coordinates are pixel centres, so enlarging moves them by half a pixel.
    found = (np.asarray(joints, np.float64) + 0.5) * scale - 0.5
    exact = (np.asarray(truth, np.float64) + 0.5) * scale - 0.5
    detected = joints_over(enlarged, found, skeleton, score)
    for start, end in zip(found, exact, strict=True):
        if np.hypot(*(end - start)) > 0.02 * size:
            _line(detected, start, end, PAPER, 4)
            _line(detected, start, end, (214, 30, 50), 2)
            _disc(detected, end, 3, (214, 30, 50))
    return contact_sheet(
        [joints_over(enlarged, exact, skeleton), heatmaps_over(enlarged, maps, skeleton), detected],
        3,
        ["truth", "heatmaps", "detection, red: its error"],
    )


# ---- 3D ----------------------------------------------------------------------------------------


def views3d(
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
        reach: Metres from the root to the border of a view; by default `reach3d` of what is drawn.
        size: Height and width of a view in pixels.

    Returns:
        RGB, the views side by side.
    """
    both = [np.asarray(predicted, np.float64)]
    if target is not None:
        both.append(np.asarray(target, np.float64))
    reach = reach or reach3d(*both)
    views = [_view(both, skeleton, np.radians(azimuth), reach, size) for azimuth in azimuths]
    captions = [_AZIMUTHS.get(azimuth, f"from {azimuth:g}°") for azimuth in azimuths]
    return contact_sheet(views, len(views), captions)


_AZIMUTHS = {0.0: "front, as the camera sees", 90.0: "side, camera on the left"}


def reach3d(*joints3d: ArrayLike) -> float:
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
    canvas = _paper(size, size)
    scale = size / (2 * reach)
    for metres in np.arange(-np.floor(reach * 2), np.floor(reach * 2) + 1) / 2:
        at = size / 2 + metres * scale
        shade = (205, 209, 216) if metres == 0 else FAINT
        _line(canvas, np.array([at, 0]), np.array([at, size]), shade, 1)
        _line(canvas, np.array([0, at]), np.array([size, at]), shade, 1)
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
    _line(canvas, corner - [bar, 0], corner, INK, 2)
    _text(canvas, "0.5 m", (corner - [bar / 2, 5]).tolist(), size=11, anchor="ms")
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
        _line(canvas, points[parent], points[child], PAPER, width + 2)
        _line(canvas, points[parent], points[child], colours[child], width)
        for joint in (parent, child):
            _disc(canvas, points[joint], width * 0.8, colours[joint])


def motion_strip(
    predicted: ArrayLike,
    target: ArrayLike | None,
    skeleton: Skeleton,
    *,
    frames: int = 8,
    pictures: Sequence[Image] | None = None,
    azimuths: Sequence[float] = (0.0, 90.0),
    size: int = 150,
) -> Image:
    """Several frames of a clip side by side, one row per view.

    Args:
        predicted: Root-relative joints in the camera frame, metres, (T, J, 3).
        target: The truth, (T, J, 3), or none.
        skeleton: The joint set.
        frames: How many frames, evenly spread from first to last.
        pictures: What goes above each frame, one per frame of the clip, or none.
        azimuths: One row each; see `views3d`.
        size: Height and width of a cell in pixels.

    Returns:
        RGB.
    """
    poses = np.asarray(predicted, np.float64)
    truths = None if target is None else np.asarray(target, np.float64)
    reach = reach3d(poses, *([] if truths is None else [truths]))
    chosen = np.unique(np.linspace(0, len(poses) - 1, min(frames, len(poses))).round().astype(int))
    rows: list[Image] = [] if pictures is None else [enlarge(pictures[t], size) for t in chosen]
    for azimuth in azimuths:
        for t in chosen:
            both = [poses[t]] if truths is None else [poses[t], truths[t]]
            rows.append(_view(both, skeleton, np.radians(azimuth), reach, size))
    captions = [f"frame {t}" for t in chosen] + [""] * (len(rows) - len(chosen))
    return contact_sheet(rows, len(chosen), captions)


def clip_frames(
    predicted: ArrayLike,
    target: ArrayLike | None,
    skeleton: Skeleton,
    *,
    pictures: Sequence[Image] | None = None,
    joints2d: ArrayLike | None = None,
    title: str = "",
    size: int = 200,
    every: int = 1,
) -> Iterator[Image]:
    """The frames of a clip as a film: what went in, front, and side.

    Args:
        predicted: Root-relative joints in the camera frame, metres, (T, J, 3).
        target: The truth, (T, J, 3), or none.
        skeleton: The joint set.
        pictures: What was seen, one per frame, or none.
        joints2d: 2D that went in, in any unit, (T, J, 2); drawn where there are no pictures.
        title: Written above.
        size: Height of the views in pixels.
        every: Show each n-th frame only.

    Yields:
        RGB, all of one size.
    """
    poses = np.asarray(predicted, np.float64)
    truths = None if target is None else np.asarray(target, np.float64)
    reach = reach3d(poses, *([] if truths is None else [truths]))
    bounds = None if joints2d is None else bounds2d(joints2d)
    for t in range(0, len(poses), every):
        truth = None if truths is None else truths[t]
        panel = views3d(poses[t], truth, skeleton, reach=reach, size=size)
        seen = None
        if pictures is not None:
            seen = enlarge(pictures[t], size)
        elif joints2d is not None:
            seen = joints_alone(np.asarray(joints2d)[t], skeleton, bounds=bounds, size=size)
        if seen is not None:
            panel = beside(contact_sheet([seen], 1, ["2D input"]), panel)
        yield titled(panel, f"{title}  frame {t}".strip())


# ---- sheets and charts -------------------------------------------------------------------------


def contact_sheet(
    images: Sequence[Image], columns: int, captions: Sequence[str] | None = None
) -> Image:
    """Pictures in a grid on white paper, captions above them.

    Args:
        images: RGB pictures, not necessarily of one size; smaller ones are centred in their cell.
        columns: Pictures in a row.
        captions: One per picture, or none; a caption that is too wide is cut.

    Returns:
        RGB.

    Raises:
        ValueError: If there is no picture, or not one caption per picture.
    """
    if not images or (captions is not None and len(captions) != len(images)):
        raise ValueError(f"{len(images)} pictures and {len(captions or [])} captions make no sheet")
    columns = min(columns, len(images))
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    heads = [
        22 if captions and any(captions[start : start + columns]) else 0
        for start in range(0, len(images), columns)
    ]
    tops = np.cumsum([GAP] + [height + head + GAP for head in heads])
    sheet = _paper(int(tops[-1]), columns * (width + GAP) + GAP)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        x, y = GAP + column * (width + GAP), int(tops[row])
        if captions and captions[i]:
            _text(sheet, captions[i], (x, y + 15), size=13, width=width)
        y += heads[row] + (height - image.shape[0]) // 2
        x += (width - image.shape[1]) // 2
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def beside(*images: Image) -> Image:
    """Pictures in one row, top edges aligned, on white paper."""
    height = max(image.shape[0] for image in images)
    row = [
        np.pad(
            image,
            ((0, height - image.shape[0]), (0, 0), (0, 0)),
            mode="constant",
            constant_values=255,
        )
        for image in images
    ]
    return np.concatenate(row, axis=1)


def titled(image: Image, title: str) -> Image:
    """A picture with a bold line of text above it."""
    head = _paper(30, image.shape[1])
    _text(head, title, (GAP, 21), size=15, bold=True, width=image.shape[1] - 2 * GAP)
    return np.concatenate([head, image])


def enlarge(image: Image, height: int) -> Image:
    """A picture at another height, its proportions kept; always a new array."""
    rows, columns = image.shape[:2]
    width = max(1, round(columns * height / rows))
    how = cv2.INTER_CUBIC if height > rows else cv2.INTER_AREA
    resized = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=how)
    return np.asarray(resized, np.uint8)


def bars(
    names: Sequence[str],
    values: Sequence[float],
    unit: str,
    title: str,
    *,
    mean: float | None = None,
) -> Image:
    """Horizontal bars, one per name, in the order given, with a dashed line at their mean.

    Args:
        names: Of the bars.
        values: Their lengths; what is not finite has none.
        unit: Of the values.
        title: Above the bars.
        mean: Of all that was counted, where the bars do not count alike; else that of the bars.
    """
    figure, axes = _figure(7.0, 1.1 + 0.27 * len(names), title)
    heights = np.asarray(values, np.float64)
    drawn = np.where(np.isfinite(heights), heights, 0)
    rows = np.arange(len(names))
    axes.barh(rows, drawn, height=0.68, color=_unit(RIGHT))
    for row, value in zip(rows, heights, strict=True):
        text = f"{value:.1f}" if np.isfinite(value) else "none"
        axes.annotate(  # right of the chart: no line is there
            text,
            (1, row),
            xycoords=("axes fraction", "data"),
            xytext=(38, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=9,
            color=_unit(INK),
        )
    if mean is None and np.isfinite(heights).any():
        mean = float(np.nanmean(heights))
    if mean is not None and np.isfinite(mean):
        axes.axvline(mean, color=_unit(LEFT), linewidth=1.4, linestyle="--", zorder=0.5)
        axes.set_title(f"mean {mean:.1f}", loc="right", fontsize=9, color=_unit(LEFT))
    axes.set_yticks(rows, [name.replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.02)
    axes.set_xlim(left=min(0.0, float(drawn.min(initial=0.0))))
    axes.set_xlabel(unit)
    axes.grid(visible=False, axis="y")
    return _rendered(figure)


def matrix(names: Sequence[str], values: ArrayLike, title: str) -> Image:
    """A square of numbers as shades, (N, N): row and column i belong to name i."""
    figure, axes = _figure(6.6, 6.0, title)
    shades = axes.imshow(np.asarray(values, np.float64), cmap="magma", vmin=0.0)
    words = [name.replace("_", " ") for name in names]
    axes.set_xticks(range(len(words)), words, rotation=90)
    axes.set_yticks(range(len(words)), words)
    axes.grid(visible=False)
    figure.colorbar(shades, ax=axes, shrink=0.8)
    return _rendered(figure)


def curves(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]], xlabel: str, ylabel: str, title: str
) -> Image:
    """Lines, one per series of (x, y), last value written; values that are not finite are gaps."""
    many = len(series) > _FEW
    figure, axes = _figure(9.0 if many else 7.0, 3.8, title)
    ends: list[tuple[float, float, tuple[float, float, float]]] = []
    for i, (name, (x, y)) in enumerate(series.items()):
        colour, style = _unit(SERIES[i % len(SERIES)]), ("-", "--", ":")[i // _FEW % 3]
        xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
        mark = ("o", "s", "^")[i // _FEW % 3] if len(xs) <= 30 else ""
        axes.plot(xs, ys, style, color=colour, linewidth=1.8, marker=mark, markersize=4, label=name)
        finite = np.flatnonzero(np.isfinite(ys))
        if len(finite):
            ends.append((float(xs[finite[-1]]), float(ys[finite[-1]]), colour))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.margins(x=0.08)
    _write_ends(axes, ends)
    if many:
        figure.legend(frameon=False, fontsize=9, handlelength=3.5, loc="outside right upper")
    elif len(series) > 1:
        axes.legend(frameon=False, fontsize=9)
    return _rendered(figure)


def _write_ends(
    axes: Axes, ends: Sequence[tuple[float, float, tuple[float, float, float]]]
) -> None:
    """The value right of the end of each line, as near to it as no line crosses it.

    Those at the same x stay in their order and move together.
    """
    figure = cast("Figure", axes.figure)
    figure.draw_without_rendering()  # from here on the axes stand where they are
    point = figure.dpi / 72
    lines = [line.get_path().transformed(line.get_transform()) for line in axes.lines]
    taken: list[Bbox] = []
    for _, group in itertools.groupby(sorted(ends), key=lambda end: end[0]):
        texts, free = [], -np.inf
        for x, y, colour in group:
            foot = axes.transData.transform((x, y))[1] / point
            height = max(foot, free)
            free = height + 9.5
            text = axes.annotate(
                f"{y:.1f}",
                (x, y),
                (5, height - foot),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=colour,
            )
            texts.append(text)
        for step in sorted(range(-48, 49, 2), key=abs):
            boxes = [text.get_window_extent().translated(0, step * point) for text in texts]
            crossed = any(line.intersects_bbox(box, False) for line in lines for box in boxes)
            if not crossed and not any(box.overlaps(other) for box in boxes for other in taken):
                break
        taken += boxes
        for text in texts:
            text.xyann = (5, text.xyann[1] + step)


def _figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # heavy, and most runs of the package draw no chart

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_unit(INK))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_unit(TRUTH))
    axes.tick_params(colors=_unit(INK), labelsize=9, length=0)
    axes.grid(visible=True, color=_unit(FAINT), linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _rendered(figure: Figure) -> Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _unit(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


# ---- files -------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, else goes.

    Args:
        path: The file to write; its folder is made.

    Yields:
        Where to write: an empty file.

    Raises:
        StorageError: If the folder takes no file, or the file cannot be put in place.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")  # `checkpoint.sweep` finds it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); make room, or let this user "
            "write to the folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_png(path: Path, image: Image) -> None:
    """Write an RGB picture, (H, W, 3), as a PNG that is whole or absent.

    Raises:
        StorageError: If the disk does not take it.
    """
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    with whole(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def write_clip(path: Path, frames: Iterable[Image], fps: float) -> int:
    """Write RGB frames of one size, (H, W, 3), as a VP9 film that is whole or absent.

    Args:
        path: Ends in .webm, which browsers play.
        frames: At least one; odd sizes gain a white row or column, as the codec needs even ones.
        fps: Frames per second, Hz.

    Returns:
        How many frames were written.

    Raises:
        ValueError: If there are no frames.
        StorageError: If the film cannot be written (OpenCV without VP9, a full disk).
    """
    writer: Any = None
    count = 0
    with whole(path) as temporary:
        try:
            for frame in frames:
                height, width = frame.shape[:2]
                odd = ((0, height % 2), (0, width % 2), (0, 0))
                picture = np.pad(frame, odd, mode="constant", constant_values=255)[..., ::-1]
                if writer is None:
                    writer = _film(temporary, picture.shape[1], picture.shape[0], fps)
                writer.write(np.ascontiguousarray(picture))
                count += 1
        finally:
            if writer is not None:
                writer.release()
        if not count:
            raise ValueError(f"{path}: a film needs at least one frame")
        if temporary.stat().st_size == 0:
            raise StorageError(f"{path}: OpenCV wrote no film; check the disk")
    return count


def _film(path: Path, width: int, height: int, fps: float) -> Any:
    code = cv2.VideoWriter.fourcc(*"VP90")
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "film.webm"  # FFmpeg wants the ending; what it has opened it keeps
        link.symlink_to(path.resolve())
        with _without_stderr():  # it says that webm has no such tag, and writes it all the same
            writer = cv2.VideoWriter(str(link), code, float(fps), (width, height))
    if not writer.isOpened():
        raise StorageError(
            f"{path}: this OpenCV cannot write VP9 films; install opencv-python from PyPI"
        )
    return writer


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Keep what a C library prints out of the terminal; nothing else may happen in the block."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            kept = os.dup(2)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
            void = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, void)
            os.dup2(void, 2)
        yield


# ---- strokes: these draw onto the canvas they are given -----------------------------------------


def _paper(height: int, width: int) -> Image:
    return np.full((height, width, 3), PAPER, np.uint8)


def _fixed(point: NDArray[np.float64]) -> tuple[int, int] | None:
    """Fixed-point pixels as OpenCV takes them; none where there is nothing to draw."""
    if not np.isfinite(point).all() or np.abs(point).max() > _FAR:
        return None
    x, y = np.round(point * 2**_SUBPIXEL).astype(int).tolist()
    return x, y


def _line(
    canvas: Image, start: NDArray[np.float64], end: NDArray[np.float64], colour: Colour, width: int
) -> None:
    first, second = _fixed(start), _fixed(end)
    if first is not None and second is not None:
        cv2.line(canvas, first, second, colour, width, cv2.LINE_AA, _SUBPIXEL)


def _disc(canvas: Image, point: NDArray[np.float64], radius: float, colour: Colour) -> None:
    centre = _fixed(point)
    if centre is not None:
        fixed = round(radius * 2**_SUBPIXEL)
        cv2.circle(canvas, centre, fixed, colour, cv2.FILLED, cv2.LINE_AA, _SUBPIXEL)


def _maps(heatmaps: ArrayLike) -> NDArray[np.float32]:
    maps = np.nan_to_num(np.asarray(heatmaps, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return np.maximum(maps, 0)


def _enlarged(heat: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    resized = cv2.resize(
        np.ascontiguousarray(heat), (width, height), interpolation=cv2.INTER_LINEAR
    )
    return np.asarray(resized, np.float32)


def _dimmed(image: Image) -> NDArray[np.float32]:
    """The picture in dark grey, (H, W, 3), for colours to stand out on."""
    grey = np.asarray(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY), np.float32)
    return np.repeat(grey[..., None] * 0.5 + 10, 3, axis=2)


@functools.lru_cache(maxsize=64)
def _font(size: int, bold: bool) -> Any:
    import matplotlib as mpl  # carries the font, so that text looks the same on every machine
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), size)


@functools.lru_cache(maxsize=512)
def _lettering(text: str, size: int, bold: bool, width: int | None) -> NDArray[np.float32]:
    """Opacity of a line of text, (h, w); its baseline is `size` below its top."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    font = _font(size, bold)
    while width is not None and len(text) > 1 and font.getlength(text) > width:
        text = text.rstrip("…")[:-1] + "…"
    sheet = Pillow.new("L", (int(font.getlength(text)) + 2, size * 3 // 2))
    ImageDraw.Draw(sheet).text((1, size), text, font=font, fill=255, anchor="ls")
    return np.asarray(sheet, np.float32) / np.float32(255)


def _text(
    canvas: Image,
    text: str,
    at: Sequence[float],
    *,
    size: int = 13,
    bold: bool = False,
    colour: Colour = INK,
    anchor: str = "ls",
    width: int | None = None,
) -> None:
    """Write one line; `at` is the left (`ls`) or the middle (`ms`) of its baseline."""
    ink = _lettering(text, size, bold, width)
    x, y = round(at[0]), round(at[1]) - size
    if anchor == "ms":
        x -= ink.shape[1] // 2
    top, left = max(-y, 0), max(-x, 0)
    target = canvas[max(y, 0) : max(y + ink.shape[0], 0), max(x, 0) : max(x + ink.shape[1], 0)]
    shade = ink[top : top + target.shape[0], left : left + target.shape[1], None]
    target += (
        ((np.array(colour, np.float32) - target) * shade).round().astype(np.int16).astype(np.uint8)
    )
