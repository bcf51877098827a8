"""JPEG and PNG files: checked before decoding, then decoded."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.reading import read_bytes

MAX_PIXELS = 100_000_000
"""Larger images are refused from their header, before anything is unpacked."""


_MARKER = re.compile(
    rb"\xff[^\x00\xd0-\xd7\xff]"
)  # in scan data FF 00 is a stuffed byte, FF D0-D7 a restart


_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # ITU T.81 table B.1: SOF0-SOF15


_NO_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height of a JPEG or PNG file that is whole up to its end marker.

    The decoder alone is not enough: it fills what a cut JPEG lacks with grey and says nothing.

    Args:
        data: Bytes of the file.
        name: Of the file, for messages.

    Raises:
        DataError: If it is another format, ends early, or claims more than `MAX_PIXELS`.
    """
    if data.startswith(b"\xff\xd8"):
        size = _jpeg_size(data, name)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        size = _png_size(data, name)
    else:
        raise DataError(
            f"{name}: is neither JPEG nor PNG (starts with {data[:4].hex(' ')}); convert it to "
            "one of them"
        )
    width, height = size
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise DataError(
            f"{name}: {width}x{height} is not between 1 and {MAX_PIXELS} pixels; resize it"
        )
    return size


def _cut(data: bytes, name: str, at: int) -> DataError:
    return DataError(
        f"{name}: ends before its end marker ({min(at, len(data))} of {len(data)} bytes make "
        "sense); fetch it again"
    )


def _jpeg_size(data: bytes, name: str) -> tuple[int, int]:
    at, size = 2, None
    while True:
        if at + 2 > len(data) or data[at] != 0xFF:
            raise _cut(data, name, at)
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xD9:
            break
        if marker in _NO_LENGTH:
            at += 2
            continue
        if at + 4 > len(data):
            raise _cut(data, name, at)
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if marker in _FRAME_HEADERS:
            if at + 9 > len(data):
                raise _cut(data, name, at)
            height, width = struct.unpack_from(">HH", data, at + 5)
            size = (width, height)
        if marker == 0xDA:
            found = _MARKER.search(data, end)
            if not found:
                raise _cut(data, name, len(data))
            end = found.start()
        at = end
    if size is None:
        raise DataError(f"{name}: is a JPEG file without an image; fetch it again")
    return size


def _png_size(data: bytes, name: str) -> tuple[int, int]:
    at = 8
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise _cut(data, name, at)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if data[at + 4 : at + 8] == b"IEND":
            width, height = struct.unpack_from(">II", data, 16)
            return width, height
        at += 12 + length
    raise _cut(data, name, at)


def read_image(path: Path) -> NDArray[np.uint8]:
    """A photograph as OpenCV keeps it: BGR, (H, W, 3).

    In the orientation of its pixels: EXIF is not applied, as COCO and MPII were labelled.

    Raises:
        DataError: If the file is missing, cut, damaged or no image.
    """
    data = read_bytes(path)
    width, height = image_size(data, str(path))
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None or image.shape != (height, width, 3):
        raise DataError(f"{path}: cannot be decoded; fetch it again")
    return image  # type: ignore[return-value]
