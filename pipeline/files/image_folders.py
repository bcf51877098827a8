"""Folders of images as clips: in the order of the numbers in their names, upright."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.images import image_size
from pipeline.files.reading import read_bytes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
"""Endings of the names of images, in lower case."""

FARTHEST = 100
"""Missing images for each image above which numbers in names are no frame numbers."""


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder, in order.

    Args:
        paths: The image files.
        places: Place of each image in time, in steps from one image to the next: 0, 1, 2, …; larger
            steps where numbers are missing.
        holes: Number of images that are missing between the first and the last.
        others: Number of files that are no images.
        step: Common step of the numbers, from 1.
        are_frames: Whether the numbers are taken for frame numbers. If not, the images follow one
            another without holes: in times such as `00-59` and `01-00` two numbers change, and in
            nanoseconds nearly all numbers are missing.
    """

    paths: tuple[Path, ...]
    places: tuple[int, ...]
    holes: int
    others: int
    step: int = 1
    are_frames: bool = True


def list_images(folder: Path) -> ImageFolder:
    """List the images of a folder by the numbers in their names: `f2.png` before `f10.png`.

    Raises:
        DataError: If there is no image, two images have the same numbers, or some have others.
    """
    files = [path for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise DataError(
            f"{folder}: has no image; give a folder with {', '.join(IMAGE_SUFFIXES)} files"
        )
    numbers = {path: tuple(map(int, re.findall(r"\d+", path.stem))) for path in images}
    if len(images) == 1:
        return ImageFolder((images[0],), (0,), 0, len(files) - 1)
    without = [path.name for path in images if not numbers[path]]
    if without and len(without) < len(images):
        raise DataError(
            f"{folder}: some names have a number and {min(without)!r} has none; the order of the "
            "images is unclear, so number all of them"
        )
    if without:
        ordered = sorted(images)
        return ImageFolder(tuple(ordered), tuple(range(len(ordered))), 0, len(files) - len(images))
    ordered = sorted(images, key=lambda path: (numbers[path], path.name))
    for first, second in itertools.pairwise(ordered):
        if numbers[first] == numbers[second]:
            raise DataError(
                f"{folder}: {first.name} and {second.name} have the same number; keep one of them"
            )
    others = len(files) - len(images)
    columns = list(zip(*numbers.values(), strict=False))
    varying = [column for column in columns if len(set(column)) > 1]
    if len({len(found) for found in numbers.values()}) > 1:
        short, long = (end(images, key=lambda path: len(numbers[path])) for end in (min, max))
        raise DataError(
            f"{folder}: {short.name} and {long.name} have different counts of numbers; the order "
            "of the images is unclear, so name all of them in one way"
        )
    in_order = ImageFolder(tuple(ordered), tuple(range(len(ordered))), 0, others, 1, False)
    if len(varying) > 1:
        return in_order
    values = sorted(varying[0])
    step = math.gcd(*(value - values[0] for value in values))
    places = tuple((value - values[0]) // step for value in values)
    holes = places[-1] + 1 - len(places)
    if holes > FARTHEST * len(places):
        return in_order
    return ImageFolder(tuple(ordered), places, holes, others, step)


def rotation_of(path: Path, upright: NDArray[np.uint8]) -> int:
    """Degrees by which an image file is turned clockwise to be `upright`: 0, 90, 180 or 270."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    stored = cv2.imdecode(np.frombuffer(read_bytes(path), np.uint8), flags)
    if stored is None:
        return 0
    turns = (k for k in range(4) if np.array_equal(np.rot90(stored, -k), upright[..., ::-1]))
    return 90 * next(turns, 0)


def read_upright(path: Path) -> NDArray[np.uint8]:
    """An image file as RGB, (H, W, 3), uint8, turned by its EXIF orientation.

    Raises:
        DataError: If the file is missing, truncated, damaged or no image.
    """
    data = read_bytes(path)
    size = image_size(data, str(path))
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None or sorted(image.shape[:2]) != sorted(size):
        raise DataError(f"{path}: cannot be decoded; fetch it again")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]
