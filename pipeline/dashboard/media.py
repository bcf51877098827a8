"""PNG images and WebM videos written to files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from pipeline.dashboard.canvas import Image
from pipeline.errors import StorageError
from pipeline.files.writing import atomic_path


def write_png(path: Path, image: Image) -> None:
    """Write an RGB image, (H, W, 3), as a PNG file, atomically.

    Raises:
        StorageError: If the file cannot be written.
    """
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def write_video(
    path: Path, frames: Iterable[Image], fps: float, *, codec: Literal["VP80", "VP90"] = "VP80"
) -> int:
    """Write RGB frames of one size, (H, W, 3), as a VP8 or VP9 video, atomically.

    Args:
        path: Path of the video, ending in .webm.
        frames: At least one frame; the codec needs even sizes, so a white row or column is added
            to odd ones.
        fps: Frames per second, Hz.
        codec: VP8, or VP9, which takes OpenCV more than twice as long; browsers play both.

    Returns:
        Number of frames written.

    Raises:
        ValueError: If there are no frames.
        StorageError: If the video cannot be written (OpenCV without the codec, a full disk).
    """
    writer: Any = None
    count = 0
    with atomic_path(path) as temporary:
        try:
            for frame in frames:
                height, width = frame.shape[:2]
                odd = ((0, height % 2), (0, width % 2), (0, 0))
                image = np.pad(frame, odd, mode="constant", constant_values=255)[..., ::-1]
                if writer is None:
                    writer = _video_writer(temporary, image.shape[1], image.shape[0], fps, codec)
                writer.write(np.ascontiguousarray(image))
                count += 1
        finally:
            if writer is not None:
                writer.release()
        if not count:
            raise ValueError(f"{path}: a video needs at least one frame")
        if temporary.stat().st_size == 0:
            raise StorageError(f"{path}: OpenCV wrote no video; check the disk")
    return count


def _video_writer(path: Path, width: int, height: int, fps: float, codec: str) -> Any:
    code = cv2.VideoWriter.fourcc(*codec)
    with tempfile.TemporaryDirectory() as folder:
        # FFmpeg needs the suffix .webm; it keeps the opened file when the link is removed.
        link = Path(folder) / "video.webm"
        link.symlink_to(path.resolve())
        with _silent_stderr():  # FFmpeg prints a harmless line about an unknown tag
            writer = cv2.VideoWriter(str(link), code, float(fps), (width, height))
    if not writer.isOpened():
        raise StorageError(
            f"{path}: this OpenCV cannot write {codec} videos; install opencv-python from PyPI"
        )
    return writer


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Redirect file descriptor 2 to /dev/null, because a C library prints there."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            original = os.dup(2)
            stack.callback(os.close, original)
            stack.callback(os.dup2, original, 2)
            null = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, null)
            os.dup2(null, 2)
        yield
