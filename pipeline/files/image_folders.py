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

_LAST_NUMBER = re.compile(r"(\d{1,15})(?=\D*$)")


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
    """

    paths: tuple[Path, ...]
    places: tuple[int, ...]
    holes: int
    others: int
    step: int = 1


def list_images(folder: Path) -> ImageFolder:
    """List the images of a folder by the last number in their names: `f2.png` before `f10.png`.

    Raises:
        DataError: If there is no image, two images have the same number, or some have none.
    """
    files = [path for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise DataError(
            f"{folder}: has no image; give a folder with {', '.join(IMAGE_SUFFIXES)} files"
        )
    numbers = {path: _number(path) for path in images}
    if len(images) == 1:
        return ImageFolder((images[0],), (0,), 0, len(files) - 1)
    without = [path.name for path in images if numbers[path] is None]
    if without and len(without) < len(images):
        raise DataError(
            f"{folder}: some names have a number and {min(without)!r} has none; the order of the "
            "images is unclear, so number all of them"
        )
    if without:
        ordered = sorted(images)
        return ImageFolder(tuple(ordered), tuple(range(len(ordered))), 0, len(files) - len(images))
    ordered = sorted(images, key=lambda path: (numbers[path], path.name))
    values = [numbers[path] or 0 for path in ordered]
    for first, second in itertools.pairwise(ordered):
        if numbers[first] == numbers[second]:
            raise DataError(
                f"{folder}: {first.name} and {second.name} have the same number; keep one of them"
            )
    step = math.gcd(*(value - values[0] for value in values))
    places = tuple((value - values[0]) // step for value in values)
    holes = places[-1] + 1 - len(places)
    return ImageFolder(tuple(ordered), places, holes, len(files) - len(images), step)


def _number(path: Path) -> int | None:
    """The last number in the name of a file; None if there is none."""
    found = _LAST_NUMBER.search(path.stem)
    return int(found[1]) if found else None


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
