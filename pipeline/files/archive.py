"""Archives of NumPy arrays: npy and npz files."""

from __future__ import annotations

import contextlib
import io
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.pickles import (
    MAX_BYTES,
    MAX_DEPTH,
    RefusedError,
    checked_array,
    one_line,
    plain_values,
    unpickle,
)
from pipeline.files.reading import read_bytes

MAX_RATIO = 200
"""Of unpacked to packed size, for members above 64 MiB: real coordinates pack 1.1 to 3 times."""


class Npz:
    """Members of an npz file, checked before they are unpacked.

    Args:
        path: Of the file.

    Raises:
        DataError: If it is no zip file, has a member twice or outside itself, or unpacks to more
            than `MAX_BYTES`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        start = _start(path)
        if not start.startswith(b"PK"):
            raise DataError(
                f"{path}: is no npz file (starts with {start.hex(' ')}); fetch it again"
            )
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except (
            zipfile.BadZipFile,
            OSError,
            ValueError,
            NotImplementedError,
            UnicodeError,
        ) as error:
            raise DataError(f"{path}: is damaged ({one_line(error)}); fetch it again") from None
        names = [member.filename for member in members]
        if len(set(names)) != len(names):
            raise DataError(f"{path}: has a member twice; fetch it again")
        for member in members:
            _check_member(path, member)
        total = sum(member.file_size for member in members)
        if total > MAX_BYTES:
            raise DataError(
                f"{path}: unpacks to {total} bytes from {sum(m.compress_size for m in members)}; "
                f"the limit is {MAX_BYTES}"
            )
        self._members = {member.filename.removesuffix(".npy"): member for member in members}
        self.names = tuple(self._members)

    def array(self, name: str) -> NDArray:
        """A plain array: numbers or text.

        Raises:
            DataError: If it is missing, damaged, or an array of objects.
        """
        return self._read(name, objects=False)

    def objects(self, name: str) -> Any:
        """An array of objects as plain dicts, lists, texts, numbers and arrays of numbers.

        The content of a 0-d array, a list for others; a plain array comes as it is. Members
        `name/…` are the parts of one that was written without objects (see `flatten_objects`).

        Raises:
            DataError: If it is missing or damaged, or holds anything else.
        """
        parts = [part for part in self.names if part.startswith(f"{name}/")]
        if name in self._members or not parts:
            return self._read(name, objects=True)
        found: dict[str, Any] = {}
        with zipfile.ZipFile(self.path) as archive:
            for part in parts:
                *outer, last = part.split("/")[1:]
                if len(outer) >= MAX_DEPTH:
                    raise DataError(f"{self.path}: {part[:60]!r} is nested deeper than {MAX_DEPTH}")
                at = found
                for key in outer:
                    at = at.setdefault(key, {})
                    if not isinstance(at, dict):
                        raise DataError(f"{self.path}: {part[:60]!r} is an array and has parts")
                if last in at:
                    raise DataError(f"{self.path}: {part[:60]!r} is an array and has parts")
                at[last] = self._read(part, objects=False, archive=archive)
        return _with_lists(found)

    def _read(self, name: str, *, objects: bool, archive: zipfile.ZipFile | None = None) -> Any:
        place = f"{self.path}: {name}"
        if name not in self._members:
            has = ", ".join(self.names) or "nothing"
            raise DataError(
                f"{self.path}: has no array {name!r} (it has {has}); is it another layout?"
            )
        try:
            with contextlib.ExitStack() as stack:
                file = archive or stack.enter_context(zipfile.ZipFile(self.path))
                data = file.read(self._members[name])
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            OSError,
            ValueError,
            RuntimeError,
            NotImplementedError,
        ) as error:
            raise DataError(f"{place} is damaged ({one_line(error)}); fetch it again") from None
        return read_npy(data, place, objects=objects)


def flatten_objects(value: Any, name: str, place: str) -> dict[str, NDArray]:
    """Nested dicts and lists of arrays, numbers and texts as arrays called `name/key/[index]/…`.

    Args:
        value: As `Npz.objects` gives it.
        name: Of the whole.
        place: File, for messages.

    Raises:
        DataError: If a key cannot be part of a name.
    """
    if isinstance(value, (dict, list)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        shape = "{}" if isinstance(value, dict) else "[{}]"
        found: dict[str, NDArray] = {}
        for key, inner in pairs:
            part = shape.format(key)
            if not _PART.fullmatch(part) or (isinstance(value, dict) and part.startswith("[")):
                raise DataError(f"{place}: the key {part[:40]!r} cannot be part of a name")
            found |= flatten_objects(inner, f"{name}/{part}", place)
        return found
    if value is None:
        raise DataError(f"{place}: {name} is none; only numbers, texts and arrays can be kept")
    return {name: np.asarray(value)}


_PART = re.compile(r"[\w .,()\[\]+-]{1,80}")


_INDEX = re.compile(r"\[(\d{1,6})\]")


def _with_lists(value: Any) -> Any:
    """Undoes `flatten_objects`: keys in square brackets are places in a list."""
    if isinstance(value, np.ndarray):
        return value.item() if value.ndim == 0 else value
    inner = {key: _with_lists(item) for key, item in value.items()}
    places = [_INDEX.fullmatch(key) for key in inner]
    if not all(places):
        return inner
    order = sorted((int(place[1]), key) for place, key in zip(places, inner, strict=True) if place)
    return [inner[key] for _, key in order]


def read_npy(data: bytes, place: str, *, objects: bool = False) -> Any:
    """Content of an npy file.

    Args:
        data: Its bytes.
        place: File and member, for messages.
        objects: Whether this array may be one of objects.

    Raises:
        DataError: If its header and its size disagree, or it holds what it may not.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            header = np.lib.format.read_array_header_2_0(stream)
        else:
            raise ValueError(f"npy version {version}")
    except Exception as error:  # NumPy parses it as Python, which raises many kinds
        raise DataError(
            f"{place} has a damaged header ({one_line(error)}); fetch it again"
        ) from None
    shape, fortran, dtype = header
    rest = memoryview(data)[stream.tell() :]
    try:
        if dtype.hasobject and dtype.kind == "O":
            if not objects:
                raise RefusedError("an array of numbers is expected, not one of objects")
            return plain_values(unpickle(rest), 0, {})
        return checked_array(shape, dtype, fortran, rest)
    except RefusedError as error:
        raise DataError(f"{place}: {error}") from None


def _start(path: Path) -> bytes:
    if path.is_file():
        try:
            with path.open("rb") as file:
                return file.read(4)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return read_bytes(path)[:4]


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    name = member.filename
    if name.startswith(("/", "\\")) or ".." in Path(name).parts or not name.endswith(".npy"):
        raise DataError(f"{path}: has the member {name[:60]!r}, which is no array")
    if member.file_size > 64 * 2**20 and member.file_size > MAX_RATIO * max(
        1, member.compress_size
    ):
        raise DataError(
            f"{path}: {name} unpacks to {member.file_size} bytes from {member.compress_size}"
        )
