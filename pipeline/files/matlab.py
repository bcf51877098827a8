"""Arrays of numbers from MATLAB 5 files; used because SciPy's reader crashes on damaged ones."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.reading import read_bytes

MAX_BYTES = 256 * 2**20
"""Largest size of all arrays together, unpacked and as float64; those of MPII's files are smaller
than 1 MiB."""

_NUMBER_TYPES = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
_HEADER_BYTES = 1024  # counted for each variable
_TOO_LARGE = f"its arrays take more than {MAX_BYTES} bytes"
_MATRIX, _COMPRESSED = 14, 15  # types of data elements
_NUMERIC_CLASSES = range(6, 16)  # mxDOUBLE_CLASS … mxUINT64_CLASS


def read_matlab(path: Path) -> dict[str, NDArray[np.float64]]:
    """The arrays of numbers in a file by name, float64; other variables are left out.

    Raises:
        DataError: If this is no MATLAB 5 file, or it is damaged.

    Source: MAT-File Format, The MathWorks, level 5.
    """
    data = read_bytes(path)
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if not data.startswith(b"MATLAB 5.0") or order is None:
        raise DataError(f"{path}: is no MATLAB 5 file (starts with {data[:4].hex(' ')})")
    found: dict[str, NDArray[np.float64]] = {}
    left = MAX_BYTES
    try:
        for kind, content in _elements(memoryview(data)[128:], order, padded=False):
            if kind == _COMPRESSED:
                inner = zlib.decompressobj().decompress(content, left + 1)
                left -= len(inner)
                kind, content = next(_elements(memoryview(inner), order, padded=True))
            left -= _HEADER_BYTES
            if kind == _MATRIX and (array := _read_matrix(content, order, left)) is not None:
                found[array[0]] = array[1]
                left -= array[1].nbytes
            if left < 0:
                raise ValueError(_TOO_LARGE)
    except (ValueError, struct.error, zlib.error, StopIteration, OverflowError) as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise DataError(f"{path}: is damaged ({reason}); fetch it again") from None
    return found


def _elements(data: memoryview, order: str, *, padded: bool) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each data element.

    Args:
        data: Bytes of consecutive elements.
        order: Byte order, `<` or `>`.
        padded: Whether elements are padded to a multiple of 8 bytes.
    """
    position = 0
    while position < len(data):
        kind, size = struct.unpack_from(order + "II", data, position)
        if kind >> 16:  # small element: 2 bytes of size, 2 of type, 4 of content
            kind, size, start, end = kind & 0xFFFF, kind >> 16, position + 4, position + 8
            if size > 4:
                raise ValueError(f"a small element has {size} bytes")
        else:
            start = position + 8
            end = start + size + (-size % 8 if padded and kind != _COMPRESSED else 0)
        if start + size > len(data):
            raise ValueError(f"an element of {size} bytes is truncated")
        yield kind, data[start : start + size]
        position = end


def _read_matrix(
    content: memoryview, order: str, limit: int
) -> tuple[str, NDArray[np.float64]] | None:
    """Name and numbers of an array; none for cells, structures, texts and complex numbers.

    Raises:
        ValueError: If it is damaged, or takes more than `limit` bytes as float64.
    """
    parts = _elements(content, order, padded=True)
    (flags,) = struct.unpack_from(order + "I", next(parts)[1])
    if flags & 0xFF not in _NUMERIC_CLASSES or flags & 0x800:
        return None
    shape = tuple(int(n) for n in np.frombuffer(next(parts)[1], order + "i4"))
    name = bytes(next(parts)[1]).decode("ascii")
    kind, values = next(parts)
    if kind not in _NUMBER_TYPES or not 2 <= len(shape) <= 8 or min(shape) < 0:
        raise ValueError(f"{name[:40]} has no proper numbers")
    dtype = np.dtype(order + _NUMBER_TYPES[kind])
    if math.prod(shape) * dtype.itemsize != len(values):
        raise ValueError(f"{name[:40]} claims {shape} and has {len(values)} bytes")
    numbers = np.frombuffer(values, dtype)
    if 8 * numbers.size > limit:
        raise ValueError(_TOO_LARGE)
    return name, numbers.astype(np.float64).reshape(shape, order="F")
