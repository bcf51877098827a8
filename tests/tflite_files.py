"""TensorFlow Lite files written by hand: a small writer of flatbuffers, and graphs for tests."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

CODES = {
    "add": (0, 11),
    "concatenation": (2, 10),
    "conv_2d": (3, 1),
    "depthwise_conv_2d": (4, 2),
    "depth_to_space": (5, 94),
    "dequantize": (6, 0),
    "logistic": (14, 0),
    "max_pool_2d": (17, 5),
    "reshape": (22, 17),
    "resize_bilinear": (23, 15),
    "pad": (34, 0),
    "densify": (124, 0),
}
"""Operator -> its code, and the type of its options."""

TYPES = {"float32": 0, "float16": 1, "int32": 2}


class Table:
    """Fields by slot: (format, number), another table, or a vector."""

    def __init__(self, fields: dict[int, Any]) -> None:
        self.fields = {slot: value for slot, value in fields.items() if value is not None}


class Vector:
    """A vector of numbers (an array), or of tables (a list)."""

    def __init__(self, items: Any) -> None:
        self.items = items if isinstance(items, list) else np.asarray(items)


def numbers(values: Any, dtype: str = "<i4") -> Vector:
    return Vector(np.array(values, dtype))


def write(root: Table) -> bytes:
    """A flatbuffer with the identifier of TensorFlow Lite; parents before children."""
    out = bytearray(b"\0\0\0\0TFL3")
    waiting: list[tuple[int, Any]] = [(0, root)]
    while waiting:
        at, node = waiting.pop(0)
        place = (
            _table(out, node, waiting) if isinstance(node, Table) else _vector(out, node, waiting)
        )
        struct.pack_into("<I", out, at, place - at)
    return bytes(out + b"\0" * 8)


def _table(out: bytearray, node: Table, waiting: list) -> int:
    slots = max(node.fields, default=-1) + 1
    out += b"\0" * (-len(out) % 8)
    listed = len(out)
    out += b"\0" * (4 + 2 * slots)
    out += b"\0" * (-len(out) % 8)
    start = len(out)
    out += struct.pack("<i", start - listed)
    for slot, value in node.fields.items():
        form = value[0] if isinstance(value, tuple) else "I"
        out += b"\0" * (-len(out) % struct.calcsize(form))
        struct.pack_into("<H", out, listed + 4 + 2 * slot, len(out) - start)
        if not isinstance(value, tuple):
            waiting.append((len(out), value))
        out += struct.pack("<" + form, value[1] if isinstance(value, tuple) else 0)
    struct.pack_into("<HH", out, listed, 4 + 2 * slots, len(out) - start)
    return start


def _vector(out: bytearray, node: Vector, waiting: list) -> int:
    out += b"\0" * (-len(out) % 4)
    start = len(out)
    out += struct.pack("<I", len(node.items))
    for item in node.items if isinstance(node.items, list) else ():
        waiting.append((len(out), item))
        out += bytes(4)
    if not isinstance(node.items, list):
        out += node.items.tobytes()
    return start


class Graph:
    """A graph that grows tensor by tensor and operator by operator, then becomes a file."""

    def __init__(self, *shape: int) -> None:
        self.tensors: list[Table] = []
        self.buffers = [Table({})]
        self.operators: list[Table] = []
        self.codes: list[int] = []
        self.input = self.computed(shape)

    def computed(self, shape: Any, kind: int = 0, name: str = "x") -> int:
        text = np.frombuffer(name.encode(), np.uint8)
        self.tensors.append(
            Table({0: numbers(shape), 1: ("b", kind), 2: ("I", 0), 3: Vector(text)})
        )
        return len(self.tensors) - 1

    def constant(self, values: Any, dtype: str = "float32", shape: Any = None) -> int:
        values = np.array(values, dtype)
        self.buffers.append(Table({0: Vector(np.frombuffer(values.tobytes(), np.uint8))}))
        self.tensors.append(
            Table(
                {
                    0: numbers(values.shape if shape is None else shape),
                    1: ("b", TYPES[dtype]),
                    2: ("I", len(self.buffers) - 1),
                }
            )
        )
        return len(self.tensors) - 1

    def sparse(self, values: Any, shape: Any, segments: Any, indices: Any) -> int:
        """A constant in compressed rows along its last axis."""
        number = self.constant(values, "float16", shape)
        axes = [Table({0: ("b", 0), 1: ("i", side)}) for side in shape[:-1]]
        rows = {0: ("b", 1), 2: ("B", 3), 3: Table({0: numbers(segments, "u1")})}
        axes.append(Table(rows | {4: ("B", 2), 5: Table({0: numbers(indices, "<u2")})}))
        self.tensors[number].fields[6] = Table({0: numbers(range(len(shape))), 2: Vector(axes)})
        return number

    def add(self, kind: str | int, inputs: Any, output: Any, options: dict | None = None) -> int:
        """Append an operator; `output` is the shape of its output. Returns the output."""
        code, given = CODES[kind] if isinstance(kind, str) else (kind, 0)
        self.codes.append(code)
        result = self.computed(output)
        fields = {0: ("I", len(self.codes) - 1), 1: numbers(inputs), 2: numbers([result])}
        if options is not None:
            fields |= {3: ("B", given), 4: Table(options)}
        self.operators.append(Table(fields))
        return result

    def bytes(self, *outputs: int, version: int = 3) -> bytes:
        graph = Table(
            {
                0: Vector(self.tensors),
                1: numbers([self.input]),
                2: numbers(outputs),
                3: Vector(self.operators),
            }
        )
        codes = [Table({0: ("b", min(code, 127)), 3: ("i", code)}) for code in self.codes]
        return write(
            Table(
                {
                    0: ("I", version),
                    1: Vector(codes),
                    2: Vector([graph]),
                    4: Vector(self.buffers),
                }
            )
        )

    def save(self, path: Path, *outputs: int) -> Path:
        path.write_bytes(self.bytes(*outputs))
        return path


def window(padding: int = 0, stride: tuple[int, int] = (1, 1), activation: int = 0) -> dict:
    """Options of a convolution: stride rows, columns; activation 1 relu, 3 relu6."""
    rows, columns = stride
    return {0: ("b", padding), 1: ("i", columns), 2: ("i", rows), 3: ("b", activation)}
