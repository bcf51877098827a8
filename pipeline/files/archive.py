"""Archives of NumPy arrays: npy and npz files."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files import zip_members
from pipeline.files.pickles import (
    MAX_BYTES,
    MAX_DEPTH,
    ForbiddenContentError,
    build_array,
    format_one_line,
    unpickle,
)
from pipeline.files.reading import read_bytes

_PART = re.compile(r"[\w .,()\[\]+-]{1,80}")  # one part of a flattened name
_INDEX = re.compile(r"\[(\d{1,6})\]")  # a part that is an index of a list

MAX_RATIO = 200
"""Largest ratio of unpacked to packed size; for real coordinates it is 1.1 to 3."""

MIN_CHECKED_BYTES = 64 * 2**20
"""Members that unpack to more than this are checked against `MAX_RATIO`."""


class Npz:
    """An npz file whose members are checked before they are unpacked.

    Args:
        path: Path of the file.

    Raises:
        DataError: If it is no zip file, has a member twice, a member that is no array or whose name
            leads out of the archive, or unpacks to more than `MAX_BYTES`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        first_bytes = _first_bytes(path)
        if not first_bytes.startswith(b"PK"):
            raise DataError(
                f"{path}: is no npz file (starts with {first_bytes.hex(' ')}); fetch it again"
            )
        try:
            with path.open("rb") as file:
                members = zip_members.list_members(file)
        except (zip_members.ArchiveError, OSError) as error:
            raise DataError(
                f"{path}: is damaged ({format_one_line(error)}); fetch it again"
            ) from None
        for member in members:
            _check_member(path, member)
        total = sum(member.size for member in members)
        if total > MAX_BYTES:
            raise DataError(
                f"{path}: unpacks to {total} bytes from {sum(m.packed for m in members)}; "
                f"the limit is {MAX_BYTES}"
            )
        self._members = {member.name.removesuffix(".npy"): member for member in members}
        self.names = tuple(self._members)

    def array(self, name: str) -> NDArray:
        """A plain array: numbers or text.

        Raises:
            DataError: If it is missing, damaged, or an array of objects.
        """
        return self._read(name, objects=False)

    def objects(self, name: str) -> Any:
        """An array of objects as plain dicts, lists, texts, numbers and arrays of numbers.

        A 0-d array gives its content, other arrays of objects give lists, and an array of numbers
        or text is returned unchanged. Members `name/…` are read as the parts of a value that was
        written without objects (see `flatten_objects`).

        Raises:
            DataError: If it is missing or damaged, or holds anything else.
        """
        parts = [part for part in self.names if part.startswith(f"{name}/")]
        if name in self._members or not parts:
            return self._read(name, objects=True)
        found: dict[str, Any] = {}
        with self.path.open("rb") as file:
            for part in parts:
                *outer, last = part.split("/")[1:]
                if len(outer) >= MAX_DEPTH:
                    raise DataError(f"{self.path}: {part[:60]!r} is nested deeper than {MAX_DEPTH}")
                inner = found
                for key in outer:
                    inner = inner.setdefault(key, {})
                    if not isinstance(inner, dict):
                        raise DataError(f"{self.path}: {part[:60]!r} is an array and has parts")
                if last in inner:
                    raise DataError(f"{self.path}: {part[:60]!r} is an array and has parts")
                inner[last] = self._read(part, objects=False, file=file)
        return _restore_lists(found)

    def _read(self, name: str, *, objects: bool, file: BinaryIO | None = None) -> Any:
        place = f"{self.path}: {name}"
        if name not in self._members:
            has = ", ".join(self.names) or "nothing"
            raise DataError(
                f"{self.path}: has no array {name!r} (it has {has}); is it another layout?"
            )
        try:
            with contextlib.ExitStack() as stack:
                file = file or stack.enter_context(self.path.open("rb"))
                data = zip_members.read_member(file, self._members[name])
        except (zip_members.ArchiveError, OSError) as error:
            raise DataError(
                f"{place} is damaged ({format_one_line(error)}); fetch it again"
            ) from None
        return read_npy(data, place, objects=objects)


def flatten_objects(value: Any, name: str, place: str) -> dict[str, NDArray]:
    """Nested dicts and lists of arrays, numbers and texts as arrays called `name/key/[index]/…`.

    Args:
        value: A value that `Npz.objects` returned.
        name: Name of the whole value.
        place: File, for error messages.

    Raises:
        DataError: If a key cannot be part of a name, or a value is None.
    """
    if isinstance(value, (dict, list)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        found: dict[str, NDArray] = {}
        for key, inner in pairs:
            part = str(key) if isinstance(value, dict) else f"[{key}]"
            if not _PART.fullmatch(part) or (isinstance(value, dict) and part.startswith("[")):
                raise DataError(f"{place}: the key {part[:40]!r} cannot be part of a name")
            found |= flatten_objects(inner, f"{name}/{part}", place)
        return found
    if value is None:
        raise DataError(f"{place}: {name} is none; only numbers, texts and arrays can be kept")
    return {name: np.asarray(value)}


def _restore_lists(value: Any) -> Any:
    """The inverse of `flatten_objects`: a dict whose keys are all `[index]` becomes a list."""
    if isinstance(value, np.ndarray):
        return value.item() if value.ndim == 0 else value
    inner = {key: _restore_lists(item) for key, item in value.items()}
    matches = [_INDEX.fullmatch(key) for key in inner]
    indices = [int(match[1]) for match in matches if match]
    if len(indices) < len(inner):
        return inner
    return [item for _, _, item in sorted(zip(indices, inner, inner.values(), strict=True))]


def read_npy(data: bytes, place: str, *, objects: bool = False) -> Any:
    """Content of an npy file.

    Args:
        data: Bytes of the file.
        place: File and member, for error messages.
        objects: Whether the array may be one of objects.

    Raises:
        DataError: If header and size disagree, or the file holds what it may not hold.
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
    except Exception as error:  # NumPy parses the header as Python: any kind of error
        raise DataError(
            f"{place} has a damaged header ({format_one_line(error)}); fetch it again"
        ) from None
    shape, fortran, dtype = header
    rest = memoryview(data)[stream.tell() :]
    try:
        if dtype.hasobject and dtype.kind == "O":
            if not objects:
                raise ForbiddenContentError("an array of numbers is expected, not one of objects")
            return unpickle(rest)
        return build_array(shape, dtype, fortran, rest)
    except ForbiddenContentError as error:
        raise DataError(f"{place}: {error}") from None


def _first_bytes(path: Path) -> bytes:
    """The first four bytes of a file."""
    if path.is_file():
        try:
            with path.open("rb") as file:
                return file.read(4)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return read_bytes(path)[:4]


def _check_member(path: Path, member: zip_members.Member) -> None:
    name = member.name
    if name.startswith("/") or ".." in Path(name).parts or not name.endswith(".npy"):
        raise DataError(f"{path}: has the member {name[:60]!r}, which is no array")
    if member.size > max(MIN_CHECKED_BYTES, MAX_RATIO * max(1, member.packed)):
        raise DataError(f"{path}: {name} unpacks to {member.size} bytes from {member.packed}")


def check_array(
    array: Any, shape: Iterable[int | None], place: str, *, finite: bool = True
) -> NDArray[np.float32]:
    """An array of numbers, checked to have a shape, as float32.

    Args:
        array: Value from a file.
        shape: Expected shape; None stands for any length except zero.
        place: File and place in it, for the error message.
        finite: Whether all values must be finite.

    Raises:
        DataError: If it is no array of numbers, has another shape, or a value that is not finite.
    """
    expected = tuple(shape)
    text = "(" + ", ".join("n" if size is None else str(size) for size in expected) + ")"
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        kind = f"{array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(f"{place}: an array of numbers {text} is expected, not {kind}")
    matches = array.ndim == len(expected) and all(
        actual > 0 if size is None else actual == size
        for actual, size in zip(array.shape, expected, strict=True)
    )
    if not matches:
        raise DataError(f"{place}: has the shape {array.shape}, not {text}")
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32, copy=False)
    if finite and not np.isfinite(numbers).all():
        positions = np.argwhere(~np.isfinite(numbers))
        first = ", ".join(map(str, positions[0]))
        raise DataError(f"{place}: {len(positions)} values are not finite, the first at ({first})")
    return numbers
