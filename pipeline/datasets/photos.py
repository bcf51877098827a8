"""Photographs on disk: checked before decoding, seen through crops, known by their bytes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import re
import stat
import struct
from collections.abc import Sequence as Many
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.datasets import Pictures, Samples, Truth
from pipeline.errors import DataError

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 100_000_000
"""Larger pictures are refused from their header, before anything is unpacked."""

_log = logging.getLogger(__name__)
_MARKER = re.compile(
    rb"\xff[^\x00\xd0-\xd7\xff]"
)  # in scan data FF 00 is a stuffed byte, FF D0-D7 a restart
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # ITU T.81 table B.1: SOF0-SOF15
_NO_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})


def below(name: str, place: str) -> str:
    """The name of a picture in a data set, if it stays below the folder it is looked for in.

    Raises:
        DataError: If it leads out of the folder.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise DataError(f"{place} {name[:60]!r} leads out of the folder")
    return name


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Content of a regular file.

    Raises:
        DataError: If there is none, if it is empty, a folder, a pipe or device, or larger than
            `limit` bytes.
    """
    try:
        state = path.stat()
        if stat.S_ISDIR(state.st_mode):
            raise DataError(f"{path}: is a directory; name a file")
        if not stat.S_ISREG(state.st_mode):
            raise DataError(f"{path}: is not a regular file; name a file on disk")
        if not state.st_size:
            raise DataError(f"{path}: is empty; fetch it again")
        if state.st_size > limit:
            raise DataError(f"{path}: {state.st_size} bytes are more than the limit of {limit}")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path}: not found; see docs/data.md for what the folder must hold"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from None
    except ValueError as error:
        raise DataError(f"{str(path)!r}: is no file name ({error})") from None


def picture_size(data: bytes, name: str) -> tuple[int, int]:
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
        raise DataError(f"{name}: is a JPEG file without a picture; fetch it again")
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


def read_picture(path: Path) -> NDArray[np.uint8]:
    """A photograph as OpenCV keeps it: BGR, (H, W, 3).

    In the orientation of its pixels: EXIF is not applied, as COCO and MPII were labelled.

    Raises:
        DataError: If the file is missing, cut, damaged or no picture.
    """
    data = read_bytes(path)
    width, height = picture_size(data, str(path))
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        picture = None
    if picture is None or picture.shape != (height, width, 3):
        raise DataError(f"{path}: cannot be decoded; fetch it again")
    return picture  # type: ignore[return-value]


@functools.lru_cache(maxsize=1_000_000)
def _digest(path: str, size: int, modified: int) -> str:
    return hashlib.sha256(read_bytes(Path(path))).hexdigest()


class Photographs:
    """JPEG and PNG files, one per picture.

    Args:
        paths: Of the files; a file may stand for several pictures.
    """

    def __init__(self, paths: Many[Path | str]) -> None:
        self.paths = tuple(str(path) for path in paths)
        self._sizes: dict[str, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of a picture in pixels; a file is read for it once."""
        path = self.paths[index]
        if path not in self._sizes:
            self._sizes[path] = picture_size(read_bytes(Path(path)), path)
        return self._sizes[path]

    def crop(
        self, index: int, matrix: NDArray[np.float64], size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """A piece of a picture, RGB, (H, W, 3), bilinear, black outside."""
        path = self.paths[index]
        whole = read_picture(Path(path))
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


class JoinedPictures:
    """Several sets of pictures, one after the other.

    Args:
        parts: The sets.
    """

    def __init__(self, parts: Many[Pictures]) -> None:
        self.parts = tuple(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def _find(self, index: int) -> tuple[Pictures, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[which], int(index - (self.ends[which] - len(self.parts[which])))

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of a picture in pixels."""
        part, at = self._find(index)
        return part.size(at)

    def crop(
        self, index: int, matrix: NDArray[np.float64], size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """A piece of a picture, RGB, (H, W, 3)."""
        part, at = self._find(index)
        return part.crop(at, matrix, size)

    def fingerprint(self, index: int) -> str:
        """Digest of what decides the picture."""
        part, at = self._find(index)
        return part.fingerprint(at)


def without_bad(samples: Samples, limit: int) -> tuple[Samples, list[str]]:
    """Samples whose photographs can be read whole, and what is wrong with the others.

    Args:
        samples: On `Photographs`; every file is read once.
        limit: How many files may be bad.

    Raises:
        DataError: If more than `limit` files are bad.
    """
    pictures = samples.pictures
    if not isinstance(pictures, Photographs):
        raise TypeError(f"only Photographs can be checked, not {type(pictures).__name__}")
    faults: dict[str, str] = {}
    for path in dict.fromkeys(pictures.paths):
        try:
            read_picture(Path(path))
        except DataError as error:
            faults[path] = str(error)
    if len(faults) > limit:
        first = next(iter(faults.values()))
        raise DataError(f"{len(faults)} photographs are bad, {limit} may be; the first: {first}")
    keep = np.array([path not in faults for path in pictures.paths], bool)
    for line in faults.values():
        _log.warning("skipped %s", line)
    return select(samples, np.flatnonzero(keep)), list(faults.values())


def select(samples: Samples, indices: NDArray[np.integer]) -> Samples:
    """Some of the samples on photographs, in the order of `indices`, (M,)."""
    pictures = samples.pictures
    if not isinstance(pictures, Photographs):
        raise TypeError(
            f"only samples on Photographs can be selected, not {type(pictures).__name__}"
        )
    chosen = {
        part.name: value[indices]
        for part in dataclasses.fields(samples)
        if isinstance(value := getattr(samples, part.name), np.ndarray)
    }
    return dataclasses.replace(
        samples,
        pictures=Photographs([pictures.paths[i] for i in indices]),
        ids=None if samples.ids is None else tuple(samples.ids[i] for i in indices),
        actions=None if samples.actions is None else tuple(samples.actions[i] for i in indices),
        truths=tuple(_selected(truth, indices) for truth in samples.truths),
        **chosen,
    )


def _selected(truth: Truth, indices: NDArray[np.integer]) -> Truth:
    """What is known of some of the samples, whose rows are now their places in `indices`."""
    places = np.searchsorted(truth.rows, indices).clip(max=max(len(truth.rows) - 1, 0))
    known = truth.rows[places] == indices if len(truth.rows) else np.zeros(len(indices), bool)
    arrays = {
        part.name: getattr(truth, part.name)[places[known]]
        for part in dataclasses.fields(truth)
        if isinstance(getattr(truth, part.name), np.ndarray)
    }
    return dataclasses.replace(truth, **{**arrays, "rows": np.flatnonzero(known)})
