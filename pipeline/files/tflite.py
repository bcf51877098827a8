"""TensorFlow Lite files: tensors and operators of one graph, every offset and size checked."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.digests import bytes_digest
from pipeline.files.reading import read_bytes

MAX_BYTES = 64 * 2**20
"""Largest file; the largest BlazePose file has 28 MB."""

MAX_COUNT = 4096
"""Most tensors, operators, operator codes and buffers; BlazePose's heavy network has 1,098."""

MAX_LINKS = 64
"""Most inputs or outputs of an operator or of the graph."""

MAX_CONSTANTS = 2**25
"""Most numbers in all constants together; BlazePose's heavy network has 13.8 million."""

MAX_SPARSE = 2**22
"""Most numbers in a sparse constant, with its zeros; the person detector's largest has 221,184."""

MAX_ELEMENTS = 2**24
"""Most numbers in a tensor that is computed; BlazePose's largest has 1.6 million."""

MAX_COMPUTED = 2**27
"""Most numbers in all tensors that are computed; BlazePose's heavy network has 48 million."""

MAX_SIDE = 2**16
"""Largest side of a tensor."""

_TYPES = {0: "float32", 1: "float16", 2: "int32"}
_PADDINGS = ("same", "valid")
_ACTIVATIONS = ("none", "relu", "relu_n1_to_1", "relu6")

_OPERATORS: dict[int, tuple[str, int]] = {
    0: ("add", 11),
    2: ("concatenation", 10),
    3: ("conv_2d", 1),
    4: ("depthwise_conv_2d", 2),
    5: ("depth_to_space", 94),
    6: ("dequantize", 0),
    14: ("logistic", 0),
    17: ("max_pool_2d", 5),
    22: ("reshape", 0),
    23: ("resize_bilinear", 15),
    34: ("pad", 0),
    124: ("densify", 0),
}
"""Code of an operator -> its name, and the type of its options; 0 where options tell nothing."""


@dataclass(frozen=True)
class TfliteTensor:
    """A tensor of a graph.

    Args:
        name: Name in the file, at most 80 characters, for error messages.
        shape: Shape, channels last: (B, H, W, C) for images.
        values: Numbers of a constant, read-only, float32, float16 or int32; None if computed.
    """

    name: str
    shape: tuple[int, ...]
    values: NDArray[Any] | None


@dataclass(frozen=True)
class TfliteOperator:
    """An operator of a graph.

    Args:
        kind: Name of the operator in lower case, `conv_2d`.
        options: Options by name: `padding`, `stride` (rows, columns), `dilation`, `activation`,
            `multiplier`, `window`, `axis`, `align_corners`, `half_pixel`.
        inputs: Numbers of the tensors that it reads; -1 for a bias that is left out.
        outputs: Numbers of the tensors that it computes.
    """

    kind: str
    options: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class TfliteGraph:
    """The graph of a TensorFlow Lite file, as plain data.

    Args:
        path: The file.
        digest: SHA-256 of the file.
        tensors: All tensors.
        operators: Operators in an order in which each reads only what is there.
        inputs: Numbers of the tensors that a caller gives.
        outputs: Numbers of the tensors that a caller gets.
    """

    path: Path
    digest: str
    tensors: tuple[TfliteTensor, ...]
    operators: tuple[TfliteOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class _DamagedError(Exception):
    """What is wrong with a damaged file; becomes the middle of the error line."""

    advice = "; fetch it again"


class _ForeignError(_DamagedError):
    """What a whole file has that BlazePose's files do not have."""

    advice = ""


def read_tflite(path: Path) -> TfliteGraph:
    """The graph of a TensorFlow Lite file with float weights.

    Sparse constants come out dense. Nothing that the file states is used before it is checked
    against the length of the file and the limits of this module.

    Args:
        path: The file.

    Raises:
        DataError: If it is missing, no TensorFlow Lite file, damaged, beyond a limit, or uses an
            operator or a type of number that BlazePose does not use.

    Source: the public schema of TensorFlow Lite (version 3) and the format of flatbuffers.
    """
    data = read_bytes(path, MAX_BYTES)
    if data[4:8] != b"TFL3":
        raise DataError(f"{path}: is no TensorFlow Lite file (starts with {data[:8].hex(' ')})")
    try:
        return _read_graph(_Table(data, _Table(data, 0).offset_at(0)), path)
    except _DamagedError as error:
        raise DataError(f"{path}: {error}{error.advice}") from None


class _Table:
    """A table of a flatbuffer: fields found through a list of offsets, each optional."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data, self.position = data, position

    def number(self, form: str, position: int) -> Any:
        """The number at a position of the file."""
        size = struct.calcsize("<" + form)
        if not 0 <= position <= len(self.data) - size:
            raise _DamagedError(f"refers to byte {position} of {len(self.data)}")
        return struct.unpack_from("<" + form, self.data, position)[0]

    def offset_at(self, position: int) -> int:
        """The position that an offset points to; offsets point forward."""
        distance = self.number("I", position)
        if distance < 4 or position + distance > len(self.data) - 4:
            raise _DamagedError(
                f"the offset at byte {position} leads to byte {position + distance}"
            )
        return position + distance

    def field(self, slot: int) -> int | None:
        """Position of a field; None where the table does not have it."""
        listed = self.position - self.number("i", self.position)
        size, extent = self.number("H", listed), self.number("H", listed + 2)
        if size < 4 or size % 2 or extent < 4:
            raise _DamagedError(f"the table at byte {self.position} has no valid list of fields")
        if 4 + 2 * slot >= size:
            return None
        offset = self.number("H", listed + 4 + 2 * slot)
        if offset and not 4 <= offset < extent:
            raise _DamagedError(f"field {slot} of the table at byte {self.position} is outside it")
        return self.position + offset if offset else None

    def scalar(self, slot: int, form: str, default: int = 0) -> Any:
        """A number of the table, or its default."""
        position = self.field(slot)
        return default if position is None else self.number(form, position)

    def table(self, slot: int) -> _Table | None:
        """A table that this table points to."""
        position = self.field(slot)
        return None if position is None else _Table(self.data, self.offset_at(position))

    def vector(self, slot: int, width: int, most: int) -> tuple[int, int]:
        """Position of the first element and length of a vector of this width; (0, 0) if absent."""
        field = self.field(slot)
        if field is None:
            return 0, 0
        start = self.offset_at(field)
        length = self.number("I", start)
        if length > most or start + 4 + length * width > len(self.data):
            raise _DamagedError(f"the list at byte {start} has {length} elements, too many")
        return start + 4, length

    def tables(self, slot: int) -> list[_Table]:
        """The tables of a vector."""
        start, length = self.vector(slot, 4, MAX_COUNT)
        return [_Table(self.data, self.offset_at(start + 4 * i)) for i in range(length)]

    def numbers(self, slot: int, dtype: str = "<i4", most: int = MAX_COUNT) -> NDArray[Any]:
        """The numbers of a vector."""
        start, length = self.vector(slot, np.dtype(dtype).itemsize, most)
        return np.frombuffer(self.data, dtype, length, start)

    def text(self, slot: int) -> str:
        """The first 80 characters of a string, others than printable ASCII replaced."""
        start, length = self.vector(slot, 1, len(self.data))
        text = self.data[start : start + min(length, 80)].decode("ascii", "replace")
        return "".join(c if c.isprintable() else "?" for c in text)


def _read_graph(model: _Table, path: Path) -> TfliteGraph:
    """The only graph of a model."""
    version, graphs = model.scalar(0, "I"), model.tables(2)
    if version != 3 or len(graphs) != 1:
        raise _DamagedError(f"has version {version} and {len(graphs)} graphs, not 3 and one")
    buffers, graph = model.tables(4), graphs[0]
    constants = computed = 0
    tensors = []
    for number, table in enumerate(graph.tables(0)):
        tensor = _read_tensor(table, buffers, number, MAX_CONSTANTS - constants)
        if tensor.values is None:
            computed += math.prod(tensor.shape)
        else:
            constants += tensor.values.size
        if computed > MAX_COMPUTED:
            raise _DamagedError(f"its tensors have more than {MAX_COMPUTED} numbers")
        tensors.append(tensor)
    codes = [_read_code(code) for code in model.tables(1)]
    operators = tuple(_read_operator(table, codes) for table in graph.tables(3))
    inputs, outputs = (_links(graph, slot) for slot in (1, 2))
    _check_order(tensors, operators, inputs, outputs)
    return TfliteGraph(path, bytes_digest(model.data), tuple(tensors), operators, inputs, outputs)


def _read_tensor(table: _Table, buffers: list[_Table], number: int, left: int) -> TfliteTensor:
    """A tensor, with its numbers where it is a constant; `left`: how many constants may have."""
    name = table.text(3)
    place = f"tensor {number} ({name!r})"
    shape = tuple(int(side) for side in table.numbers(0, most=6))
    if any(not 1 <= side <= MAX_SIDE for side in shape):
        raise _DamagedError(f"{place} has the shape {shape}")
    kind = table.scalar(1, "b")
    if kind not in _TYPES:
        raise _ForeignError(
            f"{place} has numbers of type {kind}; only float32, float16 and int32 can be read"
        )
    buffer = table.scalar(2, "I")
    if buffer >= len(buffers):
        raise _DamagedError(f"{place} names buffer {buffer} of {len(buffers)}")
    dtype = np.dtype(_TYPES[kind]).newbyteorder("<")
    if buffers[buffer].scalar(1, "Q") > 1:
        raise _DamagedError(f"{place} has its numbers outside the flatbuffer")
    start, length = buffers[buffer].vector(0, 1, len(table.data))
    elements = math.prod(shape)
    if not length:
        if elements > MAX_ELEMENTS:
            raise _DamagedError(f"{place} has the shape {shape}, too large")
        return TfliteTensor(name, shape, None)
    sparsity = table.table(6)
    if elements > (left if sparsity is None else min(left, MAX_SPARSE)):
        raise _DamagedError(f"{place} has the shape {shape}; that are too many constants")
    stored = np.frombuffer(table.data, dtype, length // dtype.itemsize, start)
    if length % dtype.itemsize or (sparsity is None and stored.size != elements):
        raise _DamagedError(f"{place} has the shape {shape} and {length} bytes")
    if dtype.kind == "f" and not np.isfinite(stored).all():
        raise _DamagedError(f"{place} has weights that are not finite")
    values = stored.reshape(shape) if sparsity is None else _densify(stored, shape, sparsity, place)
    values.flags.writeable = False
    return TfliteTensor(name, shape, values)


def _densify(
    stored: NDArray[Any], shape: tuple[int, ...], sparsity: _Table, place: str
) -> NDArray[Any]:
    """A sparse constant with its zeros: compressed rows (CSR) along the last axis."""
    axes = sparsity.tables(2)
    if (
        sparsity.numbers(0).tolist() != list(range(len(shape)))
        or sparsity.numbers(1).size
        or [axis.scalar(0, "b") for axis in axes] != [0] * (len(shape) - 1) + [1]
        or [axis.scalar(1, "i") for axis in axes[:-1]] != list(shape[:-1])
    ):
        raise _DamagedError(f"{place} is sparse in another way than along its last axis")
    rows, columns = math.prod(shape[:-1]), shape[-1]
    segments = _sparse_numbers(axes[-1], 2, rows + 1, place)
    indices = _sparse_numbers(axes[-1], 4, stored.size, place)
    if (segments.size, indices.size) != (rows + 1, stored.size):
        raise _DamagedError(f"{place} has {segments.size - 1} sparse rows for its shape {shape}")
    counts = np.diff(segments)
    if (
        segments[0] != 0
        or segments[-1] != stored.size
        or counts.min() < 0
        or (stored.size and (indices.min() < 0 or indices.max() >= columns))
    ):
        raise _DamagedError(f"{place} has sparse rows that do not fit its shape {shape}")
    flat = np.repeat(np.arange(rows), counts) * columns + indices
    if np.any(np.diff(flat) <= 0):
        raise _DamagedError(f"{place} has sparse rows that do not ascend")
    dense = np.zeros(rows * columns, stored.dtype)
    dense[flat] = stored
    return dense.reshape(shape)


def _sparse_numbers(axis: _Table, slot: int, most: int, place: str) -> NDArray[np.int64]:
    """One of the two vectors of a sparse axis: a union of vectors of three widths."""
    dtype = {1: "<i4", 2: "<u2", 3: "<u1"}.get(axis.scalar(slot, "B"))
    table = axis.table(slot + 1)
    if dtype is None or table is None:
        raise _DamagedError(f"{place} is sparse and lacks its indices")
    return table.numbers(0, dtype, most).astype(np.int64)


def _links(table: _Table, slot: int) -> tuple[int, ...]:
    """Numbers of the tensors that an operator or a graph reads or gives."""
    return tuple(table.numbers(slot, most=MAX_LINKS).tolist())


def _read_code(table: _Table) -> int:
    """Number of an operator; old files have it in the field of one byte."""
    return max(table.scalar(0, "b"), table.scalar(3, "i"))


def _read_operator(table: _Table, codes: list[int]) -> TfliteOperator:
    """An operator with its options."""
    index = table.scalar(0, "I")
    if index >= len(codes):
        raise _DamagedError(f"an operator names code {index} of {len(codes)}")
    if codes[index] not in _OPERATORS:
        known = ", ".join(kind for kind, _ in _OPERATORS.values())
        raise _ForeignError(f"uses operator {codes[index]}; BlazePose needs only {known}")
    kind, options_type = _OPERATORS[codes[index]]
    given, options = table.scalar(3, "B"), {}
    if options_type:
        if given not in (0, options_type):
            raise _DamagedError(f"an operator {kind} has options of type {given}")
        options = _OPTIONS[kind](table.table(4) or _Table(_EMPTY, 8))
    inputs, outputs = (_links(table, slot) for slot in (1, 2))
    return TfliteOperator(kind, options, inputs, outputs)


_EMPTY = bytes([4, 0, 4, 0, 0, 0, 0, 0, 8, 0, 0, 0])
"""A table without fields: its list at byte 0, the table at byte 8."""


def _choice(table: _Table, slot: int, names: tuple[str, ...]) -> str:
    value = table.scalar(slot, "b")
    if not 0 <= value < len(names):
        raise _DamagedError(f"an operator has option {value}; known are {', '.join(names)}")
    return names[value]


def _sides(table: _Table, rows: int, columns: int, default: int = 0) -> tuple[int, int]:
    """Two sizes of an option, rows first."""
    found = (table.scalar(rows, "i", default), table.scalar(columns, "i", default))
    if not all(1 <= side <= 64 for side in found):
        raise _DamagedError(f"an operator has a stride, dilation or window of {found}")
    return found


def _window_options(table: _Table) -> dict[str, Any]:
    return {
        "padding": _choice(table, 0, _PADDINGS),
        "stride": _sides(table, 2, 1),
    }


def _convolution_options(table: _Table) -> dict[str, Any]:
    return _window_options(table) | {
        "activation": _choice(table, 3, _ACTIVATIONS),
        "dilation": _sides(table, 5, 4, 1),
    }


def _depthwise_options(table: _Table) -> dict[str, Any]:
    return _window_options(table) | {
        "multiplier": table.scalar(3, "i"),
        "activation": _choice(table, 4, _ACTIVATIONS),
        "dilation": _sides(table, 6, 5, 1),
    }


def _pool_options(table: _Table) -> dict[str, Any]:
    return _window_options(table) | {
        "window": _sides(table, 4, 3),
        "activation": _choice(table, 5, _ACTIVATIONS),
    }


_OPTIONS: dict[str, Callable[[_Table], dict[str, Any]]] = {
    "add": lambda table: {"activation": _choice(table, 0, _ACTIVATIONS)},
    "concatenation": lambda table: {
        "axis": table.scalar(0, "i"),
        "activation": _choice(table, 1, _ACTIVATIONS),
    },
    "conv_2d": _convolution_options,
    "depthwise_conv_2d": _depthwise_options,
    "max_pool_2d": _pool_options,
    "depth_to_space": lambda table: {"block": _sides(table, 0, 0)[0]},
    "resize_bilinear": lambda table: {
        "align_corners": bool(table.scalar(2, "B")),
        "half_pixel": bool(table.scalar(3, "B")),
    },
}


def _check_order(
    tensors: list[TfliteTensor],
    operators: tuple[TfliteOperator, ...],
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
) -> None:
    """Each operator reads only what is there, and each tensor is written once."""
    there = {number for number, tensor in enumerate(tensors) if tensor.values is not None}
    for operator in (TfliteOperator("the inputs", {}, (), inputs), *operators):
        lacking = [n for n in operator.inputs if n not in there and n != -1]
        written = [n for n in operator.outputs if not 0 <= n < len(tensors) or n in there]
        if lacking or written or len(set(operator.outputs)) != len(operator.outputs):
            raise _DamagedError(
                f"{operator.kind}: tensor {(lacking + written + [-1])[0]} is misused"
            )
        there |= set(operator.outputs)
    if not inputs or not outputs or not there >= set(outputs):
        raise _DamagedError("its inputs or outputs are not tensors that it computes")
