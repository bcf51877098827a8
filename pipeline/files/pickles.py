"""Pickles read through an allow-list of NumPy types."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.reading import read_bytes

MAX_BYTES = 4 * 2**30
"""Largest unpacked size; the largest known file (mmpose's Human3.6M at 50 Hz) has half of it."""

MAX_DEPTH = 6
"""Deepest nesting of dicts and lists."""

MAX_VALUES = 30_000_000
"""Largest number of operations in a pickle."""

_FORBIDDEN_OPCODES = frozenset(
    (
        *("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"),  # call a class
        *("PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"),  # take objects from elsewhere
        *("NEXT_BUFFER", "READONLY_BUFFER"),  # take buffers from elsewhere
    )
)
_DTYPE = re.compile(r"[<>|=]?(f[248]|[iu][1248]|b1|O8?|[US]\d{1,5})")


class ForbiddenContentError(Exception):
    """A pickle or array is damaged, or holds what no data set of poses needs."""


def format_one_line(error: BaseException) -> str:
    """Text of an error in one line of at most 100 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:100]


def read_pickle(path: Path) -> Any:
    """Content of a pickle as plain dicts, lists, texts, numbers and arrays of numbers.

    Raises:
        DataError: If it holds anything else, is damaged, or larger than `MAX_BYTES`.
    """
    try:
        return plain_values(unpickle(memoryview(read_bytes(path, MAX_BYTES))), 0, {})
    except ForbiddenContentError as error:
        raise DataError(f"{path}: {error}") from None


def build_array(
    shape: Any, dtype: np.dtype, fortran: bool, data: bytes | bytearray | memoryview
) -> NDArray:
    """An array of numbers or text from its bytes, in native byte order.

    Raises:
        ForbiddenContentError: If type, shape and bytes do not fit together.
    """
    if dtype.kind not in "biufUS":
        raise ForbiddenContentError(f"an array of {dtype} is no array of numbers")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ForbiddenContentError("an array has no proper shape")
    if len(shape) > 32 or math.prod(shape) * dtype.itemsize != len(data):
        raise ForbiddenContentError(
            f"an array claims the shape {shape} of {dtype} but has {len(data)} bytes; "
            "fetch it again"
        )
    array = np.frombuffer(data, dtype) if len(data) else np.zeros(math.prod(shape), dtype)
    array = array.reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


class _Dtype:
    """Stand-in for numpy.dtype while unpickling."""

    def __init__(self, *arguments: Any) -> None:
        text = arguments[0] if arguments else None
        if not isinstance(text, str) or not _DTYPE.fullmatch(text):
            raise ForbiddenContentError(f"an array of {text!r:.40} is no array of numbers")
        self.text = text.lstrip("<>|=")
        self.order = text[0] if text[0] in "<>" else "<"

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(s is not None for s in state[2:5]):
            raise ForbiddenContentError("an array of records is no array of numbers")
        if state[1] in ("<", ">"):
            self.order = state[1]

    @property
    def holds_objects(self) -> bool:
        return self.text.startswith("O")

    def numpy_dtype(self) -> np.dtype:
        return np.dtype(self.order + self.text)


class _Array:
    """Stand-in for numpy.ndarray while unpickling; its state is checked before it is used."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise ForbiddenContentError("an array has no proper state")
        shape, dtype, fortran, data = state[-4:]
        if not isinstance(dtype, _Dtype):
            raise ForbiddenContentError("an array has no proper type")
        if not dtype.holds_objects:
            self.value = _from_bytes(shape, dtype, bool(fortran), data)
            return
        if not isinstance(shape, tuple) or len(shape) > 1 or not isinstance(data, list):
            raise ForbiddenContentError(f"an array of objects has the shape {shape!r:.40}")
        if math.prod(shape) != len(data):
            raise ForbiddenContentError(f"an array of objects claims {shape} but has {len(data)}")
        self.value = data if shape else data[0]


def _from_bytes(shape: Any, dtype: _Dtype, fortran: bool, data: Any) -> NDArray:
    """An array from the parts of a pickled one."""
    if isinstance(data, str):  # written by Python 2
        try:
            data = data.encode("latin-1")
        except UnicodeEncodeError:
            raise ForbiddenContentError("an array has text in place of its bytes") from None
    if not isinstance(data, (bytes, bytearray)):
        raise ForbiddenContentError("an array has no bytes")
    return build_array(shape, dtype.numpy_dtype(), fortran, data)


def _reconstruct(*arguments: Any) -> _Array:
    """Stand-in for numpy.core.multiarray._reconstruct."""
    if len(arguments) != 3 or arguments[1] != (0,):
        raise ForbiddenContentError("an array is not made of its bytes alone")
    return _Array()


def _frombuffer(*arguments: Any) -> _Array:
    """Stand-in for numpy.core.numeric._frombuffer."""
    if len(arguments) != 4 or not isinstance(arguments[1], _Dtype):
        raise ForbiddenContentError("an array has no proper state")
    data, dtype, shape, order = arguments
    array = _Array()
    array.__setstate__((shape, dtype, order == "F", data))
    return array


def _scalar(*arguments: Any) -> Any:
    """Stand-in for numpy.core.multiarray.scalar."""
    if len(arguments) != 2 or not isinstance(arguments[0], _Dtype):
        raise ForbiddenContentError("a number has no proper type")
    return _from_bytes((), arguments[0], False, arguments[1]).item()


def _encode(*arguments: Any) -> bytes:
    """Stand-in for _codecs.encode, for bytes in pickles of protocol 2."""
    if len(arguments) != 2 or arguments[1] not in ("latin1", "latin-1"):
        raise ForbiddenContentError(f"calls _codecs.encode with {arguments[1:]!r:.40}")
    try:
        return str(arguments[0]).encode("latin-1")
    except UnicodeEncodeError:
        raise ForbiddenContentError("an array has text in place of its bytes") from None


def _reject_call(*arguments: Any) -> NoReturn:
    raise ForbiddenContentError("calls numpy.ndarray")


_ALLOWED = {
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _reject_call,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}
"""(module, name) pairs that harmless files need -> stand-in, so that no code of NumPy is called."""


class _Callable:
    """A stand-in as the pickle sees it: it can be called, but not changed."""

    __slots__ = ("_function",)

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise ForbiddenContentError("changes a function")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        function = _ALLOWED.get((module, name))
        if function is None:
            raise ForbiddenContentError(
                f"holds {module}.{name}"[:100]
                + ", which is no plain dict, list or array; rejected, because it may run code"
            )
        return _Callable(function)

    def persistent_load(self, pid: Any) -> NoReturn:
        raise ForbiddenContentError("refers to objects outside of the file")


def unpickle(data: memoryview) -> Any:
    """Content of a pickle, with stand-ins for NumPy's types (see `plain_values`).

    Raises:
        ForbiddenContentError: If it is damaged or holds anything else.
    """
    _check_opcodes(data)
    stream = io.BytesIO(data)
    try:
        value = _Unpickler(stream, encoding="latin-1").load()
    except ForbiddenContentError:
        raise
    except Exception as error:  # a damaged pickle raises any kind
        raise ForbiddenContentError(
            f"its pickle is damaged ({format_one_line(error)}); fetch it again"
        ) from None
    if stream.tell() != len(data):
        raise ForbiddenContentError("has bytes after its end; fetch it again")
    return value


def _check_opcodes(data: memoryview) -> None:
    """Reject operations that let the unpickler call or allocate, before it reads the file."""
    count = 0
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
            count += 1
            if opcode.name in _FORBIDDEN_OPCODES:
                detail = f" ({argument})" if isinstance(argument, str) else ""
                raise ForbiddenContentError(
                    f"holds {opcode.name}{detail:.60}; rejected, because it may run code"
                )
            if opcode.name.endswith("PUT") and (not isinstance(argument, int) or argument > count):
                raise ForbiddenContentError("numbers its values beyond their count")
            if count > MAX_VALUES:
                raise ForbiddenContentError("holds too many values")
    except ForbiddenContentError:
        raise
    except Exception as error:  # a damaged pickle raises any kind
        raise ForbiddenContentError(
            f"its pickle is damaged ({format_one_line(error)}); fetch it again"
        ) from None


def plain_values(value: Any, depth: int, known: dict[int, Any]) -> Any:
    """The content of a pickle with NumPy's arrays in place of stand-ins.

    Args:
        value: Value that `unpickle` returned, or a part of it.
        depth: Number of containers around the value.
        known: Converted values by id of the original; a shared value is converted once.

    Raises:
        ForbiddenContentError: If it holds other things than dicts, lists, texts, numbers and
            arrays, or is nested deeper than `MAX_DEPTH`.
    """
    if value is None or isinstance(value, (str, int, float, np.ndarray)):
        return value
    if id(value) in known:
        return known[id(value)]
    if depth > MAX_DEPTH:
        raise ForbiddenContentError(f"is nested deeper than {MAX_DEPTH}")
    plain: Any
    if isinstance(value, _Array):
        if value.value is None:
            raise ForbiddenContentError("an array has no content")
        plain = plain_values(value.value, depth, known)
    elif isinstance(value, (list, tuple)):
        plain = [plain_values(item, depth + 1, known) for item in value]
    elif isinstance(value, dict):
        if not all(_is_key(key) for key in value):
            raise ForbiddenContentError("a dict has keys that are neither texts nor numbers")
        plain = {key: plain_values(item, depth + 1, known) for key, item in value.items()}
    else:
        name = type(value).__name__.lstrip("_")
        raise ForbiddenContentError(f"holds a {name}, which is no plain dict, list or array")
    known[id(value)] = plain
    return plain


def _is_key(key: Any) -> bool:
    if isinstance(key, tuple):
        return all(isinstance(part, (str, int)) for part in key)
    return isinstance(key, (str, int))
