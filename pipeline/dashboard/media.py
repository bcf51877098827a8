"""PNG images and WebM videos written to files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.dashboard.canvas import Image
from pipeline.errors import StorageError
from pipeline.files.writing import atomic_path


def write_png(path: Path, image: Image) -> None:
    """Write an RGB image, (H, W, 3), as a PNG that is whole or absent.

    Raises:
        StorageError: If the disk does not take it.
    """
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def write_video(path: Path, frames: Iterable[Image], fps: float) -> int:
    """Write RGB frames of one size, (H, W, 3), as a VP9 video that is whole or absent.

    Args:
        path: Ends in .webm, which browsers play.
        frames: At least one; odd sizes gain a white row or column, as the codec needs even ones.
        fps: Frames per second, Hz.

    Returns:
        How many frames were written.

    Raises:
        ValueError: If there are no frames.
        StorageError: If the video cannot be written (OpenCV without VP9, a full disk).
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
                    writer = _video_writer(temporary, image.shape[1], image.shape[0], fps)
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


def _video_writer(path: Path, width: int, height: int, fps: float) -> Any:
    code = cv2.VideoWriter.fourcc(*"VP90")
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "video.webm"  # FFmpeg wants the ending; what it has opened it keeps
        link.symlink_to(path.resolve())
        with _without_stderr():  # it says that webm has no such tag, and writes it all the same
            writer = cv2.VideoWriter(str(link), code, float(fps), (width, height))
    if not writer.isOpened():
        raise StorageError(
            f"{path}: this OpenCV cannot write VP9 videos; install opencv-python from PyPI"
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
