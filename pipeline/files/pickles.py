"""Pickles read through an allow-list of NumPy types."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.reading import read_bytes

MAX_BYTES = 4 * 2**30
"""Unpacked; the largest file of the field (mmpose's Human3.6M at 50 Hz) needs a half of it."""


def one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:100]


MAX_DEPTH = 6


MAX_VALUES = 30_000_000


_BUILDERS = ("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX")


_OUTSIDE = ("PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER")


_REFUSED_OPCODES = frozenset((*_BUILDERS, *_OUTSIDE))


_DTYPE = re.compile(r"[<>|=]?(f[248]|[iu][1248]|b1|O8?|[US]\d{1,5})")


class RefusedError(Exception):
    """What a pickle or array holds that no data set of poses needs."""


def read_pickle(path: Path) -> Any:
    """Content of a pickle as plain dicts, lists, texts, numbers and arrays of numbers.

    Raises:
        DataError: If it holds anything else, is damaged, or larger than `MAX_BYTES`.
    """
    try:
        return plain_values(unpickle(memoryview(read_bytes(path, MAX_BYTES))), 0, {})
    except RefusedError as error:
        raise DataError(f"{path}: {error}") from None


def checked_array(
    shape: Any, dtype: np.dtype, fortran: bool, data: bytes | bytearray | memoryview
) -> NDArray:
    """An array of numbers or text from its bytes, in native byte order."""
    if dtype.kind not in "biufUS":
        raise RefusedError(f"an array of {dtype} is no array of numbers")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise RefusedError("an array has no proper shape")
    if len(shape) > 32 or math.prod(shape) * dtype.itemsize != len(data):
        raise RefusedError(
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
            raise RefusedError(f"an array of {text!r:.40} is no array of numbers")
        self.text, self.order = text.lstrip("<>|="), text[0] if text[0] in "<>" else "<"

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(s is not None for s in state[2:5]):
            raise RefusedError("an array of records is no array of numbers")
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
            raise RefusedError("an array has no proper state")
        shape, dtype, fortran, data = state[-4:]
        if not isinstance(dtype, _Dtype):
            raise RefusedError("an array has no proper type")
        if not dtype.holds_objects:
            self.value = _from_bytes(shape, dtype, bool(fortran), data)
            return
        if not isinstance(shape, tuple) or len(shape) > 1 or not isinstance(data, list):
            raise RefusedError(f"an array of objects has the shape {shape!r:.40}")
        if math.prod(shape) != len(data):
            raise RefusedError(f"an array of objects claims {shape} but has {len(data)}")
        self.value = data if shape else data[0]


def _from_bytes(shape: Any, dtype: _Dtype, fortran: bool, data: Any) -> NDArray:
    if isinstance(data, str):  # written by Python 2
        try:
            data = data.encode("latin-1")
        except UnicodeEncodeError:
            raise RefusedError("an array has text in place of its bytes") from None
    if not isinstance(data, (bytes, bytearray)):
        raise RefusedError("an array has no bytes")
    return checked_array(shape, dtype.real(), fortran, data)


def _reconstruct(*arguments: Any) -> _Array:
    if len(arguments) != 3 or arguments[1] != (0,):
        raise RefusedError("an array is made of more than its bytes")
    return _Array()


def _frombuffer(*arguments: Any) -> _Array:
    if len(arguments) != 4 or not isinstance(arguments[1], _Dtype):
        raise RefusedError("an array has no proper state")
    data, dtype, shape, order = arguments
    made = _Array()
    made.__setstate__((shape, dtype, order == "F", data))
    return made


def _scalar(*arguments: Any) -> Any:
    if len(arguments) != 2 or not isinstance(arguments[0], _Dtype):
        raise RefusedError("a number has no proper type")
    return _from_bytes((), arguments[0], False, arguments[1]).item()


def _encode(*arguments: Any) -> bytes:
    if len(arguments) != 2 or arguments[1] not in ("latin1", "latin-1"):
        raise RefusedError(f"_codecs.encode with {arguments[1:]!r:.40} - refused")
    try:
        return str(arguments[0]).encode("latin-1")
    except UnicodeEncodeError:
        raise RefusedError("an array has text in place of its bytes") from None


def _no_call(*arguments: Any) -> NoReturn:
    raise RefusedError("numpy.ndarray is called - refused")


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
        raise RefusedError("a function is changed - refused")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        made = _ALLOWED.get((module, name))
        if made is None:
            raise RefusedError(
                f"holds {module}.{name}"[:100]
                + ", which is no plain dict, list or array - refused, "
                "it may run code"
            )
        return _Maker(made)

    def persistent_load(self, pid: Any) -> NoReturn:
        raise RefusedError("refers to objects elsewhere - refused")


def unpickle(data: memoryview) -> Any:
    _check_opcodes(data)
    stream = io.BytesIO(data)
    try:
        value = _Unpickler(stream, encoding="latin-1").load()
    except RefusedError:
        raise
    except Exception as error:  # a damaged pickle raises any kind
        raise RefusedError(f"its pickle is damaged ({one_line(error)}); fetch it again") from None
    if stream.tell() != len(data):
        raise RefusedError("has bytes behind its end; fetch it again")
    return value


def _check_opcodes(data: memoryview) -> None:
    """Refuses what makes the unpickler allocate or call on its own, before it sees the file."""
    count = 0
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
            count += 1
            if opcode.name in _REFUSED_OPCODES:
                what = f" ({argument})" if isinstance(argument, str) else ""
                raise RefusedError(f"holds {opcode.name}{what:.60} - refused, it may run code")
            if opcode.name.endswith("PUT") and (not isinstance(argument, int) or argument > count):
                raise RefusedError("numbers its parts beyond their count - refused")
            if count > MAX_VALUES:
                raise RefusedError("holds too many values")
    except RefusedError:
        raise
    except Exception as error:  # a damaged pickle raises any kind
        raise RefusedError(f"its pickle is damaged ({one_line(error)}); fetch it again") from None


def plain_values(value: Any, depth: int, known: dict[int, Any]) -> Any:
    """The value with real arrays in it, if all in it is plain; `known` holds what was seen."""
    if value is None or isinstance(value, (str, int, float, np.ndarray)):
        return value
    if id(value) in known:
        return known[id(value)]
    if depth > MAX_DEPTH:
        raise RefusedError(f"is nested deeper than {MAX_DEPTH}")
    plain: Any
    if isinstance(value, _Array):
        if value.value is None:
            raise RefusedError("an array has no content")
        plain = plain_values(value.value, depth, known)
    elif isinstance(value, (list, tuple)):
        plain = [plain_values(item, depth + 1, known) for item in value]
    elif isinstance(value, dict):
        if not all(_is_key(key) for key in value):
            raise RefusedError("a dict has keys that are neither texts nor numbers")
        plain = {key: plain_values(item, depth + 1, known) for key, item in value.items()}
    else:
        name = type(value).__name__.lstrip("_")
        raise RefusedError(f"holds a {name}, which is no plain dict, list or array - refused")
    known[id(value)] = plain
    return plain


def _is_key(key: Any) -> bool:
    if isinstance(key, tuple):
        return all(isinstance(part, (str, int)) for part in key)
    return isinstance(key, (str, int))


def check_array(
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
