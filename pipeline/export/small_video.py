"""Videos that are small enough to be put into a page."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.dashboard.canvas import Image
from pipeline.dashboard.media import write_video
from pipeline.files.videos import VideoFile

LARGEST = 13_500_000
"""Largest video in a page, bytes; it needs a third more as text."""

SOFT = 0.75
"""Share of the height below which what is drawn in a video is blurred."""

LOWEST_HEIGHT = 180
"""A video that must be lower than this, pixels, is left out."""

BLUR = 0.8
"""Deviation of the Gaussian that is applied to a smaller video, pixels: OpenCV encodes VP8 at a
fixed quality, and a blur costs less of what is seen than a still lower height."""

BLUR_SHARE = 0.8
"""Size of a blurred video relative to a sharp one of the same height, measured."""


@dataclass(frozen=True)
class SmallVideo:
    """A video for a page.

    Args:
        data: The webm file.
        fps: Its frame rate, Hz.
        frames: Number of its frames.
        is_soft: Whether it is so much smaller than its source that the joints in it are blurred.
    """

    data: bytes
    fps: float
    frames: int
    is_soft: bool


def shrink_video(
    path: Path, fps: float, frames: int, *, largest: int = LARGEST
) -> SmallVideo | None:
    """Read a webm video, or encode it again with a lower height if it is too large.

    Args:
        path: The video.
        fps: Its frame rate, Hz.
        frames: Number of its frames.
        largest: Largest size, bytes.

    Returns:
        The video; None if it would have to be lower than `LOWEST_HEIGHT`.

    Raises:
        DataError: If it cannot be decoded.
        StorageError: If the smaller one cannot be written.
    """
    size = path.stat().st_size
    if size <= largest:
        return SmallVideo(path.read_bytes(), fps, frames, False)
    video = VideoFile(path)
    share = largest / size / BLUR_SHARE
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "small.webm"
        for _ in range(2):
            height = round(video.size[1] * min(1.0, 0.95 * share**0.5))
            if height < LOWEST_HEIGHT:
                return None
            count = write_video(target, _smaller_frames(video, height), fps)
            size = target.stat().st_size
            if size <= largest:
                return SmallVideo(target.read_bytes(), fps, count, height < SOFT * video.size[1])
            share *= 0.9 * largest / size
    return None


def _smaller_frames(video: VideoFile, height: int) -> Iterator[Image]:
    """Frames of a video with a lower height, blurred."""
    width = round(video.size[0] * height / video.size[1])
    for _, image in video.frames():
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        yield np.asarray(cv2.GaussianBlur(small, (0, 0), BLUR), np.uint8)
