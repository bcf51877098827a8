"""Files of torch read by one parser of their archive and one of their pickles, without torch's."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from pipeline.files.pickle_machine import (
    ForeignNameError,
    Function,
    PickleError,
    PickleMachine,
    StandIn,
    expanded_size,
)
from pipeline.files.zip_members import (
    Member,
    check_member,
    list_members,
    read_member,
    read_member_into,
)

MAX_PICKLE_BYTES = 16 * 2**20
"""Largest size of the pickles of a file; six thousand tensors take 1 MB."""

MAX_OPERATIONS = 2_000_000
"""Largest number of operations in the pickles of a file; a tensor takes about 45."""

MAX_CALL_BYTES = 2**27
"""Largest memory that the arguments of calls may take; a pickle can copy a list many times."""

MAX_EXPANDED_BYTES = 2**26
"""Largest size of the content beside its tensors, with everything shared repeated."""

LEGACY_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
"""First number in a file of the format that torch wrote before its zip format."""

NUMBER_TYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
"""Kind of a storage of torch (`FloatStorage` without `Storage`) -> type of its numbers."""


class _Ignored(StandIn):
    """Stand-in for a value that is not needed, such as a random state of NumPy."""

    def set_state(self, state: Any) -> None:
        return


class _Storage(NamedTuple):
    """Numbers of a file, or a part of them, as a flat tensor."""

    numbers: Tensor


def read_torch(path: Path, is_allowed: Callable[[str], object]) -> Any:
    """The content of a file of torch, with its tensors on the CPU.

    torch's own reader finds members without regard to case, trusts every size in the pickle, and
    reads the file a second time. So nothing of it is used: what is checked here is what is
    returned. Each byte is read once, and each member is checked by its CRC.

    Args:
        path: Path of a file that `torch.save` may have written, in either of its formats.
        is_allowed: Function that is true for names that a pickle may have, such as
            `collections.OrderedDict`. Names that are allowed and not known give empty values.

    Raises:
        ForeignNameError: If it has a name that is not allowed.
        ValueError: If it is no such file, is damaged, or would take too much memory or time.
        OSError: If it cannot be read.
        MemoryError: If it does not fit into memory.
    """
    with path.open("rb") as file:
        legacy = file.read(4) != b"PK\x03\x04"
        reader = (_LegacyFile if legacy else _ZipFile)(file, is_allowed)
        try:
            content = reader.read()
        finally:
            reader.storages.clear()  # the reader is in a circle of references, and is freed late
    if expanded_size(content, _own_size) > MAX_EXPANDED_BYTES:
        raise PickleError("holds too many references to the same values")
    return content


def _own_size(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, bytearray)) else 0


class _TorchFile:
    """What both formats share: names, storages and tensors.

    Args:
        file: The open file.
        is_allowed: See `read_torch`.
    """

    def __init__(self, file: BinaryIO, is_allowed: Callable[[str], object]) -> None:
        self.file = file
        self.is_allowed = is_allowed
        self.storages: dict[str, Tensor] = {}
        self.machine = PickleMachine(
            self._find,
            operations=MAX_OPERATIONS,
            call_bytes=MAX_CALL_BYTES,
            persistent=self._refer,
        )
        self.functions: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": lambda *pairs: OrderedDict(self._items(*pairs)),
            "collections.Counter": lambda *counts: Counter(dict(self._items(*counts))),
            "builtins.set": lambda *values: self.machine.make_set(*values),
            "__builtin__.set": lambda *values: self.machine.make_set(*values),
            "torch.Size": torch.Size,
            "torch.device": torch.device,
            "torch._utils._rebuild_tensor": _build_tensor,
            "torch._utils._rebuild_tensor_v2": _build_tensor,
            "torch._utils._rebuild_parameter": _build_parameter,
            "_codecs.encode": _encode,
        }

    def load(self, key: str, size: int) -> Tensor:
        """The bytes of a storage of the file, (size,)."""
        raise NotImplementedError

    def _items(self, values: Any = ()) -> list[tuple[Any, Any]]:
        """Pairs of keys and values, from a dict or from pairs."""
        pairs = list(values.items() if isinstance(values, dict) else values)
        found: dict[Any, Any] = {}
        self.machine.set_items(found, [part for key, value in pairs for part in (key, value)])
        return list(found.items())

    def _find(self, name: str) -> Any:
        if not self.is_allowed(name):
            raise ForeignNameError(name)
        short = name.removeprefix("torch.")
        if short.endswith("Storage") and short != name:
            return NUMBER_TYPES[short.removesuffix("Storage")]
        if isinstance(kind := getattr(torch, short, None), torch.dtype):
            return kind
        return Function(name, self.functions.get(name, lambda *_: _Ignored()))

    def _refer(self, reference: Any) -> _Storage:
        """A storage, from its type, key, device, count and perhaps a part of it."""
        word, kind, key, _, count, *view = reference
        whole = word == "storage" and isinstance(kind, torch.dtype) and isinstance(key, str | int)
        if not whole or type(count) is not int or not 0 <= count < 2**48:
            raise PickleError("its pickle refers to what is no storage")
        key, size = str(key), count * kind.itemsize
        if key not in self.storages:
            self.storages[key] = self.load(key, size).view(kind)
        numbers = self.storages[key]
        if numbers.dtype != kind or len(numbers) != count:
            raise PickleError(f"storage {key[:40]} has two sizes or types")
        if view and view[0] is not None:
            _, offset, part = view[0]
            if not 0 <= offset <= offset + part <= count:
                raise PickleError(f"a part of storage {key[:40]} reaches beyond it")
            numbers = numbers[offset : offset + part]
        return _Storage(numbers)


def _build_tensor(
    storage: Any, offset: Any, sizes: Any, strides: Any, requires_grad: Any = False, *_: Any
) -> Tensor:
    """A tensor on the numbers of a storage; offset and strides count numbers, not bytes."""
    last = offset + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True))
    negative = min(offset, 0, *sizes, *strides) < 0
    if not isinstance(storage, _Storage) or (
        0 not in sizes and (negative or last >= len(storage.numbers))
    ):
        raise PickleError("a tensor reaches beyond its storage")
    start = storage.numbers.storage_offset()
    tensor = storage.numbers.as_strided(sizes, strides, start + offset)
    return tensor.requires_grad_() if requires_grad is True else tensor


def _build_parameter(tensor: Any, requires_grad: Any = True, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise PickleError("a parameter is no tensor")
    return torch.nn.Parameter(tensor.detach(), requires_grad is True)


def _reserve(size: int) -> Tensor:
    """Memory for some bytes."""
    try:
        return torch.empty(size, dtype=torch.uint8)
    except RuntimeError as error:  # torch has no MemoryError
        raise MemoryError from error


def _encode(text: Any, coding: Any = None) -> bytes:
    """Stand-in for _codecs.encode, for bytes in pickles of protocol 2."""
    if coding not in ("latin1", "latin-1"):
        raise ForeignNameError(f"_codecs.encode {coding!r:.40}")
    return str(text).encode("latin-1")


class _ZipFile(_TorchFile):
    """A file in torch's zip format."""

    def read(self) -> Any:
        """The content."""
        members = list_members(self.file)
        if any(member.deflated for member in members):
            raise PickleError("holds packed members, which torch never writes")
        self.members = {member.name: member for member in members}
        if len({name.casefold() for name in self.members}) != len(members):
            # torch looks members up without regard to case
            raise PickleError("has two members whose names are equal but for case")
        names = [name for name in self.members if re.fullmatch(r"[^/]*/data\.pkl", name)]
        if len(names) != 1:
            raise PickleError("it is no file of torch")
        self.folder = names[0].removesuffix("/data.pkl")
        if self.members[names[0]].size > MAX_PICKLE_BYTES:
            raise PickleError(f"its pickle has more than {MAX_PICKLE_BYTES:,} bytes")
        order = self.members.get(f"{self.folder}/byteorder")
        if order and read_member(self.file, order) != b"little":
            raise PickleError("it was written on a machine with another byte order")
        content = self.machine.run(read_member(self.file, self.members.pop(names[0])))
        for member in self.members.values():
            check_member(self.file, member)
        return content

    def load(self, key: str, size: int) -> Tensor:
        member: Member | None = self.members.pop(f"{self.folder}/data/{key}", None)
        if member is None or size > member.size:
            raise PickleError(f"storage {key[:40]} claims more numbers than the file holds")
        if size < member.size:
            raise PickleError(f"storage {key[:40]} claims fewer numbers than the file holds")
        data = _reserve(size)
        read_member_into(self.file, member, data.numpy().data)
        return data


class _LegacyFile(_TorchFile):
    """A file in the format that torch wrote before; it has no check of its bytes."""

    def read(self) -> Any:
        """The content; its storages are filled after their pickle was read."""
        self.left = self.file.seek(0, 2)
        self.file.seek(257)
        if self.file.read(5) == b"ustar":
            raise PickleError("it is a tar archive; torch has not written those since 2016")
        self.file.seek(0)
        run = self.machine.run
        pickles = _Limited(self.file, MAX_PICKLE_BYTES)
        if run(pickles) != LEGACY_MAGIC_NUMBER:
            raise PickleError("it does not begin with torch's magic number")
        _, facts, content, keys = (run(pickles) for _ in range(4))
        if not isinstance(facts, dict) or facts.get("little_endian") is not True:
            raise PickleError("it was written on a machine with another byte order")
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(self.storages):
            raise PickleError("it lists other storages than it uses")
        for key in map(str, keys):
            numbers = self.storages[key]
            if int.from_bytes(self.file.read(8), "little") != len(numbers):
                raise PickleError(f"storage {key[:40]} has two sizes")
            data = numbers.view(torch.uint8).numpy().data
            if self.file.readinto(data) != len(data):  # type: ignore[attr-defined]
                raise PickleError("it claims more numbers than it holds")
        if self.file.read(1):
            raise PickleError("it has bytes after its end")
        return content

    def load(self, key: str, size: int) -> Tensor:
        self.left -= size
        if self.left < 0:
            raise PickleError("it claims more numbers than it holds")
        return _reserve(size)


class _Limited:
    """A file that ends after some bytes."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.file, self.limit = file, limit

    def _take(self, data: bytes) -> bytes:
        self.limit -= len(data)
        return data

    def read(self, count: int) -> bytes:
        """At most so many bytes."""
        return self._take(self.file.read(min(count, max(self.limit, 0))))

    def readline(self) -> bytes:
        """The bytes up to and with the end of a line."""
        return self._take(self.file.readline(max(self.limit, 0)))
