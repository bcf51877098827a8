"""JSON files read strictly; each error is one line that names the file and the place in it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.reading import read_bytes

MAX_BYTES = 2 * 2**30
MAX_MEMORY, FREE_MEMORY, MEMORY_PER_BYTE = 12 * 2**30, 256 * 2**20, 12
"""Largest memory of a document, bytes; memory that each may take; and more for each byte of it."""

_COSTS = {b",": 36, b"[": 90, b"{": 250}  # bytes of memory for a value, a list and an object

MAX_NUMBER = 1e30
"""Larger numbers are rejected: no data set of people has them, and float32 could not hold them."""

Kind = TypeVar("Kind")
_NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


class _InvalidContentError(ValueError):
    """JSON that Python's parser accepts and this module rejects."""


def _reject_constant(name: str) -> NoReturn:
    raise _InvalidContentError(f"holds {name}, which is no number")


def _dict_of_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise _InvalidContentError(f"has the key {twice[:60]!r} twice in one object")
    return found


def read_json(path: Path, limit: int = MAX_BYTES) -> Any:
    """Content of a JSON file.

    Raises:
        DataError: If it is missing, larger than `limit` bytes, not UTF-8, not valid, nested too
            deep, has a key twice in one object or NaN among its numbers, or would take much more
            memory than its size.
    """
    try:
        data = read_bytes(path, limit)
        memory = 2 * len(data) + sum(cost * data.count(mark) for mark, cost in _COSTS.items())
        if memory > min(MAX_MEMORY, FREE_MEMORY + MEMORY_PER_BYTE * len(data)):
            raise _InvalidContentError(
                f"has so many lists and objects in {len(data):,} bytes that it would take "
                f"{memory / 2**30:.1f} GiB of memory"
            )
        return parse_json(data.decode("utf-8-sig"))
    except _InvalidContentError as error:
        raise DataError(f"{path}: {error}; write it again without") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise DataError(
            f"{path}: {place}: is not valid JSON ({error.msg}); fetch it again"
        ) from None
    except RecursionError:
        raise DataError(f"{path}: is nested too deep for a data set; fetch it again") from None
    except ValueError as error:  # a whole number of more than 4300 digits
        raise DataError(f"{path}: {str(error)[:80]}; fetch it again") from None


def parse_json(text: str) -> Any:
    """Content of a JSON text, without NaN and objects with a key twice.

    Raises:
        ValueError: If it is not such a text.
        RecursionError: If it is nested too deep.
    """
    return json.loads(
        text,
        parse_constant=_reject_constant,
        object_pairs_hook=_dict_of_distinct_keys,
    )


def expect_type(value: Any, kind: type[Kind], place: str) -> Kind:
    """The value itself, checked to be of a type.

    Args:
        value: Value from a JSON file.
        kind: Expected type: `dict`, `list`, `str` or `int`.
        place: File and place in it, for the error message.

    Raises:
        DataError: If the value has another type, or is a whole number beyond 64 bits.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{place}: {_NAMES[kind]} is expected, not {_short_text(value)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise DataError(f"{place}: a number of {value.bit_length()} bits is too large")
    return value


def required_key(record: Any, name: str, place: str) -> Any:
    """Value of a key of a JSON object.

    Raises:
        DataError: If this is no object, or the key is missing; the message lists the keys it has.
    """
    expect_type(record, dict, place)
    if name not in record:
        has = ", ".join(map(str, list(record)[:12])) or "nothing"
        raise DataError(f"{place}: has no {name!r} (it has {has})")
    return record[name]


def number_array(value: Any, shape: tuple[int | None, ...], place: str) -> NDArray[np.float64]:
    """Finite numbers as an array of a given shape, float64.

    Args:
        value: Value from a JSON file.
        shape: Expected shape; None stands for any length.
        place: File and place in it, for the error message.

    Raises:
        DataError: If the value is not made of finite numbers, or has another shape.
    """
    try:
        array = np.array(value)
    except (ValueError, OverflowError, RecursionError):
        array = np.array(None)
    expected = "x".join("n" if size is None else str(size) for size in shape) or "one"
    if array.dtype.kind not in "iuf" and array.size:
        raise DataError(f"{place}: {expected} numbers are expected, not {_short_text(value)}")
    matches = array.ndim == len(shape) and all(
        size is None or size == actual for size, actual in zip(shape, array.shape, strict=True)
    )
    if not matches:
        actual_shape = "x".join(map(str, array.shape)) or "one"
        raise DataError(f"{place}: {expected} numbers are expected, not {actual_shape}")
    array = array.astype(np.float64)
    if not (np.abs(array) < MAX_NUMBER).all():
        raise DataError(f"{place}: has a number that is not finite or beyond all bounds")
    return array


def expect_number(record: Mapping[str, Any], name: str, place: str) -> float:
    """The finite number under a key of a JSON object.

    Raises:
        DataError: If the key is missing or its value is no finite number.
    """
    value = required_key(record, name, place)
    if type(value) in (int, float) and abs(value) < MAX_NUMBER:
        return float(value)
    return float(number_array(value, (), f"{place}: {name}"))


def _short_text(value: Any) -> str:
    """A value as at most 40 characters for an error message; of a container, its type."""
    text = type(value).__name__ if isinstance(value, (dict, list)) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
