"""Videos of a motion: the people drawn over the source, alone and beside the people in 3D."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.dashboard.canvas import (
    FAINT,
    INK,
    PAPER,
    Colour,
    Image,
    blank_canvas,
    draw_disc,
    draw_line,
    draw_text,
    resize_to_height,
)
from pipeline.dashboard.media import write_video
from pipeline.dashboard.skeletons import draw_joints2d
from pipeline.export.motion import FILLED, MISSING, Motion, PersonMotion
from pipeline.export.motion_data import PERSON_COLOURS

MAX_HEIGHT = 720
"""Height of the overlay in pixels; larger sources are drawn smaller."""

SIDE_HEIGHT = 480
"""Height of the video with 3D in pixels."""

VIEW_AZIMUTH = 35.0
"""Direction of the 3D view, degrees about the vertical: from the front, somewhat from the right."""

VIEW_ELEVATION = 15.0
"""Angle at which the 3D view looks down, degrees."""


def person_colour(motion: Motion, person: PersonMotion) -> Colour:
    """Colour of a person, the same in all images of a motion."""
    return PERSON_COLOURS[motion.people.index(person) % len(PERSON_COLOURS)]


def write_overlay(motion: Motion, images: Iterable[Image], path: Path) -> int:
    """Write a VP8 video of the source with 2D joints and ids of the people.

    Args:
        motion: The motion.
        images: RGB frames of the source, (H, W, 3), one per frame of the motion.
        path: Path of the video, ending in .webm.

    Returns:
        Number of frames written.

    Raises:
        StorageError: If the video cannot be written.
    """
    height = min(MAX_HEIGHT, motion.size[1])
    frames = (
        draw_overlay(motion, index, image, height=height) for index, image in enumerate(images)
    )
    return write_video(path, frames, motion.fps)


def write_side_by_side(motion: Motion, images: Iterable[Image] | None, path: Path) -> int:
    """Write a VP8 video of the source with the people, beside the people in 3D.

    Args:
        motion: The motion.
        images: RGB frames of the source, one per frame of the motion; None where there are none.
        path: Path of the video, ending in .webm.

    Returns:
        Number of frames written.

    Raises:
        StorageError: If the video cannot be written.
    """
    scene = Scene(motion)

    def frames() -> Iterator[Image]:
        for index, image in enumerate(images or _blank_images(motion)):
            left = draw_overlay(motion, index, image, height=SIDE_HEIGHT)
            yield np.concatenate([left, scene.draw(index, SIDE_HEIGHT)], axis=1)

    return write_video(path, frames(), motion.fps)


def _blank_images(motion: Motion) -> Iterator[Image]:
    """A white image for each frame, with the size of the source."""
    width, height = motion.size
    scale = min(1.0, SIDE_HEIGHT / height)
    blank = blank_canvas(max(2, round(height * scale)), max(2, round(width * scale)))
    for _ in range(len(motion)):
        yield blank


def draw_overlay(
    motion: Motion,
    index: int,
    image: Image,
    *,
    height: int,
    colours: Mapping[str, Colour] | None = None,
) -> Image:
    """A frame of the source with the people in it: joints, and id above the head.

    Args:
        motion: The motion.
        index: Number of the frame.
        image: RGB, (H, W, 3), upright.
        height: Height of the result in pixels.
        colours: Colour of each id; by default by the place of the person in the motion.
    """
    canvas = resize_to_height(image, height)
    scale = height / motion.size[1]
    for person in motion.people:
        if person.status[index] == MISSING:
            continue
        colour = person_colour(motion, person) if colours is None else colours[person.id]
        joints2d = (person.joints2d[index].astype(np.float64) + 0.5) * scale - 0.5
        score = person.score[index] if person.status[index] != FILLED else None
        canvas = draw_joints2d(canvas, joints2d, motion.skeleton, score, colour=colour)
        known = joints2d[np.isfinite(joints2d).all(-1)]
        if len(known):
            top = known[np.argmin(known[:, 1])]
            _draw_label(canvas, person, top - (0, 14), colour, filled=bool(score is None))
    return canvas


def _draw_label(
    canvas: Image, person: PersonMotion, point: NDArray[np.float64], colour: Colour, *, filled: bool
) -> None:
    """Draw the id of a person into a coloured disc; a white one where the frame is filled in."""
    x, y = np.clip(point, 14, (canvas.shape[1] - 14, canvas.shape[0] - 14)).tolist()
    draw_disc(canvas, np.array([x, y]), 12, colour)
    if filled:
        draw_disc(canvas, np.array([x, y]), 10, PAPER)
    ink = colour if filled else PAPER
    draw_text(canvas, person.id[:3], (x, y + 5), size=14, bold=True, colour=ink, anchor="ms")


class Scene:
    """People in 3D on a floor, seen by an orthographic camera that stands still.

    Args:
        motion: The motion.
    """

    def __init__(self, motion: Motion) -> None:
        self.motion = motion
        self.up = np.array([0.0, 0.0, 1.0] if motion.frame == "world" else [0.0, -1.0, 0.0])
        ahead = np.array([0.0, 1.0, 0.0] if motion.frame == "world" else [0.0, 0.0, 1.0])
        right = np.array([1.0, 0.0, 0.0])
        turn, tilt = np.radians(VIEW_AZIMUTH), np.radians(VIEW_ELEVATION)
        across = np.cos(turn) * right + np.sin(turn) * ahead
        into = np.cos(turn) * ahead - np.sin(turn) * right
        upwards = np.cos(tilt) * self.up + np.sin(tilt) * into
        self.axes = np.stack([across, -upwards, np.cos(tilt) * into - np.sin(tilt) * self.up])
        points = [person.positions.reshape(-1, 3) for person in motion.people]
        cloud = np.concatenate([*points, np.zeros((0, 3))]).astype(np.float64)
        cloud = cloud[np.isfinite(cloud).all(-1)]
        cloud = cloud if len(cloud) else np.zeros((1, 3))
        self.floor = float(np.quantile(cloud @ self.up, 0.01))
        low, high = np.quantile(cloud, (0.005, 0.995), axis=0)
        corners = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, -1).T
        flat = corners @ self.axes[:2].T
        self.middle = (flat.min(axis=0) + flat.max(axis=0)) / 2
        self.half = max(1.1, 0.55 * float((flat.max(axis=0) - flat.min(axis=0)).max()))
        self.centre, self.right, self.ahead = cloud.mean(axis=0), right, ahead

    def draw(self, index: int, size: int) -> Image:
        """The people of a frame, RGB, (size, size, 3)."""
        canvas = blank_canvas(size, size)
        self._draw_floor(canvas)
        people = [p for p in self.motion.people if p.status[index] != MISSING]
        people.sort(key=lambda p: -float(p.root[index] @ self.axes[2]))
        for person in people:
            colour = person_colour(self.motion, person)
            self._draw_person(canvas, person, index, colour)
        draw_text(canvas, f"{self.motion.times[index]:.2f} s", (10, size - 10), size=12)
        return canvas

    def _draw_floor(self, canvas: Image) -> None:
        base = self.centre - (self.centre @ self.up - self.floor) * self.up
        reach = np.arange(-np.ceil(self.half), np.ceil(self.half) + 1)
        for metre in reach:
            for first, second in ((self.right, self.ahead), (self.ahead, self.right)):
                ends = [base + metre * first + side * reach[-1] * second for side in (-1, 1)]
                start, end = self._project(np.stack(ends), canvas.shape[0])
                draw_line(canvas, start, end, FAINT, 1)

    def _draw_person(self, canvas: Image, person: PersonMotion, index: int, colour: Colour) -> None:
        points = self._project(person.positions[index].astype(np.float64), canvas.shape[0])
        width = max(2, canvas.shape[0] // 110)
        for parent, child in self.motion.skeleton.bones:
            draw_line(canvas, points[parent], points[child], PAPER, width + 2)
            left = child in self.motion.skeleton.left
            shade = tuple(int(c * 0.6) for c in colour) if left else colour
            draw_line(canvas, points[parent], points[child], shade, width)  # type: ignore[arg-type]
        head = points[np.argmin(points[:, 1])]
        label = (float(head[0]), float(head[1]) - 8)
        draw_text(canvas, person.id, label, size=13, bold=True, colour=INK, anchor="ms")

    def _project(self, points: NDArray[np.float64], size: int) -> NDArray[np.float64]:
        """Pixels of points of the motion's frame of reference, (N, 3) -> (N, 2)."""
        flat = points @ self.axes[:2].T - self.middle
        return flat / self.half * (size / 2) + size / 2
