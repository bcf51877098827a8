"""Photographs on disk, seen through crops."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Sequence as Many
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.images import image_size, read_image
from pipeline.files.reading import read_bytes
from pipeline.sources import GroundTruth, Images, Samples

_log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=1_000_000)
def _digest(path: str, size: int, modified: int) -> str:
    return hashlib.sha256(read_bytes(Path(path))).hexdigest()


class Photographs:
    """JPEG and PNG files, one per image.

    Args:
        paths: Of the files; a file may stand for several images.
    """

    def __init__(self, paths: Many[Path | str]) -> None:
        self.paths = tuple(str(path) for path in paths)
        self._sizes: dict[str, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of an image in pixels; a file is read for it once."""
        path = self.paths[index]
        if path not in self._sizes:
            self._sizes[path] = image_size(read_bytes(Path(path)), path)
        return self._sizes[path]

    def crop(
        self, index: int, matrix: NDArray[np.float64], size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """A piece of an image, RGB, (H, W, 3), bilinear, black outside."""
        path = self.paths[index]
        whole = read_image(Path(path))
        self._sizes[path] = (whole.shape[1], whole.shape[0])
        piece = cv2.warpAffine(whole, np.asarray(matrix, np.float64), size, flags=cv2.INTER_LINEAR)
        return cv2.cvtColor(piece, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]

    def fingerprint(self, index: int) -> str:
        """SHA-256 of the file, remembered while its size and time of change stay the same."""
        path = Path(self.paths[index])
        try:
            state = path.stat()
        except OSError:
            read_bytes(path)
            raise
        return _digest(str(path), state.st_size, state.st_mtime_ns)


class ConcatenatedImages:
    """Several sets of images, one after the other.

    Args:
        parts: The sets.
    """

    def __init__(self, parts: Many[Images]) -> None:
        self.parts = tuple(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def _find(self, index: int) -> tuple[Images, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[which], int(index - (self.ends[which] - len(self.parts[which])))

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of an image in pixels."""
        part, at = self._find(index)
        return part.size(at)

    def crop(
        self, index: int, matrix: NDArray[np.float64], size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """A piece of an image, RGB, (H, W, 3)."""
        part, at = self._find(index)
        return part.crop(at, matrix, size)

    def fingerprint(self, index: int) -> str:
        """Digest of what decides the image."""
        part, at = self._find(index)
        return part.fingerprint(at)


def drop_unreadable(samples: Samples, limit: int) -> tuple[Samples, list[str]]:
    """Samples whose photographs can be read whole, and what is wrong with the others.

    Args:
        samples: On `Photographs`; every file is read once.
        limit: How many files may be bad.

    Raises:
        DataError: If more than `limit` files are bad.
    """
    images = samples.images
    if not isinstance(images, Photographs):
        raise TypeError(f"only Photographs can be checked, not {type(images).__name__}")
    faults: dict[str, str] = {}
    for path in dict.fromkeys(images.paths):
        try:
            read_image(Path(path))
        except DataError as error:
            faults[path] = str(error)
    if len(faults) > limit:
        first = next(iter(faults.values()))
        raise DataError(f"{len(faults)} photographs are bad, {limit} may be; the first: {first}")
    keep = np.array([path not in faults for path in images.paths], bool)
    for line in faults.values():
        _log.warning("skipped %s", line)
    return select_samples(samples, np.flatnonzero(keep)), list(faults.values())


def select_samples(samples: Samples, indices: NDArray[np.integer]) -> Samples:
    """Some of the samples on photographs, in the order of `indices`, (M,)."""
    images = samples.images
    if not isinstance(images, Photographs):
        raise TypeError(f"only samples on Photographs can be selected, not {type(images).__name__}")
    chosen = {
        part.name: value[indices]
        for part in dataclasses.fields(samples)
        if isinstance(value := getattr(samples, part.name), np.ndarray)
    }
    return dataclasses.replace(
        samples,
        images=Photographs([images.paths[i] for i in indices]),
        ids=None if samples.ids is None else tuple(samples.ids[i] for i in indices),
        actions=None if samples.actions is None else tuple(samples.actions[i] for i in indices),
        truths=tuple(_selected(truth, indices) for truth in samples.truths),
        **chosen,
    )


def _selected(truth: GroundTruth, indices: NDArray[np.integer]) -> GroundTruth:
    """What is known of some of the samples, whose rows are now their places in `indices`."""
    places = np.searchsorted(truth.rows, indices).clip(max=max(len(truth.rows) - 1, 0))
    known = truth.rows[places] == indices if len(truth.rows) else np.zeros(len(indices), bool)
    arrays = {
        part.name: getattr(truth, part.name)[places[known]]
        for part in dataclasses.fields(truth)
        if isinstance(getattr(truth, part.name), np.ndarray)
    }
    return dataclasses.replace(truth, **{**arrays, "rows": np.flatnonzero(known)})
