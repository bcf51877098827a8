"""Media: frames of a video, of a folder of images or of a webcam, with their times."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, printable
from pipeline.files.digests import bytes_digest, file_digest
from pipeline.files.image_folders import (
    IMAGE_SUFFIXES,
    ImageFolder,
    list_images,
    read_upright,
    rotation_of,
)
from pipeline.files.videos import VideoFile, check_size, is_video, webcam_frames
from pipeline.predict.options import check_clip, is_webcam

DEFAULT_FPS = 30.0
"""Frame rate of images, and of videos that state none, where none is given, Hz."""

READ_AHEAD = 8
"""Frames that are decoded while the frame before is worked on."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A frame of a clip.

    Args:
        index: Number of the frame in the clip: 0, 1, 2, ….
        time: Seconds from the start of the source.
        image: RGB, (H, W, 3), uint8, upright.
        number: Number of the frame in the source, which is not cut; that of the clip by default.
    """

    index: int
    time: float
    image: NDArray[np.uint8]
    number: int = -1

    def __post_init__(self) -> None:
        if self.number < 0:
            object.__setattr__(self, "number", self.index)


class Media:
    """Frames of one source, decoded one after the other: memory does not grow with its length.

    Args:
        name: Name for messages and files.
        kind: Kind of the source.
        size: Width and height of the upright images; None for a webcam, before its first frame.
        fps: Frames per second of the source; 0 if it has none.
        expected: Number of frames that the source states; 0 if it does not.
        rotation: Rotation that makes the frames upright, degrees clockwise.
        digest: Function that gives the SHA-256 of the source, or its names, sizes and times.
        read: Function that starts the frames of the source: seconds and image; for images, their
            places in time instead of seconds.
        time: First and last second of the source that are used.
        every: Number of the source's frames from one frame of the clip to the next.
        given_fps: Frame rate that replaces the times of the source.

    Attributes:
        times: Times of the frames so far, seconds.
        notes: Sentences for the user about the source; complete after the last frame.
        seen: Frames of the source that were decoded.
    """

    def __init__(
        self,
        name: str,
        kind: Literal["video", "images", "webcam"],
        size: tuple[int, int] | None,
        read: Callable[[], Iterator[tuple[float, NDArray[np.uint8]]]],
        *,
        fps: float = 0.0,
        expected: int = 0,
        rotation: int = 0,
        digest: Callable[[], str] = str,
        time: tuple[float, float] | None = None,
        every: int = 1,
        given_fps: float | None = None,
    ) -> None:
        check_clip(time, every, given_fps)
        self.name, self.kind, self.size, self.rotation = name, kind, size, rotation
        self.expected, self._digest, self._read = expected, digest, read
        self._time, self._every, self._given = time, every, given_fps
        self._source_fps = given_fps or fps or DEFAULT_FPS
        self.seen, self.last, self.times = 0, -np.inf, list[float]()
        self.first_notes = [f"{rotation} degrees of rotation applied"] if rotation else []
        if not (given_fps or fps) and kind != "webcam":
            self.first_notes.append(f"{DEFAULT_FPS:g} frames per second (--fps)")
        self.notes = list(self.first_notes)

    @property
    def fps(self) -> float:
        """Frames per second of the clip; the mean rate of the frames once they are read."""
        if len(self.times) > 1:
            return (len(self.times) - 1) / (self.times[-1] - self.times[0])
        return self._source_fps / self._every

    @property
    def count(self) -> int:
        """Expected number of frames of the clip; 0 if unknown."""
        if self._time is not None:
            seconds = min(self._time[1], self.expected / self._source_fps or self._time[1])
            frames = max(0, int((seconds - self._time[0]) * self._source_fps) + 1)
        else:
            frames = self.expected
        return -(-frames // self._every)

    def facts(self) -> dict[str, Any]:
        """Facts of the source for the file of a motion, as plain values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "sha256": self._digest(),
            "frames": self.seen,
            "expected_frames": self.expected,
            "rotation": self.rotation,
            "time": list(self._time) if self._time else None,
            "every": self._every,
            "given_fps": self._given,
        }

    def key(self) -> dict[str, Any]:
        """What the frames of the clip depend on, for the key of a cache."""
        return {
            "digest": self._digest(),
            "time": list(self._time) if self._time else None,
            "every": self._every,
            "given_fps": self._given,
        }

    def __iter__(self) -> Iterator[Frame]:
        """The frames of the clip, decoded ahead in another thread.

        Raises:
            DataError: If a frame cannot be read.
        """
        self.times, self.notes, self.seen, self.last = [], list(self.first_notes), 0, -np.inf
        if self.kind == "webcam":
            yield from self._frames(self._read())
        else:
            yield from self._frames(read_ahead(self._read, READ_AHEAD))
        self._note_ending()

    def _frames(self, frames: Iterator[tuple[float, NDArray[np.uint8]]]) -> Iterator[Frame]:
        repaired = 0
        with contextlib.closing(frames):  # type: ignore[type-var]
            for number, (seconds, image) in enumerate(frames):
                self.seen = number + 1
                if self.kind == "images":
                    seconds /= self._source_fps
                elif self._given:
                    seconds = number / self._source_fps
                if seconds <= self.last:
                    seconds, repaired = self.last + 1 / self._source_fps, repaired + 1
                self.last = seconds
                if self.size is None:
                    self.size = (image.shape[1], image.shape[0])
                if self._time and seconds < self._time[0] - 1e-6:
                    continue
                if self._time and seconds > self._time[1] + 1e-6:
                    break
                if number % self._every:
                    continue
                self.times.append(float(seconds))
                yield Frame(len(self.times) - 1, float(seconds), image, number)
        if repaired:
            self.notes.append(f"{repaired} frames had no later time than the one before; repaired")

    def _note_ending(self) -> None:
        cut_early = self._time is None or self.last < self._time[1] - 1 / self._source_fps
        if cut_early and self.expected and self.seen != self.expected:
            self.notes.append(
                f"the file states {self.expected} frames, and {self.seen} can be decoded"
            )
        if not self.times:
            span = f" between {self._time[0]:g} and {self._time[1]:g} s" if self._time else ""
            raise DataError(f"{self.name}: has no frame{span}")
        steps = np.diff(self.times)
        if len(steps) > 2 and steps.max() > 1.5 * np.median(steps) and self.kind == "video":
            self.notes.append(
                f"variable frame rate: {1 / steps.max():.3g} to {1 / steps.min():.3g} frames/s; "
                "the times of the stream are used"
            )


def open_media(
    source: str | Path,
    *,
    time: tuple[float, float] | None = None,
    every: int = 1,
    fps: float | None = None,
) -> Media:
    """Open a video file, a folder of images, an image or a webcam.

    Args:
        source: Path of a video, an image or a folder of images; the number of a webcam.
        time: First and last second that are used; all by default.
        every: Use every n-th frame.
        fps: Frames per second, instead of those of the source.

    Raises:
        DataError: If the source is missing, damaged or of another kind.
        UsageError: If an option makes no sense.
    """
    text = str(source)
    options: dict[str, Any] = {"time": time, "every": every, "given_fps": fps}
    path = Path(source)
    require_source(text)
    if is_webcam(text):
        return Media(f"webcam {text}", "webcam", None, lambda: webcam_frames(int(text)), **options)
    if path.is_dir():
        return _open_folder(path, options)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _open_images(path, ImageFolder((path,), (0,), 0, 0), options)
    video = VideoFile(path)
    media = Media(
        path.name,
        "video",
        video.size,
        video.frames,
        fps=video.fps,
        expected=video.expected,
        rotation=video.rotation,
        digest=lambda: file_digest(path),
        **options,
    )
    if video.stored != video.size:
        stored, size = (f"{width}x{height}" for width, height in (video.stored, video.size))
        media.first_notes.append(f"pixels are not square: {stored} is seen as {size}")
    return media


def check_name(path: Path) -> None:
    """Check that the whole name of a file is text: OpenCV crashes at others.

    Raises:
        DataError: If it is not.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{printable(str(path))}: the name of the file or of a folder above it is no valid "
            "UTF-8; rename it"
        ) from error


def require_source(text: str) -> None:
    """Check that a source is the number of a webcam, or a file or folder that exists.

    Raises:
        DataError: If it is not.
    """
    path = Path(text)
    check_name(path)
    if "://" in text:
        raise DataError(f"{text}: is a URL; download the file first and give its path")
    if path.exists() or is_webcam(text):
        return
    if "%" in path.name:
        raise DataError(f"{text}: is a pattern of names; give the folder of the images instead")
    raise DataError(f"{text}: no such file or folder")


def is_media(path: Path) -> bool:
    """Whether a path is a video, an image or a folder of images, by its content."""
    if path.is_dir():
        return any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.iterdir())
    return path.suffix.lower() in IMAGE_SUFFIXES or is_video(path)


def _open_folder(folder: Path, options: dict[str, Any]) -> Media:
    return _open_images(folder, list_images(folder), options)


def _open_images(path: Path, images: ImageFolder, options: dict[str, Any]) -> Media:
    """Media of image files, which must all have the size of the first."""
    first = read_upright(images.paths[0])
    size = (first.shape[1], first.shape[0])
    check_size(size, str(images.paths[0]))

    def read() -> Iterator[tuple[float, NDArray[np.uint8]]]:
        for file, place in zip(images.paths, images.places, strict=True):
            image = read_upright(file)
            if (image.shape[1], image.shape[0]) != size:
                raise DataError(
                    f"{file}: is {image.shape[1]}x{image.shape[0]}, and {images.paths[0].name} is "
                    f"{size[0]}x{size[1]}; images of one clip have one size"
                )
            yield place, image

    media = Media(
        path.name,
        "images",
        size,
        read,
        expected=len(images.paths),
        rotation=rotation_of(images.paths[0], first),
        digest=lambda: _images_digest(images),
        **options,
    )
    if images.holes:
        media.first_notes.append(
            f"{images.holes} images are missing in the numbering; time goes on over them"
        )
    if images.step > 1:
        media.first_notes.append(
            f"images are numbered in steps of {images.step}, and follow one another in time"
        )
    if not images.are_frames:
        media.first_notes.append(
            "the numbers in the names are no frame numbers; the images follow one another in time"
        )
    if images.others:
        media.first_notes.append(f"{images.others} files in the folder are no images; left out")
    return media


def _images_digest(images: ImageFolder) -> str:
    """SHA-256 of the names, sizes and times of the files."""
    states = [(path, path.stat()) for path in images.paths]
    lines = [f"{path.name} {state.st_size} {state.st_mtime_ns}" for path, state in states]
    return bytes_digest("\n".join(lines).encode())


def read_ahead(start: Callable[[], Iterator[Any]], depth: int) -> Iterator[Any]:
    """Items of an iterator, made ahead by another thread.

    Args:
        start: Function that starts the iterator; it is called and used in the other thread.
        depth: Largest number of items that wait.
    """
    items: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()
    end = object()

    def put(item: Any) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                items.put(item, timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            with contextlib.closing(start()) as source:  # type: ignore[type-var]
                for item in source:
                    if not put(item):
                        return
            put(end)
        except BaseException as error:  # raised again where the items are used
            put(error)

    thread = threading.Thread(target=work, name="frames", daemon=True)
    thread.start()
    try:
        for item in itertools.takewhile(lambda item: item is not end, iter(items.get, object())):
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
