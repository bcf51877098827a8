"""ONNX files: whole in one file, free of references to others, and bounded, before they are run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from pipeline.files.digests import bytes_digest
from pipeline.files.reading import read_bytes

MAX_BYTES = 2**31 - 1
"""Largest file: a protobuf message cannot be larger."""

MAX_FIELDS = 2_000_000
"""Largest number of protobuf fields that are looked at."""

MAX_DEPTH = 16
"""Deepest nesting of graphs, nodes and tensors: graphs inside of graphs are four levels each."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_PARTS = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        **{5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
        **{22: "sparse tensor", 23: "sparse tensor"},
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
"""Message -> field -> message: where tensors can be. Source: onnx.proto of ONNX 1.23."""

_OPERATOR = 4
"""Field of a node with the name of its operator."""

_REJECTED = {
    b"EPContext": "is compiled for one device; give the ONNX file itself",
    b"Loop": "has a loop, which may never end; export it without one",
}
"""Operator -> why a file with it is rejected."""

_DIMS, _EXTERNAL_DATA, _DATA_LOCATION = 1, 13, 14
"""Fields of a tensor: its shape, and where its numbers are if they are outside of the file."""


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that needs no other file.

    Args:
        path: The file, for error messages.
        digest: SHA-256 of the file.
        data: Content of the file.
    """

    path: Path
    digest: str
    data: bytes


class _DamagedError(Exception):
    """What is wrong with a file; becomes the middle of the error line."""


def read_onnx(path: Path) -> OnnxFile:
    """Read an ONNX file for a runtime that takes bytes.

    The structure of the file is followed as far as tensors can be, so that no tensor refers to
    another file or to memory, and none has a shape that its numbers cannot fill.

    Args:
        path: The file.

    Raises:
        DataError: If it is missing, no ONNX file, damaged, too large, or refers to other files.
    """
    data = read_bytes(path, MAX_BYTES)
    if data[4:8] == b"ORTM":
        raise DataError(f"{path}: is in the format of one onnxruntime; give the ONNX file")
    try:
        _Walk(data).check()
    except _DamagedError as error:
        raise DataError(f"{path}: {error}") from None
    return OnnxFile(path, bytes_digest(data), data)


class _Walk:
    """A walk over all messages of a model that can hold tensors."""

    def __init__(self, data: bytes) -> None:
        self.data, self.left = data, MAX_FIELDS

    def check(self) -> None:
        """Check everything.

        Raises:
            _DamagedError: If something is wrong.
        """
        numbers = [number for number, _, _ in self.fields(0, len(self.data))]
        if 7 not in numbers:
            raise _DamagedError("is no ONNX file, or damaged; fetch it again")
        self.message("model", 0, len(self.data), 0)

    def message(self, kind: str, start: int, end: int, depth: int) -> None:
        """Check a message and all that it holds."""
        if depth > MAX_DEPTH:
            raise _DamagedError("has graphs nested too deep; no network of joints has")
        if kind == "tensor":
            self.tensor(start, end)
            return
        parts = _PARTS[kind]
        for number, first, last in self.fields(start, end):
            if number in parts and first >= 0:
                self.message(parts[number], first, last, depth + 1)
            elif (kind, number) == ("node", _OPERATOR) and self.data[first:last] in _REJECTED:
                raise _DamagedError(_REJECTED[self.data[first:last]])

    def tensor(self, start: int, end: int) -> None:
        """Check the place and the shape of a tensor."""
        elements = 1
        for number, first, last in self.fields(start, end):
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and last):
                raise _DamagedError(
                    "has its weights in another file; save it as one file "
                    "(onnx.save_model with save_as_external_data=False)"
                )
            if number == _DIMS:
                sides = [last] if first < 0 else self.varints(first, last)
                elements *= math.prod(sides)
        if elements > 8 * (end - start) + 8:  # even bits could not be so many
            raise _DamagedError(
                f"is damaged: a tensor of {end - start} bytes has {elements} numbers"
            )

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Fields of a message: number, and first and last byte of it, or -1 and its value."""
        at = start
        while at < end:
            self.left -= 1
            if self.left < 0:
                raise _DamagedError(f"has more than {MAX_FIELDS} fields; save weights as raw data")
            tag, at = self.varint(at, end)
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                value, at = self.varint(at, end)
                yield number, -1, value
                continue
            if wire == _BYTES:
                length, at = self.varint(at, end)
            elif wire in (_FIXED32, _FIXED64):
                length = 4 if wire == _FIXED32 else 8
            else:
                length = end  # groups are not used
            if not 0 < number < 2**29 or at + length > end:
                raise _DamagedError(f"is no ONNX file, or damaged at byte {at}; fetch it again")
            if wire == _BYTES:
                yield number, at, at + length
            at += length

    def varints(self, start: int, end: int) -> Iterator[int]:
        """Packed numbers."""
        at = start
        while at < end:
            self.left -= 1
            if self.left < 0:
                raise _DamagedError(f"has more than {MAX_FIELDS} fields")
            value, at = self.varint(at, end)
            yield value

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """The number at a place, and the place after it."""
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte = self.data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
        raise _DamagedError(f"is no ONNX file, or damaged at byte {at}; fetch it again")
