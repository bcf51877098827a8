"""Pickles of torch, scanned operation by operation before torch's own reader sees them."""

from __future__ import annotations

import io
import pickletools
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

MAX_PICKLE_BYTES = 16 * 2**20
"""Largest size of the pickles of a file; six thousand tensors take 1 MB."""

MAX_OPERATIONS = 2_000_000
"""Largest number of operations in the pickles of a file; a tensor takes about 45."""

MAX_CALL_BYTES = 2**29
"""Largest memory that the results of calls may take; a short pickle can copy a list many times."""

LEGACY_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
"""First number in a file of the format that torch wrote before its zip format."""

BYTES_PER_NUMBER = {
    "Double": 8,
    "Float": 4,
    "Half": 2,
    "BFloat16": 2,
    "ComplexDouble": 16,
    "ComplexFloat": 8,
    "Long": 8,
    "Int": 4,
    "Short": 2,
    "Char": 1,
    "Byte": 1,
    "Bool": 1,
}
"""Kind of a storage of torch (`FloatStorage` without `Storage`) -> bytes of a number in it."""

_VALUES = {
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING"),
}
_CONTAINERS = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class ForeignNameError(ValueError):
    """A pickle names a function or class that no file of weights needs; the text is the name."""


class _GlobalName(str):
    """Stand-in for a function or class: its name."""


class _Storage(NamedTuple):
    """Stand-in for a storage of torch.

    Args:
        size: Size in bytes.
        number_size: Size of a number in bytes.
    """

    size: int
    number_size: int


class _PickleScanner:
    """Executes pickles with stand-ins in place of objects; it imports and calls nothing.

    The limits hold for all pickles of a file together.

    Args:
        is_allowed: Function that is true for names that a pickle may have, such as
            `collections.OrderedDict`.
    """

    def __init__(self, is_allowed: Callable[[str], object]) -> None:
        self.is_allowed = is_allowed
        self.operations_left = MAX_OPERATIONS
        self.call_bytes_left = MAX_CALL_BYTES
        self.storages: dict[str, int] = {}
        """Key -> size in bytes, of each storage that the pickles refer to."""

    def scan(self, stream: IO[bytes]) -> Any:
        """Scan one pickle and return the stand-in for its content.

        Raises:
            ForeignNameError: If it has a name that is not allowed.
            ValueError: If it is damaged or would take too much memory.
        """
        try:
            return self._scan(stream)
        except (IndexError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ValueError("its pickle is damaged") from error

    def _scan(self, stream: IO[bytes]) -> Any:
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[Any, Any] = {}
        argument: Any
        for operation, argument, _ in pickletools.genops(stream):  # the most frequent first
            name = operation.name
            self.operations_left -= 1
            if name in _VALUES:
                stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "MARK":
                marks.append(len(stack))
            elif name == "TUPLE":
                start = marks.pop()
                stack[start:] = [tuple(stack[start:])]
            elif name in ("REDUCE", "NEWOBJ"):
                arguments = stack.pop()
                stack[-1] = self._check_call(stack[-1], arguments)
            elif name in _TUPLES:
                start = len(stack) - _TUPLES[name]
                stack[start:] = [tuple(stack[start:])]
            elif name == "BINPERSID":
                stack[-1] = self._check_storage(stack[-1])
            elif name in _CONTAINERS:
                stack.append([])
            elif name in ("SETITEMS", "APPENDS"):
                start = marks.pop()
                stack[start - 1].extend(stack[start:])
                del stack[start:]
            elif name in ("SETITEM", "APPEND"):
                start = len(stack) - (2 if name == "SETITEM" else 1)
                stack[start - 1].extend(stack[start:])
                del stack[start:]
            elif name == "GLOBAL":
                stack.append(self._global_name(argument.replace(" ", ".")))
            elif name == "STACK_GLOBAL":
                stack[-2:] = [self._global_name(f"{stack[-2]}.{stack[-1]}")]
            elif name == "BUILD":
                self._count_memory(stack.pop())
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name not in ("PROTO", "FRAME", "STOP"):
                raise ValueError(f"its pickle has the operation {name}, which torch never writes")
            if self.operations_left < 0:
                raise ValueError(f"its pickle has more than {MAX_OPERATIONS:,} operations")
        return stack[-1]

    def _global_name(self, name: str) -> _GlobalName:
        if not self.is_allowed(name):
            raise ForeignNameError(name)
        return _GlobalName(name)

    def _count_memory(self, *arguments: Any) -> None:
        """Count the memory that the result of a call may take, by generous factors."""
        self.call_bytes_left -= 1024
        for value in arguments:
            if isinstance(value, str):
                self.call_bytes_left -= len(value)
            elif isinstance(value, tuple | list):
                self.call_bytes_left -= 256 * len(value)
        if self.call_bytes_left < 0:
            raise ValueError("its pickle would take more memory than it should")

    def _check_call(self, function: Any, arguments: Any) -> list[Any]:
        """Check a call; its result is an empty list, whatever the function."""
        if not isinstance(function, _GlobalName) or not isinstance(arguments, tuple):
            raise ValueError("its pickle calls what is no function")
        self._count_memory(*arguments)
        if function == "_codecs.encode" and arguments[1:] != ("latin1",):
            raise ForeignNameError(f"{function} {arguments[1:]}")
        if function.startswith("torch._utils._rebuild_tensor"):
            _check_tensor(*arguments[:4])
        return []

    def _check_storage(self, reference: Any) -> _Storage:
        """Check a reference to a storage: its type, key, device, count and perhaps a part of it."""
        word, kind, key, _, count, *view = reference
        if (
            word != "storage"
            or not isinstance(kind, _GlobalName)
            or type(count) is not int
            or count < 0
        ):
            raise ValueError("its pickle refers to what is no storage")
        number_size = BYTES_PER_NUMBER[kind.removeprefix("torch.").removesuffix("Storage")]
        size = count * number_size
        if self.storages.setdefault(str(key), size) != size:
            raise ValueError(f"storage {key} has two sizes")
        if view and view[0] is not None:
            _, offset, part = view[0]
            if not 0 <= offset <= offset + part <= count:
                raise ValueError(f"a part of storage {key} reaches beyond it")
            size = part * number_size
        return _Storage(size, number_size)


def _check_tensor(storage: _Storage, offset: Any, sizes: Any, strides: Any) -> None:
    """Raise if a tensor reaches beyond its storage; offset and strides count numbers, not bytes."""
    last = offset + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True))
    needed = (last + 1) * storage.number_size
    negative = min(offset, 0, *sizes, *strides) < 0
    if 0 not in sizes and (negative or not 0 < needed <= storage.size):
        raise ValueError("a tensor reaches beyond its storage")


def scan_pickle(path: Path, is_allowed: Callable[[str], object]) -> None:
    """Raise if a file of torch holds anything but tensors and plain values.

    torch's safe reader does not run code either, but it makes a `bytearray` of any size that a file
    asks for, and trusts every size in it. So this scan comes first. Its own memory is limited by
    `MAX_PICKLE_BYTES`, `MAX_OPERATIONS` and `MAX_CALL_BYTES`.

    Args:
        path: Path of a file that `torch.save` may have written, in either of its formats.
        is_allowed: Function that is true for names that a pickle may have, such as
            `collections.OrderedDict`.

    Raises:
        ForeignNameError: If it has a name that is not allowed.
        ValueError: If it is no such file, is damaged, or would take too much memory.
    """
    scanner = _PickleScanner(is_allowed)
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":  # the test by which torch chooses the format
            _scan_zip(path, scanner)
            return
        if tarfile.is_tarfile(path):
            raise ValueError("it is a tar archive; torch has not written those since 2016")
        file.seek(0)
        stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        if scanner.scan(stream) != LEGACY_MAGIC_NUMBER:
            raise ValueError("it does not begin with torch's magic number")
        for _ in ("protocol version", "system facts", "content", "keys of storages"):
            scanner.scan(stream)
        if sum(scanner.storages.values()) > path.stat().st_size - stream.tell():
            raise ValueError("it claims more numbers than it holds")


def _scan_zip(path: Path, scanner: _PickleScanner) -> None:
    """Scan a file in torch's zip format."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            names = [name for name in sizes if re.fullmatch(r"[^/]*/data\.pkl", name)]
            if len(names) != 1 or len(sizes) != len(archive.infolist()):
                raise ValueError("it is no file of torch")
            name = names[0]
            if sizes[name] > MAX_PICKLE_BYTES:
                raise ValueError(f"its pickle has more than {MAX_PICKLE_BYTES:,} bytes")
            scanner.scan(io.BytesIO(archive.read(name)))
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(str(error)) from error
    folder = name.removesuffix(".pkl")
    for key, size in scanner.storages.items():
        if size > sizes.get(f"{folder}/{key}", 0):
            raise ValueError(f"storage {key} claims more numbers than the file holds")
