"""Members of zip files that every reader understands alike; other zip files are rejected."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

MAX_DIRECTORY_BYTES = 16 * 2**20
"""Largest list of members: about 200,000 of them."""

MAX_MEMBERS = 200_000

_CHUNK = 2**20
_STORED, _DEFLATED = 0, 8
_END, _LOCATOR, _END64 = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
_ENTRY, _LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # stand for a number in the zip64 record
_DESCRIBED, _UTF8, _LEVEL = 0x0008, 0x0800, 0x0006  # flags: sizes behind the data, names, speed
_DESCRIPTOR_SIZES = (0, 12, 16, 20, 24)


class ArchiveError(ValueError):
    """A zip file is damaged, or two readers could find different content in it."""


class Member(NamedTuple):
    """A member of a zip file.

    Args:
        name: Its name.
        start: Position of its data in the file.
        packed: Size of its data in the file, bytes.
        size: Size of its content, bytes.
        crc: CRC-32 of its content.
        deflated: Whether the data is packed.
    """

    name: str
    start: int
    packed: int
    size: int
    crc: int
    deflated: bool


class _Entry(NamedTuple):
    """An entry of the list of members at the end of a zip file."""

    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int


def list_members(file: BinaryIO) -> list[Member]:
    """The members of a zip file, in the order of the file.

    Readers of zip files differ in where they look: at the end, at the beginning, in the list of
    members or beside each member. So all places must agree, members must have different names, and
    must follow each other without gaps from the first byte of the file to the last.

    Raises:
        ArchiveError: If anything disagrees, or a member is encrypted or packed in a rare way.
        OSError: If the file cannot be read.
    """
    size = file.seek(0, 2)
    start, length, count = _find_directory(file, size)
    entries = sorted(_read_directory(file, start, length), key=lambda entry: entry.offset)
    if len(entries) != count:
        raise ArchiveError(f"it lists {len(entries)} members and claims {count}")
    ends = [*(entry.offset for entry in entries[1:]), start]
    members, position = [], 0
    for entry, end in zip(entries, ends, strict=True):
        if entry.offset != position:
            raise ArchiveError("it has bytes before its first member")
        members.append(_check_local(file, entry, end))
        position = end
    if position != start:
        raise ArchiveError("it has bytes before its list of members")
    if len({member.name for member in members}) != len(members):
        raise ArchiveError("it has a member twice")
    return members


def _find_directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Position and length of the list of members, and their number."""
    end = size - 22
    record = _read_at(file, end, 22)
    if not record.startswith(_END) or record[20:] != b"\0\0":
        raise ArchiveError("it does not end with a zip file's end record, so it may be truncated")
    *disks, here, count, length, start = struct.unpack("<4H2L", record[4:20])
    if end >= 76 and (locator := _read_at(file, end - 20, 20)).startswith(_LOCATOR):
        found = struct.unpack("<LQL", locator[4:])
        end -= 76
        if found != (0, end, 1):
            raise ArchiveError("its two end records disagree")
        record = _read_at(file, end, 56)
        length64, _, _, *disks64, here64, count64, size64, start64 = struct.unpack(
            "<Q2H2L4Q", record[4:]
        )
        pairs = ((here, here64), (count, count64), (length, size64), (start, start64))
        limits = (_FULL16, _FULL16, _FULL32, _FULL32)
        same = all(old in (new, limit) for (old, new), limit in zip(pairs, limits, strict=True))
        if not record.startswith(_END64) or length64 != 44 or not same:
            raise ArchiveError("its two end records disagree")
        disks += disks64
        here, count, length, start = here64, count64, size64, start64
    if any(disks) or here != count:
        raise ArchiveError("it is a part of several files")
    if length > MAX_DIRECTORY_BYTES or count > MAX_MEMBERS:
        raise ArchiveError(f"it lists more than {MAX_MEMBERS:,} members")
    if start + length != end:
        raise ArchiveError("its list of members is not before its end record")
    return start, length, count


def _read_at(file: BinaryIO, position: int, length: int) -> bytes:
    """Bytes at a position, all of them."""
    if position < 0:
        raise ArchiveError("it is too short")
    file.seek(position)
    data = file.read(length)
    if len(data) != length:
        raise ArchiveError("it is truncated")
    return data


def _read_directory(file: BinaryIO, start: int, length: int) -> Iterator[_Entry]:
    """The entries of the list of members."""
    data, position = _read_at(file, start, length), 0
    while position < length:
        if position + _ENTRY.size > length:
            raise ArchiveError("its list of members is damaged")
        (mark, _, _, flags, method, _, _, crc, packed, size, *lengths, disk, _, _, offset) = (
            _ENTRY.unpack_from(data, position)
        )
        ends = [position + _ENTRY.size]
        for part in lengths:
            ends.append(ends[-1] + part)
        if mark != b"PK\x01\x02" or ends[-1] > length or disk:
            raise ArchiveError("its list of members is damaged")
        size, packed, offset = _large_numbers(data[ends[1] : ends[2]], size, packed, offset)
        yield _Entry(data[ends[0] : ends[1]], flags, method, crc, packed, size, offset)
        position = ends[-1]


def _large_numbers(extra: bytes, *numbers: int) -> tuple[int, ...]:
    """Numbers of an entry; those that do not fit into 32 bits stand in its zip64 field."""
    large = b""
    position, found = 0, 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            large, found = extra[position + 4 : position + 4 + length], found + 1
        position += 4 + length
    if found > 1:
        raise ArchiveError("a member has two zip64 fields")
    result = []
    for number in numbers:
        if number == _FULL32 and found:
            if len(large) < 8:
                raise ArchiveError("the zip64 field of a member is damaged")
            number, large = int.from_bytes(large[:8], "little"), large[8:]
        result.append(number)
    return tuple(result)


def _check_local(file: BinaryIO, entry: _Entry, end: int) -> Member:
    """A member whose own header agrees with the list of members.

    Args:
        file: The zip file.
        entry: Entry of the member in the list of members.
        end: Position where the next member or the list of members begins.
    """
    name = entry.raw_name.decode("utf-8" if entry.flags & _UTF8 else "cp437", "replace")
    shown = repr(name[:60])
    if not name.isprintable() or "\\" in name or "\ufffd" in name:
        raise ArchiveError(f"the name {shown} of a member is damaged")
    if entry.method not in (_STORED, _DEFLATED) or entry.flags & ~(_DESCRIBED | _UTF8 | _LEVEL):
        raise ArchiveError(f"{shown} is encrypted or packed in a rare way")
    mark, _, flags, method, _, _, crc, packed, size, *lengths = _LOCAL.unpack(
        _read_at(file, entry.offset, _LOCAL.size)
    )
    raw_name = _read_at(file, entry.offset + _LOCAL.size, lengths[0])
    extra = _read_at(file, entry.offset + _LOCAL.size + lengths[0], lengths[1])
    size, packed = _large_numbers(extra, size, packed)
    pairs = ((crc, entry.crc), (packed, entry.packed), (size, entry.size))
    described = bool(flags & _DESCRIBED)
    if (
        (mark, raw_name, flags, method)
        != (b"PK\x03\x04", entry.raw_name, entry.flags, entry.method)
        or any(own != listed and not (described and own == 0) for own, listed in pairs)
        or (method == _STORED and entry.packed != entry.size)
    ):
        raise ArchiveError(f"{shown} has other facts in its header than in the list of members")
    start = entry.offset + _LOCAL.size + sum(lengths)
    if end - start - entry.packed not in (_DESCRIPTOR_SIZES if described else (0,)):
        raise ArchiveError(f"{shown} overlaps another member, or is followed by other bytes")
    return Member(name, start, entry.packed, entry.size, entry.crc, method == _DEFLATED)


def read_member(file: BinaryIO, member: Member) -> bytes:
    """The content of a member; never more than the size that it claims.

    Raises:
        ArchiveError: If its size or its CRC is another one.
        OSError: If the file cannot be read.
    """
    data = _read_at(file, member.start, member.packed)
    if member.deflated:
        unpack = zlib.decompressobj(-15)
        try:
            data = unpack.decompress(data, member.size + 1)
        except zlib.error as error:
            raise ArchiveError(f"{member.name[:60]!r} is damaged ({error})") from None
        if len(data) != member.size or not unpack.eof or unpack.unused_data:
            raise ArchiveError(f"{member.name[:60]!r} unpacks to another size than it claims")
    _check_crc(zlib.crc32(data), member)
    return data


def read_member_into(file: BinaryIO, member: Member, target: memoryview) -> None:
    """Write the content of a member that is not packed into memory of its size.

    Raises:
        ArchiveError: If its CRC is another one.
        OSError: If the file cannot be read.
    """
    crc, position = 0, 0
    file.seek(member.start)
    while position < len(target):
        part = target[position : position + _CHUNK]
        count = file.readinto(part)  # type: ignore[attr-defined]
        if not count:
            raise ArchiveError("it is truncated")
        crc = zlib.crc32(part[:count], crc)
        position += count
    _check_crc(crc, member)


def check_member(file: BinaryIO, member: Member) -> None:
    """Raise if the data of a member that is not packed has another CRC."""
    crc, left = 0, member.packed
    file.seek(member.start)
    while left:
        data = file.read(min(left, _CHUNK))
        if not data:
            raise ArchiveError("it is truncated")
        crc, left = zlib.crc32(data, crc), left - len(data)
    _check_crc(crc, member)


def _check_crc(crc: int, member: Member) -> None:
    if crc != member.crc:
        raise ArchiveError(f"{member.name[:60]} fails its CRC")
