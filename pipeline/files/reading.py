"""Regular files read within a size limit, and names that stay inside their folder."""

from __future__ import annotations

import contextlib
import io
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import DataError

MAX_BYTES = 256 * 2**20
"""Largest file that is read, unless a reader gives another limit."""

MAX_RATIO, FREE_UNPACKED = 200, 16 * 2**20
"""Largest ratio of unpacked to packed size, for files that unpack to more than so many bytes."""

MAX_COPIED = 2 * 2**30
"""Largest number of bytes copied for a file of several packed parts: the rest after each."""


def safe_relative_name(name: str, place: str) -> str:
    """The name of an image in a data set, checked to stay inside the folder of the data set.

    Args:
        name: Name of the image, relative to the folder.
        place: File that has the name, for the error message.

    Raises:
        DataError: If the name leads out of the folder.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise DataError(f"{place} {name[:60]!r} leads out of the folder")
    return name


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Content of a regular file.

    Raises:
        DataError: If it is missing, empty, a folder, a pipe or a device, or larger than `limit`
            bytes.
    """
    with _readable(path) as size:
        if size > limit:
            raise DataError(f"{path}: {size} bytes are more than the limit of {limit}")
        return path.read_bytes()


def read_start(path: Path, count: int) -> bytes:
    """The first bytes of a regular file of any size; fewer if it is shorter.

    Raises:
        DataError: If it is missing, empty, a folder, a pipe or a device.
    """
    with _readable(path), path.open("rb") as file:
        return file.read(count)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[int]:
    """Check that a path is a regular file, yield its size, and turn errors into one line."""
    try:
        state = path.stat()
        if stat.S_ISDIR(state.st_mode):
            raise DataError(f"{path}: is a directory; name a file")
        if not stat.S_ISREG(state.st_mode):
            raise DataError(f"{path}: is not a regular file; name a file on disk")
        if not state.st_size:
            raise DataError(f"{path}: is empty; fetch it again")
        yield state.st_size
    except FileNotFoundError:
        raise DataError(f"{path}: not found; check the path") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from None
    except ValueError as error:
        raise DataError(f"{str(path)!r}: is no file name ({error})") from None


def read_unpacked(path: Path, limit: int) -> bytes:
    """Content of a file, unpacked if it is compressed by gzip.

    Raises:
        DataError: If it cannot be read, is damaged, or unpacks to more than `limit` bytes or more
            than `MAX_RATIO` times its size.
    """
    data = read_bytes(path, limit)
    if not data.startswith(b"\x1f\x8b"):
        return data
    limit = min(limit, max(FREE_UNPACKED, MAX_RATIO * len(data)))
    pieces, size, rest = [], 0, data
    try:
        while rest:
            unpack = zlib.decompressobj(wbits=31)
            pieces.append(unpack.decompress(rest, limit + 1 - size))
            size += len(pieces[-1])
            if size > limit:
                raise DataError(f"{path}: unpacks to more than {limit} bytes; rejected")
            if not unpack.eof:
                raise DataError(f"{path}: the gzip data ends early; fetch it again")
            if len(pieces) * len(data) > MAX_COPIED:
                raise DataError(f"{path}: has over {len(pieces)} packed parts; pack it as one")
            rest = unpack.unused_data.lstrip(b"\0")
    except zlib.error as error:
        raise DataError(f"{path}: damaged gzip data ({error}); fetch it again") from None
    return b"".join(pieces)


def read_lines(path: Path, limit: int, count: int) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line of an ASCII file, without taking memory for each.

    Raises:
        DataError: If it cannot be read, is no text, or has more than `count` lines.
    """
    data = read_bytes(path, limit)
    if not data.isascii():
        place = next(i for i, byte in enumerate(data) if byte > 127)
        raise DataError(f"{path}: is no text at byte {place}; fetch it again")
    for number, line in enumerate(io.TextIOWrapper(io.BytesIO(data), "ascii"), 1):
        if number > count:
            raise DataError(f"{path}: has more than {count} lines; cut it into shorter ones")
        yield number, line
