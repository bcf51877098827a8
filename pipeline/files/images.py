"""JPEG and PNG files: checked before decoding, then decoded."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.reading import read_bytes

MAX_PIXELS = 100_000_000
"""Larger images are rejected after reading the header, before anything is unpacked."""

FREE_PIXELS, PIXELS_PER_BYTE = 16_000_000, 1000
"""Pixels that any file may have, and more for each of its bytes; photographs have 1 to 20."""

MAX_PACKED = 16
"""Largest number of packed texts and profiles in a PNG file; each may unpack to 8 MB."""

FREE_SCANS = 16
"""Times that a JPEG file may go over all its pixels; progressive ones do it about 10 times."""

# in scan data FF 00 is a stuffed byte, and FF D0-D7 a restart
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # ITU T.81 table B.1: SOF0-SOF15
_JPEG = b"\xff\xd8"
_COLOUR_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_PACKED = (b"iCCP", b"iTXt", b"zTXt")
_ANIMATED = (b"acTL", b"fcTL", b"fdAT")
_NO_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height of a JPEG or PNG file that is whole up to its end marker.

    The decoder alone is not enough: it fills the missing part of a truncated JPEG with grey and
    reports nothing.

    Args:
        data: Bytes of the file.
        name: Name of the file, for error messages.

    Raises:
        DataError: If the file has another format, ends early, or claims more than `MAX_PIXELS`.
    """
    if data.startswith(_JPEG):
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
    if width * height > _pixel_budget(data):
        raise DataError(
            f"{name}: claims {width}x{height} pixels in {len(data)} bytes; fetch it again"
        )
    return size


def _pixel_budget(data: bytes) -> int:
    """Largest number of pixels that a file of this size may claim."""
    return FREE_PIXELS + PIXELS_PER_BYTE * len(data)


def _truncated(data: bytes, name: str, position: int) -> DataError:
    """The error for a file that can be read only up to a position."""
    return DataError(
        f"{name}: ends before its end marker ({min(position, len(data))} of {len(data)} bytes can "
        "be read); fetch it again"
    )


def _jpeg_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height of a JPEG file, whose segments are walked up to the end marker."""
    position, size, scans = 2, None, 0
    while True:
        if position + 2 > len(data) or data[position] != 0xFF:
            raise _truncated(data, name, position)
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0xD9:  # end of the image
            break
        if marker in _NO_LENGTH:
            position += 2
            continue
        if position + 4 > len(data):
            raise _truncated(data, name, position)
        end = position + 2 + struct.unpack_from(">H", data, position + 2)[0]
        if marker in _FRAME_HEADERS:
            if position + 9 > len(data):
                raise _truncated(data, name, position)
            if size:
                raise DataError(f"{name}: has the size of its image twice; fetch it again")
            height, width = struct.unpack_from(">HH", data, position + 5)
            size = (width, height)
        if marker == 0xD8 or (marker == 0xDA and not size):
            raise DataError(f"{name}: begins a second image or has no size; fetch it again")
        if marker == 0xDA:  # start of a scan
            scans += 1
            found = _MARKER.search(data, end)
            if not found:
                raise _truncated(data, name, len(data))
            end = found.start()
        position = end
    if size is None:
        raise DataError(f"{name}: is a JPEG file without an image; fetch it again")
    if scans > 1 and scans * size[0] * size[1] > FREE_SCANS * _pixel_budget(data):
        raise DataError(f"{name}: goes over its pixels {scans} times; save it as baseline JPEG")
    return size


def _png_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height of a PNG file, whose chunks are walked up to the end chunk."""
    position, packed = 8, 0
    if len(data) < 33 or data[8:16] != b"\0\0\0\rIHDR":
        raise _truncated(data, name, position)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        if kind in _ANIMATED or (kind == b"IHDR" and position > 8):
            raise DataError(f"{name}: holds several images; save one of them alone")
        packed += kind in _PACKED
        if packed > MAX_PACKED:
            raise DataError(f"{name}: has over {MAX_PACKED} packed texts; save it without them")
        if kind == b"IEND":
            width, height = struct.unpack_from(">II", data, 16)
            return width, height
        position += 12 + length
    raise _truncated(data, name, position)


def turned_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file after its EXIF orientation; (0, 0) if it has no image.

    Raises:
        DataError: See `image_size`.
    """
    data = read_bytes(path)
    image_size(data, str(path))
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    return (0, 0) if image is None else (image.shape[1], image.shape[0])


class DecodedImage(NamedTuple):
    """An image file, decoded whole or at a reduced scale.

    Args:
        pixels: BGR, (ceil(H / reduction), ceil(W / reduction), 3).
        size: Width W and height H of the file's image.
        reduction: Pixels of the file's image that one of these is the mean of, in each direction.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    reduction: int


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image file as OpenCV decodes it: BGR, (H, W, 3).

    The EXIF orientation is not applied, because COCO and MPII were labelled without it.

    Raises:
        DataError: If the file is missing, truncated, damaged or no image.
    """
    return read_reduced_image(path, 1).pixels


def read_reduced_image(path: Path, reduction: int) -> DecodedImage:
    """An image file, of which a JPEG is decoded at a reduced scale, which is faster.

    Convention:
        Integer coordinates are pixel centres: with a reduction of r, pixel x of the whole image is
        at (x - (r - 1) / 2) / r.

    Args:
        path: The file; its EXIF orientation is not applied.
        reduction: 1, 2, 4 or 8; a PNG file is decoded whole in any case.

    Raises:
        DataError: If the file is missing, truncated, damaged or no image.
    """
    data = read_bytes(path)
    width, height = image_size(data, str(path))
    if not data.startswith(_JPEG):
        reduction = 1
    flags = _COLOUR_FLAGS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None or image.shape != (-(-height // reduction), -(-width // reduction), 3):
        raise DataError(f"{path}: cannot be decoded; fetch it again")
    return DecodedImage(image, (width, height), reduction)  # type: ignore[arg-type]
