"""What a pickle of torch may say: read operation by operation before any of it is obeyed."""

from __future__ import annotations

import io
import pickletools
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

LENGTH = 16 * 2**20
"""Bytes that the pickles of a file may have; six thousand tensors take one million."""

OPERATIONS = 2_000_000
"""Operations that they may have; a tensor takes about 45."""

ROOM = 2**29
"""Bytes that calls may make of what is there already: a short pickle can copy a list many times."""

MAGIC = 0x1950A86A20F9469CFC6C
"""First number in a file of the format that torch wrote before it wrote zips."""

ITEMS = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "ComplexDouble": 16, "ComplexFloat": 8}
ITEMS |= {"Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1}
"""Bytes of a number in a storage of torch, by how its name begins."""

_VALUES = {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_VALUES |= {"BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING"}
_CONTAINERS = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class ForeignNameError(ValueError):
    """A pickle names what no file of weights needs."""


class _Name(str):
    """Stands for what a name means."""


class _Storage(NamedTuple):
    """Stands for a storage.

    Args:
        size: Bytes.
        item: Bytes of a number.
    """

    size: int
    item: int


class _Machine:
    """Goes through pickles with stand-ins in place of objects; calls nothing.

    Args:
        allowed: Says whether a pickle may have a name, such as `collections.OrderedDict`.
    """

    def __init__(self, allowed: Callable[[str], object]) -> None:
        self.allowed = allowed
        self.left, self.room = OPERATIONS, ROOM
        self.storages: dict[str, int] = {}

    def read(self, stream: IO[bytes]) -> Any:
        """The stand-in for what one pickle makes.

        Raises:
            ForeignName: If it names what it may not.
            ValueError: If it is damaged or would take more memory than it should.
        """
        try:
            return self._read(stream)
        except (IndexError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ValueError("its pickle is damaged") from error

    def _read(self, stream: IO[bytes]) -> Any:
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[Any, Any] = {}
        argument: Any
        for operation, argument, _ in pickletools.genops(stream):  # the commonest come first
            name = operation.name
            self.left -= 1
            if name in _VALUES:
                stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "MARK":
                marks.append(len(stack))
            elif name == "TUPLE":
                at = marks.pop()
                stack[at:] = [tuple(stack[at:])]
            elif name == "REDUCE" or name == "NEWOBJ":
                arguments = stack.pop()
                stack[-1] = self._call(stack[-1], arguments)
            elif name in _TUPLES:
                at = len(stack) - _TUPLES[name]
                stack[at:] = [tuple(stack[at:])]
            elif name == "BINPERSID":
                stack[-1] = self._storage(stack[-1])
            elif name in _CONTAINERS:
                stack.append([])
            elif name in ("SETITEMS", "APPENDS"):
                at = marks.pop()
                stack[at - 1].extend(stack[at:])
                del stack[at:]
            elif name in ("SETITEM", "APPEND"):
                at = len(stack) - (2 if name == "SETITEM" else 1)
                stack[at - 1].extend(stack[at:])
                del stack[at:]
            elif name == "GLOBAL":
                stack.append(self._named(argument.replace(" ", ".")))
            elif name == "STACK_GLOBAL":
                stack[-2:] = [self._named(f"{stack[-2]}.{stack[-1]}")]
            elif name == "BUILD":
                self._take(stack.pop())
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name not in ("PROTO", "FRAME", "STOP"):
                raise ValueError(f"its pickle has the operation {name}, which torch never writes")
            if self.left < 0:
                raise ValueError(f"its pickle has more than {OPERATIONS:,} operations")
        return stack[-1]

    def _named(self, name: str) -> _Name:
        if not self.allowed(name):
            raise ForeignNameError(name)
        return _Name(name)

    def _take(self, *given: Any) -> None:
        """Count what a call may make of what it is given; the factors are generous."""
        self.room -= 1024
        for value in given:
            self.room -= len(value) * (1 if isinstance(value, str) else 256) if _sized(value) else 0
        if self.room < 0:
            raise ValueError("its pickle would take more memory than it should")

    def _call(self, function: Any, given: Any) -> list[Any]:
        if not isinstance(function, _Name) or not isinstance(given, tuple):
            raise ValueError("its pickle calls what is no function")
        self._take(*given)
        if function == "_codecs.encode" and given[1:] != ("latin1",):
            raise ForeignNameError(f"{function} {given[1:]}")
        if function.startswith("torch._utils._rebuild_tensor"):
            storage, offset, sizes, strides = given[:4]
            last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
            inside = min(offset, 0, *sizes, *strides) == 0 and (last + 1) * storage.item
            if 0 not in sizes and not 0 < inside <= storage.size:
                raise ValueError("a tensor reaches beyond its storage")
        return []

    def _storage(self, given: Any) -> _Storage:
        """The stand-in for a storage by its type, key, place, count and perhaps part."""
        what, kind, key, _, count, *view = given
        if what != "storage" or not isinstance(kind, _Name) or type(count) is not int or count < 0:
            raise ValueError("its pickle refers to what is no storage")
        item = ITEMS[kind.removeprefix("torch.").removesuffix("Storage")]
        if self.storages.setdefault(str(key), count * item) != count * item:
            raise ValueError(f"storage {key} has two sizes")
        if view and view[0] is not None:
            _, offset, part = view[0]
            if not 0 <= offset <= offset + part <= count:
                raise ValueError(f"a part of storage {key} reaches beyond it")
            count = part
        return _Storage(count * item, item)


def _sized(value: Any) -> bool:
    return isinstance(value, str | tuple | list)


def scan_pickle(path: Path, allowed: Callable[[str], object]) -> None:
    """Raise if a file of torch says anything but tensors and plain values.

    torch's safe reader runs nothing either, but makes a `bytearray` of any size it is asked for,
    and believes every size it is told. This goes first and needs no more memory than `LENGTH`,
    `OPERATIONS` and `ROOM` leave it.

    Args:
        path: A file that `torch.save` may have written, in either of its formats.
        allowed: Says whether a pickle may have a name, such as `collections.OrderedDict`.

    Raises:
        ForeignName: If it names what it may not.
        ValueError: If it is no such file, is damaged, or would take more memory than it should.
    """
    machine = _Machine(allowed)
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":  # so torch decides
            _scan_zip(path, machine)
            return
        if tarfile.is_tarfile(path):
            raise ValueError("it is a tar archive; torch has not written those since 2016")
        file.seek(0)
        stream = io.BytesIO(file.read(LENGTH))
        if machine.read(stream) != MAGIC:
            raise ValueError("it does not begin as torch begins a file")
        for _ in ("format", "machine", "content", "keys"):
            machine.read(stream)
        if sum(machine.storages.values()) > path.stat().st_size - stream.tell():
            raise ValueError("it claims more numbers than it holds")


def _scan_zip(path: Path, machine: _Machine) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            names = [name for name in sizes if re.fullmatch(r"[^/]*/data\.pkl", name)]
            if len(names) != 1 or len(sizes) != len(archive.infolist()):
                raise ValueError("it is no file of torch")
            name = names[0]
            if sizes[name] > LENGTH:
                raise ValueError(f"its pickle has more than {LENGTH:,} bytes")
            machine.read(io.BytesIO(archive.read(name)))
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(str(error)) from error
    folder = name.removesuffix(".pkl")
    for key, size in machine.storages.items():
        if size > sizes.get(f"{folder}/{key}", 0):
            raise ValueError(f"storage {key} claims more numbers than the file holds")
