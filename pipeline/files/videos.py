"""Video files and webcams: checked, then decoded frame by frame, upright, with their times."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.images import MAX_PIXELS
from pipeline.files.reading import read_start

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's own lines name no file

_CONTAINERS = {
    "MP4 or MOV": (4, (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")),
    "Matroska or WebM": (0, (b"\x1a\x45\xdf\xa3",)),
    "AVI": (8, (b"AVI ",)),
    "MPEG": (0, (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")),
    "Ogg": (0, (b"OggS",)),
    "Flash video": (0, (b"FLV\x01",)),
    "Windows media": (0, (b"\x30\x26\xb2\x75",)),
    "GIF": (0, (b"GIF87a", b"GIF89a")),
}
_STREAM = "MPEG transport stream"
_PACKETS = ((0, 188), (4, 192))
"""Place of the first sync byte of a transport stream, and size of its packets; .m2ts has time codes
between them."""

_START = 4 + 192 + 1
"""Bytes of the beginning of a file that tell its container."""

"""Containers that are opened: name -> place and bytes of their signatures. FFmpeg would also open
playlists and lists of other files, which a stranger's file must not do."""

SMALLEST_SIDE = 16
"""Images and videos with a shorter side are rejected: no person can be seen in them."""


class VideoFile:
    """A video file, decoded from its start each time `frames` is called.

    Args:
        path: Path of the file.

    Attributes:
        size: Width and height of the upright frames.
        fps: Frame rate that the file states, Hz; 0 if none.
        expected: Number of frames that the file states; 0 if none.
        rotation: Rotation that was applied to make the frames upright, degrees clockwise.
        stored: Width and height of the upright frames as they are stored; `size` is wider or higher
            if their pixels are not square.

    Raises:
        DataError: If the file is missing, is no video, or holds no frame that can be decoded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _check_container(path)
        capture = _open_capture(path)
        try:
            found, image = capture.read()
            if not found or image is None:
                raise DataError(
                    f"{path}: no frame can be decoded; the file is cut off, empty or of an unknown "
                    "codec; fetch it again or convert it to MP4 (H.264)"
                )
            self.stored = (image.shape[1], image.shape[0])
            fps = float(capture.get(cv2.CAP_PROP_FPS))
            self.fps = fps if 0.01 <= fps <= 1000 else 0.0
            count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
            self.expected = int(count) if 0 < count < 1e9 else 0
            self.rotation = int(capture.get(cv2.CAP_PROP_ORIENTATION_META)) % 360
            self.size = _square_pixels(self.stored, capture, turned=self.rotation % 180 != 0)
        finally:
            capture.release()
        check_size(self.size, str(path))

    def frames(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """Times in seconds as the stream has them, and RGB frames, (H, W, 3), uint8, of `size`.

        Raises:
            DataError: If the size of the image changes.
        """
        capture = _open_capture(self.path)
        try:
            while capture.grab():
                seconds = float(capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000
                found, image = capture.retrieve()
                if not found or image is None:
                    return
                if (image.shape[1], image.shape[0]) != self.stored:
                    raise DataError(
                        f"{self.path}: the image changes from {self.stored[0]}x{self.stored[1]} to "
                        f"{image.shape[1]}x{image.shape[0]} at {seconds:.1f} s; cut the video there"
                    )
                if self.stored != self.size:
                    image = cv2.resize(image, self.size, interpolation=cv2.INTER_LINEAR)
                yield seconds, cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()


def webcam_frames(index: int) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Times in seconds since the first frame, and RGB frames, (H, W, 3), of a webcam.

    Args:
        index: Number of the webcam, 0 for the first.

    Raises:
        DataError: If there is no such webcam, or it gives no image.
    """
    with _no_messages():
        capture = cv2.VideoCapture(index)
    try:
        if not capture.isOpened():
            raise DataError(f"webcam {index}: is not there or is used by another program")
        start = None
        while True:
            found, image = capture.read()
            now = time.monotonic()
            if not found or image is None:
                if start is None:
                    raise DataError(f"webcam {index}: gives no image")
                return
            start = now if start is None else start
            yield now - start, cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # type: ignore[misc]
    finally:
        capture.release()


def is_video(path: Path) -> bool:
    """Whether a file begins as a container that is opened as a video."""
    return _container(read_start(path, _START)) is not None


def check_size(size: tuple[int, int], name: str) -> None:
    """Raise DataError if an image is too small to show a person, or too large."""
    width, height = size
    if min(size) < SMALLEST_SIDE or width * height > MAX_PIXELS:
        raise DataError(
            f"{name}: images of {width}x{height} pixels are not supported; give at least "
            f"{SMALLEST_SIDE} pixels on each side and at most {MAX_PIXELS} pixels"
        )


def _square_pixels(stored: tuple[int, int], capture: Any, *, turned: bool) -> tuple[int, int]:
    """Size of frames whose pixels are made square; the side on which they are too short grows.

    Args:
        stored: Width and height of the upright frames.
        capture: OpenCV's capture; it tells the width of a pixel over its height before a rotation.
        turned: Whether the frames were turned by 90 or 270 degrees.
    """
    width, height = stored
    wide, high = (capture.get(p) for p in (cv2.CAP_PROP_SAR_NUM, cv2.CAP_PROP_SAR_DEN))
    if not (wide > 0 and high > 0 and 0.1 <= wide / high <= 10):
        return stored
    ratio = high / wide if turned else wide / high
    return (round(width * ratio), height) if ratio > 1 else (width, round(height / ratio))


def _container(start: bytes) -> str | None:
    """Name of the container with this beginning; None if it is none of them."""
    for name, (place, signatures) in _CONTAINERS.items():
        if any(start[place : place + len(found)] == found for found in signatures):
            return name
    for first, size in _PACKETS:
        if start[first : first + 1] == start[first + size : first + size + 1] == b"\x47":
            return _STREAM
    return None


def _check_container(path: Path) -> None:
    """Raise DataError if a file does not begin like a video."""
    start = read_start(path, _START)
    if not start:
        raise DataError(f"{path}: is empty; fetch it again")
    if _container(start) is None:
        raise DataError(
            f"{path}: is no video (starts with {start[:8].hex(' ')}); known containers are "
            f"{', '.join((*_CONTAINERS, _STREAM))}"
        )


def _open_capture(path: Path) -> Any:
    """OpenCV's capture of a file, by FFmpeg alone: others take `%04d` in a name for a pattern."""
    with _no_messages():
        capture = cv2.VideoCapture(str(path.resolve()), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        capture.release()
        raise DataError(
            f"{path}: cannot be opened as a video; it is cut off or damaged; fetch it again"
        )
    return capture


@contextlib.contextmanager
def _no_messages() -> Iterator[None]:
    """Silence OpenCV's own warnings, which name no file; this package prints one line instead."""
    logging: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 5 moved these functions
    level = logging.getLogLevel()
    logging.setLogLevel(0)
    try:
        yield
    finally:
        logging.setLogLevel(level)
