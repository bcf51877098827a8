"""Photographs on disk as images of samples and sequences."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.digests import FileVersion, bytes_digest, file_version
from pipeline.files.images import (
    DecodedImage,
    image_size,
    read_image,
    read_reduced_image,
    turned_size,
)
from pipeline.files.reading import read_bytes
from pipeline.sources import GroundTruth, Images, Remarks, Samples

_log = logging.getLogger(__name__)

SIZE_TOLERANCE = 2
"""Pixels by which an image may differ from its declared size: no joint moves by more than that.
Human3.6M's cameras have 1000 or 1002 rows."""


class TooManyBadError(DataError):
    """More files or annotations are bad than may be left out."""


@functools.lru_cache(maxsize=1_000_000)
def _file_digest(path: str, version: FileVersion) -> str:
    """SHA-256 of a file; its version is an argument so that a changed file is read again."""
    return bytes_digest(read_bytes(Path(path)))


class Photographs:
    """JPEG and PNG files, one per image.

    Args:
        paths: Paths of the files; a file may occur several times.
        declared: Width and height of each image that its annotations or its camera have, (N, 2),
            NaN where unknown; none if they have none. An image of another size raises `DataError`
            when it is read.
        reduced: Whether JPEG files are decoded at a reduced scale for crops that are far smaller.
    """

    def __init__(
        self,
        paths: Many[Path | str],
        declared: NDArray[np.floating] | None = None,
        *,
        reduced: bool = False,
    ) -> None:
        self.paths = tuple(str(path) for path in paths)
        self.declared, self.reduced = declared, reduced
        self._sizes: dict[str, tuple[int, int]] = {}
        self._last: tuple[tuple[str, FileVersion, int], DecodedImage] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of an image in pixels; each file is read once for this."""
        path = self.paths[index]
        if path not in self._sizes:
            self._sizes[path] = image_size(read_bytes(Path(path)), path)
        self._check_size(index)
        return self._sizes[path]

    def check(self, index: int) -> None:
        """Decode an image.

        Raises:
            DataError: If it is missing, damaged, or not of the declared size.
        """
        image = read_image(Path(self.paths[index]))
        self._sizes[self.paths[index]] = (image.shape[1], image.shape[0])
        self._check_size(index)

    def _check_size(self, index: int) -> None:
        """Raise `DataError` if an image whose size is known is not of the declared size."""
        if self.declared is None:
            return
        path = self.paths[index]
        size, (width, height) = self._sizes[path], self.declared[index].tolist()
        if not max(abs(size[0] - width), abs(size[1] - height)) > SIZE_TOLERANCE:  # NaN: unknown
            return
        line = f"{path} is {size[0]}x{size[1]}, but the annotations have {width:g}x{height:g}"
        turned = turned_size(Path(path))
        if turned != size and turned == (width, height):
            raise DataError(
                f"{line}, the size after its EXIF orientation; photographs are read without it, "
                "as COCO and MPII were labelled: turn the pixels and remove the orientation"
            )
        raise DataError(f"{line}; use the photograph that was labelled")

    def crop(
        self, index: int, matrix: NDArray[np.float64], size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Crop of an image, RGB, (H, W, 3), bilinear, black outside."""
        path = self.paths[index]
        image = self._decode(path, choose_reduction(matrix) if self.reduced else 1)
        self._sizes[path] = image.size
        self._check_size(index)
        matrix = matrix_of_reduced(np.asarray(matrix, np.float64), image.reduction)
        crop = cv2.warpAffine(image.pixels, matrix, size, flags=cv2.INTER_LINEAR)
        return cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]

    def _decode(self, path: str, reduction: int) -> DecodedImage:
        """An image; the last one is kept, because the next crop is often of the same."""
        try:
            key = (path, file_version(Path(path).stat()), reduction)
        except OSError:
            return read_reduced_image(Path(path), reduction)  # raises a DataError
        if self._last is None or self._last[0] != key:
            self._last = None  # two images at once need twice the memory
            self._last = (key, read_reduced_image(Path(path), reduction))
        return self._last[1]

    def __getstate__(self) -> dict[str, Any]:
        """The state without the last image, for DataLoader workers."""
        return {**vars(self), "_last": None}

    def fingerprint(self, index: int) -> str:
        """SHA-256 of the file, cached while its version stays the same; see `file_version`."""
        path = Path(self.paths[index])
        try:
            state = path.stat()
        except OSError:
            read_bytes(path)  # raises a DataError
            raise
        digest = _file_digest(str(path), file_version(state))
        return f"{digest} reduced" if self.reduced else digest


def choose_reduction(matrix: NDArray[np.float64]) -> int:
    """Largest of 1, 2, 4 and 8 at which a crop still has no more pixels than its part of the image.

    Args:
        matrix: Similarity from pixels of the whole image to pixels of the crop, (2, 3).

    >>> choose_reduction(np.array([[0.24, 0, 5], [0, 0.24, 7]]))
    4
    """
    zoom = abs(np.linalg.det(np.asarray(matrix)[:, :2])) ** 0.5
    return next((reduction for reduction in (8, 4, 2) if zoom * reduction <= 1), 1)


def matrix_of_reduced(matrix: NDArray[np.float64], reduction: int) -> NDArray[np.float64]:
    """Affine map to a crop from pixels of a reduced image; see `read_reduced_image`.

    Args:
        matrix: Affine map from pixels of the whole image to pixels of the crop, (2, 3).
        reduction: Reduction of the image.

    >>> matrix_of_reduced(np.array([[0.5, 0, 3], [0, 0.5, 4]]), 2).tolist()
    [[1.0, 0.0, 3.25], [0.0, 1.0, 4.25]]
    """
    moved = matrix[:, :2] @ np.full(2, (reduction - 1) / 2)
    return np.column_stack([matrix[:, :2] * reduction, matrix[:, 2] + moved])


def with_reduced_decoding(images: Images) -> Images:
    """The same images, of which photographs are decoded at a reduced scale for small crops."""
    if isinstance(images, Photographs):
        return Photographs(images.paths, images.declared, reduced=True)
    if isinstance(images, ConcatenatedImages):
        return ConcatenatedImages([with_reduced_decoding(part) for part in images.parts])
    return images


class ConcatenatedImages:
    """Several sets of images, one after the other.

    Args:
        parts: Sets of images, in order.
    """

    def __init__(self, parts: Many[Images]) -> None:
        self.parts = tuple(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def _find(self, index: int) -> tuple[Images, int]:
        """Set that an image belongs to, and its index there."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        number = int(np.searchsorted(self.ends, index, side="right"))
        part = self.parts[number]
        return part, int(index - (self.ends[number] - len(part)))

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of an image in pixels."""
        part, part_index = self._find(index)
        return part.size(part_index)

    def crop(
        self, index: int, matrix: NDArray[np.float64], size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Crop of an image, RGB, (H, W, 3)."""
        part, part_index = self._find(index)
        return part.crop(part_index, matrix, size)

    def fingerprint(self, index: int) -> str:
        """Digest of everything that affects the image."""
        part, part_index = self._find(index)
        return part.fingerprint(part_index)


def describe_skipped(limit: int) -> str:
    """What a source adds to its description where bad photographs may be left out, or ""."""
    return f"; up to {limit} bad annotations and photographs left out" if limit else ""


def drop_unreadable(samples: Samples, limit: int) -> Samples:
    """Remove samples whose photographs are missing, damaged or not of their declared size.

    Args:
        samples: Samples on `Photographs`; every file is read once.
        limit: Maximum number of bad files.

    Returns:
        The other samples; their remarks have a message for each bad file.

    Raises:
        TooManyBadError: If more than `limit` files are bad.
    """
    images = samples.images
    if not isinstance(images, Photographs):
        raise TypeError(f"only Photographs can be checked, not {type(images).__name__}")
    faults: dict[str, str] = {}
    for path, index in {path: i for i, path in enumerate(images.paths)}.items():
        try:
            images.check(index)
        except DataError as error:
            faults[path] = str(error)
    if len(faults) > limit:
        first = next(iter(faults.values()))
        raise TooManyBadError(
            f"{len(faults)} photographs are bad, {limit} may be; the first one: {first}"
        )
    keep = np.array([path not in faults for path in images.paths], bool)
    for line in faults.values():
        _log.warning("skipped %s", line)
    kept = select_samples(samples, np.flatnonzero(keep))
    remarks = kept.remarks + Remarks(skipped=tuple(faults.values()))
    return dataclasses.replace(kept, remarks=remarks)


def select_samples(samples: Samples, indices: NDArray[np.integer]) -> Samples:
    """Select samples on `Photographs`, in the order of `indices`, (M,)."""
    images = samples.images
    if not isinstance(images, Photographs):
        raise TypeError(f"only samples on Photographs can be selected, not {type(images).__name__}")
    arrays = {
        field.name: value[indices]
        for field in dataclasses.fields(samples)
        if isinstance(value := getattr(samples, field.name), np.ndarray)
    }
    return dataclasses.replace(
        samples,
        images=Photographs(
            [images.paths[i] for i in indices],
            None if images.declared is None else images.declared[indices],
            reduced=images.reduced,
        ),
        ids=None if samples.ids is None else tuple(samples.ids[i] for i in indices),
        actions=None if samples.actions is None else tuple(samples.actions[i] for i in indices),
        truths=tuple(_select_truth(truth, indices) for truth in samples.truths),
        **arrays,
    )


def _select_truth(truth: GroundTruth, indices: NDArray[np.integer]) -> GroundTruth:
    """Ground truth of the selected samples; its `rows` become their positions in `indices`."""
    if not len(truth.rows):
        return truth
    positions = np.searchsorted(truth.rows, indices).clip(max=len(truth.rows) - 1)
    has_truth = truth.rows[positions] == indices
    arrays = {
        field.name: getattr(truth, field.name)[positions[has_truth]]
        for field in dataclasses.fields(truth)
        if isinstance(getattr(truth, field.name), np.ndarray)
    }
    return dataclasses.replace(truth, **{**arrays, "rows": np.flatnonzero(has_truth)})
