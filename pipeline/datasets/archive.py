"""Archives of arrays, npz and pickles; the only place that unpickles, through an allow-list."""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.photos import read_bytes
from pipeline.errors import DataError

MAX_BYTES = 4 * 2**30
"""Unpacked; the largest file of the field (mmpose's Human3.6M at 50 Hz) needs a half of it."""
MAX_RATIO = 200
"""Of unpacked to packed size, for members above 64 MiB: real coordinates pack 1.1 to 3 times."""
MAX_DEPTH = 6
MAX_VALUES = 30_000_000

_BUILDERS = ("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX")
_OUTSIDE = ("PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER")
_REFUSED_OPCODES = frozenset((*_BUILDERS, *_OUTSIDE))
_DTYPE = re.compile(r"[<>|=]?(f[248]|[iu][1248]|b1|O8?|[US]\d{1,5})")


class _RefusedError(Exception):
    """What a pickle or array holds that no data set of poses needs."""


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
            raise DataError(f"{path}: is damaged ({_line(error)}); fetch it again") from None
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
        `name/…` are the parts of one that was written without objects (see `flattened`).

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
            raise DataError(f"{place} is damaged ({_line(error)}); fetch it again") from None
        return read_npy(data, place, objects=objects)


def flattened(value: Any, name: str, place: str) -> dict[str, NDArray]:
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
            found |= flattened(inner, f"{name}/{part}", place)
        return found
    if value is None:
        raise DataError(f"{place}: {name} is none; only numbers, texts and arrays can be kept")
    return {name: np.asarray(value)}


_PART = re.compile(r"[\w .,()\[\]+-]{1,80}")
_INDEX = re.compile(r"\[(\d{1,6})\]")


def _with_lists(value: Any) -> Any:
    """Undoes `flattened`: keys in square brackets are places in a list."""
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
        raise DataError(f"{place} has a damaged header ({_line(error)}); fetch it again") from None
    shape, fortran, dtype = header
    rest = memoryview(data)[stream.tell() :]
    try:
        if dtype.hasobject and dtype.kind == "O":
            if not objects:
                raise _RefusedError("an array of numbers is expected, not one of objects")
            return _plain(_unpickle(rest), 0, {})
        return _array(shape, dtype, fortran, rest)
    except _RefusedError as error:
        raise DataError(f"{place}: {error}") from None


def read_pickle(path: Path) -> Any:
    """Content of a pickle as plain dicts, lists, texts, numbers and arrays of numbers.

    Raises:
        DataError: If it holds anything else, is damaged, or larger than `MAX_BYTES`.
    """
    try:
        return _plain(_unpickle(memoryview(read_bytes(path, MAX_BYTES))), 0, {})
    except _RefusedError as error:
        raise DataError(f"{path}: {error}") from None


def _start(path: Path) -> bytes:
    if path.is_file():
        try:
            with path.open("rb") as file:
                return file.read(4)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return read_bytes(path)[:4]


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:100]


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


def _array(
    shape: Any, dtype: np.dtype, fortran: bool, data: bytes | bytearray | memoryview
) -> NDArray:
    """An array of numbers or text from its bytes, in native byte order."""
    if dtype.kind not in "biufUS":
        raise _RefusedError(f"an array of {dtype} is no array of numbers")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise _RefusedError("an array has no proper shape")
    if len(shape) > 32 or math.prod(shape) * dtype.itemsize != len(data):
        raise _RefusedError(
            f"an array claims the shape {shape} of {dtype} but has {len(data)} bytes; "
            "fetch it again"
        )
    array = np.frombuffer(data, dtype) if len(data) else np.zeros(math.prod(shape), dtype)
    array = array.reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


class _Dtype:
    """Stands for numpy.dtype while unpickling."""

    def __init__(self, *arguments: Any) -> None:
        text = arguments[0] if arguments else None
        if not isinstance(text, str) or not _DTYPE.fullmatch(text):
            raise _RefusedError(f"an array of {text!r:.40} is no array of numbers")
        self.text, self.order = text.lstrip("<>|="), text[0] if text[0] in "<>" else "<"

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(s is not None for s in state[2:5]):
            raise _RefusedError("an array of records is no array of numbers")
        if state[1] in ("<", ">"):
            self.order = state[1]

    @property
    def holds_objects(self) -> bool:
        return self.text.startswith("O")

    def real(self) -> np.dtype:
        return np.dtype(self.order + self.text)


class _Array:
    """Stands for numpy.ndarray while unpickling: its parts are checked before it is made."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise _RefusedError("an array has no proper state")
        shape, dtype, fortran, data = state[-4:]
        if not isinstance(dtype, _Dtype):
            raise _RefusedError("an array has no proper type")
        if not dtype.holds_objects:
            self.value = _from_bytes(shape, dtype, bool(fortran), data)
            return
        if not isinstance(shape, tuple) or len(shape) > 1 or not isinstance(data, list):
            raise _RefusedError(f"an array of objects has the shape {shape!r:.40}")
        if math.prod(shape) != len(data):
            raise _RefusedError(f"an array of objects claims {shape} but has {len(data)}")
        self.value = data if shape else data[0]


def _from_bytes(shape: Any, dtype: _Dtype, fortran: bool, data: Any) -> NDArray:
    if isinstance(data, str):  # written by Python 2
        try:
            data = data.encode("latin-1")
        except UnicodeEncodeError:
            raise _RefusedError("an array has text in place of its bytes") from None
    if not isinstance(data, (bytes, bytearray)):
        raise _RefusedError("an array has no bytes")
    return _array(shape, dtype.real(), fortran, data)


def _reconstruct(*arguments: Any) -> _Array:
    if len(arguments) != 3 or arguments[1] != (0,):
        raise _RefusedError("an array is made of more than its bytes")
    return _Array()


def _frombuffer(*arguments: Any) -> _Array:
    if len(arguments) != 4 or not isinstance(arguments[1], _Dtype):
        raise _RefusedError("an array has no proper state")
    data, dtype, shape, order = arguments
    made = _Array()
    made.__setstate__((shape, dtype, order == "F", data))
    return made


def _scalar(*arguments: Any) -> Any:
    if len(arguments) != 2 or not isinstance(arguments[0], _Dtype):
        raise _RefusedError("a number has no proper type")
    return _from_bytes((), arguments[0], False, arguments[1]).item()


def _encode(*arguments: Any) -> bytes:
    if len(arguments) != 2 or arguments[1] not in ("latin1", "latin-1"):
        raise _RefusedError(f"_codecs.encode with {arguments[1:]!r:.40} - refused")
    try:
        return str(arguments[0]).encode("latin-1")
    except UnicodeEncodeError:
        raise _RefusedError("an array has text in place of its bytes") from None


def _no_call(*arguments: Any) -> NoReturn:
    raise _RefusedError("numpy.ndarray is called - refused")


_ALLOWED = {
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _no_call,
    **{
        (f"numpy.{core}.{module}", name): made
        for core in ("core", "_core")
        for module, name, made in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
}
"""Exact (module, name) pairs that honest files need -> ours: no NumPy code sees the file."""


class _Maker:
    """What a pickle gets for a name: it can be called, and nothing else."""

    __slots__ = ("_make",)

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise _RefusedError("a function is changed - refused")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        made = _ALLOWED.get((module, name))
        if made is None:
            raise _RefusedError(
                f"holds {module}.{name}"[:100]
                + ", which is no plain dict, list or array - refused, "
                "it may run code"
            )
        return _Maker(made)

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _RefusedError("refers to objects elsewhere - refused")


def _unpickle(data: memoryview) -> Any:
    _check_opcodes(data)
    stream = io.BytesIO(data)
    try:
        value = _Unpickler(stream, encoding="latin-1").load()
    except _RefusedError:
        raise
    except Exception as error:  # a damaged pickle raises any kind
        raise _RefusedError(f"its pickle is damaged ({_line(error)}); fetch it again") from None
    if stream.tell() != len(data):
        raise _RefusedError("has bytes behind its end; fetch it again")
    return value


def _check_opcodes(data: memoryview) -> None:
    """Refuses what makes the unpickler allocate or call on its own, before it sees the file."""
    count = 0
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
            count += 1
            if opcode.name in _REFUSED_OPCODES:
                what = f" ({argument})" if isinstance(argument, str) else ""
                raise _RefusedError(f"holds {opcode.name}{what:.60} - refused, it may run code")
            if opcode.name.endswith("PUT") and (not isinstance(argument, int) or argument > count):
                raise _RefusedError("numbers its parts beyond their count - refused")
            if count > MAX_VALUES:
                raise _RefusedError("holds too many values")
    except _RefusedError:
        raise
    except Exception as error:  # a damaged pickle raises any kind
        raise _RefusedError(f"its pickle is damaged ({_line(error)}); fetch it again") from None


def _plain(value: Any, depth: int, known: dict[int, Any]) -> Any:
    """The value with real arrays in it, if all in it is plain; `known` holds what was seen."""
    if value is None or isinstance(value, (str, int, float, np.ndarray)):
        return value
    if id(value) in known:
        return known[id(value)]
    if depth > MAX_DEPTH:
        raise _RefusedError(f"is nested deeper than {MAX_DEPTH}")
    plain: Any
    if isinstance(value, _Array):
        if value.value is None:
            raise _RefusedError("an array has no content")
        plain = _plain(value.value, depth, known)
    elif isinstance(value, (list, tuple)):
        plain = [_plain(item, depth + 1, known) for item in value]
    elif isinstance(value, dict):
        if not all(_is_key(key) for key in value):
            raise _RefusedError("a dict has keys that are neither texts nor numbers")
        plain = {key: _plain(item, depth + 1, known) for key, item in value.items()}
    else:
        name = type(value).__name__.lstrip("_")
        raise _RefusedError(f"holds a {name}, which is no plain dict, list or array - refused")
    known[id(value)] = plain
    return plain


def _is_key(key: Any) -> bool:
    if isinstance(key, tuple):
        return all(isinstance(part, (str, int)) for part in key)
    return isinstance(key, (str, int))


def matching(
    array: Any, shape: Iterable[int | None], place: str, *, finite: bool = True
) -> NDArray[np.float32]:
    """An array of numbers of a shape, float32; None in `shape` stands for any length but zero.

    Raises:
        DataError: If it is another thing, or has a value that is not finite.
    """
    wanted = tuple(shape)
    text = "(" + ", ".join("n" if size is None else str(size) for size in wanted) + ")"
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        kind = f"{array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(f"{place}: an array of numbers {text} is expected, not {kind}")
    fits = array.ndim == len(wanted) and all(
        have == want if want is not None else have > 0
        for have, want in zip(array.shape, wanted, strict=True)
    )
    if not fits:
        raise DataError(f"{place}: has the shape {array.shape}, not {text}")
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32, copy=False)
    if finite and not np.isfinite(numbers).all():
        bad = np.argwhere(~np.isfinite(numbers))
        where = ", ".join(map(str, bad[0]))
        raise DataError(f"{place}: {len(bad)} values are not finite, the first at ({where})")
    return numbers
