"""Pickles read through an allow-list of NumPy types."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.pickle_machine import (
    Function,
    PickleError,
    PickleMachine,
    StandIn,
    expanded_size,
)
from pipeline.files.reading import read_bytes

MAX_BYTES = 4 * 2**30
"""Largest unpacked size; the largest known file (mmpose's Human3.6M at 50 Hz) has half of it."""

MAX_DEPTH = 6
"""Deepest nesting of dicts and lists."""

MAX_VALUES = 30_000_000
"""Largest number of operations in a pickle."""

MAX_EXPANSION, FREE_BYTES = 8, 32 * 2**20
"""Largest size of the content with everything shared repeated: this many times the size of the
pickle, and so many bytes more."""

MAX_LISTS = 10_000_000
"""Most lists without content that an array of objects may stand for."""

MAX_EMPTY = 2**31
"""Largest product of the lengths of an array without numbers, apart from those that are zero."""

_DTYPE = re.compile(r"[<>|=]?(f[248]|[iu][1248]|b1|O8?|[US]\d{1,5})")


class ForbiddenContentError(PickleError):
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
        return unpickle(read_bytes(path, MAX_BYTES))
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
    if not dtype.itemsize or math.prod(n for n in shape if n) > MAX_EMPTY + len(data):
        raise ForbiddenContentError(f"an array claims the shape {shape!s:.60} and holds nothing")
    array = np.frombuffer(data, dtype) if len(data) else np.zeros(0, dtype)
    array = array.reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


class _Dtype(StandIn):
    """Stand-in for numpy.dtype while unpickling."""

    def __init__(self, *arguments: Any) -> None:
        text = arguments[0] if arguments else None
        if not isinstance(text, str) or not _DTYPE.fullmatch(text):
            raise ForbiddenContentError(f"an array of {text!r:.40} is no array of numbers")
        self.text = text.lstrip("<>|=")
        self.order = text[0] if text[0] in "<>" else "<"

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(s is not None for s in state[2:5]):
            raise ForbiddenContentError("an array of records is no array of numbers")
        if state[1] in ("<", ">"):
            self.order = state[1]

    @property
    def holds_objects(self) -> bool:
        return self.text.startswith("O")

    def numpy_dtype(self) -> np.dtype:
        return np.dtype(self.order + self.text)


class _Array(StandIn):
    """Stand-in for numpy.ndarray while unpickling; its state is checked before it is used."""

    value: Any = None

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise ForbiddenContentError("an array has no proper state")
        shape, dtype, fortran, data = state[-4:]
        if not isinstance(dtype, _Dtype):
            raise ForbiddenContentError("an array has no proper type")
        if not dtype.holds_objects:
            self.value = _from_bytes(shape, dtype, bool(fortran), data)
            return
        if not _is_shape(shape) or not isinstance(data, list):
            raise ForbiddenContentError(f"an array of objects has the shape {shape!r:.40}")
        if math.prod(shape) != len(data):
            raise ForbiddenContentError(f"an array of objects claims {shape} but has {len(data)}")
        if math.prod(side for side in shape if side) > max(len(data), MAX_LISTS):
            raise ForbiddenContentError(f"an array of objects without content claims {shape}")
        self.value = _nest(data, shape) if shape else data[0]


def _is_shape(shape: Any) -> bool:
    """Whether this is the shape of an array of objects with at most 4 dimensions."""
    return (
        isinstance(shape, tuple)
        and len(shape) <= 4
        and all(type(side) is int and side >= 0 for side in shape)
    )


def _nest(data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """The objects of an array as lists in lists, in the order of the array's dimensions."""
    if len(shape) == 1:
        return data
    length = math.prod(shape[1:])
    return [_nest(data[i * length : (i + 1) * length], shape[1:]) for i in range(shape[0])]


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
    array.set_state((shape, dtype, order == "F", data))
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
    "_codecs.encode": _encode,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _reject_call,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _frombuffer,
}
"""Names that harmless files need -> stand-in, so that no code of NumPy is called."""


def _find(name: str) -> Function:
    function = _ALLOWED.get(name)
    if function is None:
        raise PickleError(
            f"holds {name}"[:100]
            + ", which is no plain dict, list or array; rejected, because it may run code"
        )
    return Function(name, function)


def unpickle(data: bytes | memoryview) -> Any:
    """Content of a pickle: dicts, lists, texts, numbers and arrays of numbers.

    Memory and time are bounded by the size of the pickle, whatever it holds.

    Raises:
        ForbiddenContentError: If it is damaged, holds anything else, is nested deeper than
            `MAX_DEPTH`, or refers to the same values too often.
    """
    limit = MAX_EXPANSION * len(data) + FREE_BYTES
    stream = io.BytesIO(data)
    try:
        value = PickleMachine(_find, operations=MAX_VALUES, call_bytes=limit).run(stream)
        if stream.tell() != len(data):
            raise PickleError("has bytes after its end; fetch it again")
        value = _plain_values(value, 0, {})
        if expanded_size(value, _own_size) > min(limit, MAX_BYTES):
            raise PickleError("refers to the same values too often; write it again without")
    except MemoryError:
        raise ForbiddenContentError("does not fit into memory") from None
    except PickleError as error:
        raise ForbiddenContentError(str(error)) from None
    return value


def _own_size(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    return len(value) if isinstance(value, str) else 0


def _plain_values(value: Any, depth: int, known: dict[int, Any]) -> Any:
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
        plain = _plain_values(value.value, depth, known)
    elif isinstance(value, (list, tuple)):
        plain = [_plain_values(item, depth + 1, known) for item in value]
    elif isinstance(value, dict):
        if not all(_is_key(key) for key in value):
            raise ForbiddenContentError("a dict has keys that are neither texts nor numbers")
        plain = {key: _plain_values(item, depth + 1, known) for key, item in value.items()}
    else:
        name = type(value).__name__.lstrip("_")
        raise ForbiddenContentError(f"holds a {name}, which is no plain dict, list or array")
    known[id(value)] = plain
    return plain


def _is_key(key: Any) -> bool:
    if isinstance(key, tuple):
        return all(isinstance(part, (str, int)) for part in key)
    return isinstance(key, (str, int))
