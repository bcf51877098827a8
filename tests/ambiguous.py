"""Zip files in which two readers find different content, or that claim what is not there."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Callable

END = struct.Struct("<4s4H2LH")


def archive(members: list[tuple[str, bytes]]) -> bytes:
    """A zip file with these members, also if two have the same name."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as file:
        warnings.simplefilter("ignore")
        for name, data in members:
            file.writestr(name, data)
    return stream.getvalue()


def changed(data: bytes, position: int, layout: str, value: int) -> bytes:
    """The same bytes with another number at a position."""
    size = struct.calcsize(layout)
    return data[:position] + struct.pack(layout, value) + data[position + size :]


def entry(data: bytes, number: int) -> int:
    """Position of an entry in the list of members."""
    position = END.unpack(data[-22:])[6]
    for _ in range(number):
        position += 46 + sum(struct.unpack_from("<3H", data, position + 28))
    return position


def with_gap(data: bytes, position: int, more: bytes) -> bytes:
    """The same archive with more bytes between its last member and the list of members."""
    start = END.unpack(data[-22:])[6]
    return changed(data[:start] + more + data[start:], -6, "<L", start + len(more))


def with_zip64(data: bytes, start: int, count: int) -> bytes:
    """The same archive with a second end record that names another list of members."""
    _, _, _, _, _, length, _, _ = END.unpack(data[-22:])
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(data) - 22, 1)
    return data[:-22] + record + locator + data[-22:]


def ambiguous(pickled: bytes, other: bytes) -> dict[str, bytes]:
    """Files like those of torch, in which readers may find one pickle or the other."""
    rest = [("a/version", b"3\n"), ("a/byteorder", b"little")]
    honest = archive([("a/data.pkl", pickled), *rest])
    twice = archive([("a/data.pkl", pickled), ("a/data.pkl", other), *rest])
    hidden = archive([("a/data.pkl", other), *rest])
    start = END.unpack(honest[-22:])[6]
    return {
        "names equal but for case": archive(
            [("a/DATA.PKL", other), ("a/data.pkl", pickled), *rest]
        ),
        "names equal but for case, reversed": archive(
            [("a/data.pkl", pickled), ("a/DATA.PKL", other), *rest]
        ),
        "folders equal but for case": archive(
            [("A/data.pkl", other), ("a/data.pkl", pickled), *rest]
        ),
        "a member twice": twice,
        "bytes before": b"PK\3\4" + bytes(60) + honest,
        "an archive before": hidden + honest,
        "bytes behind": honest + bytes(30),
        "an archive in the comment": changed(honest, -2, "<H", len(hidden)) + hidden,
        "bytes between": with_gap(honest, start, hidden),
        "two end records": honest + honest[-22:],
        "zip64 with another place": with_zip64(honest, start - 1, 3),
        "zip64 with another count": with_zip64(honest, start, 2),
        "members that overlap": changed(honest, entry(honest, 1) + 42, "<L", 0),
        "another name in the header": honest.replace(b"a/data.pkl", b"a/data.pkx", 1),
        "another size in the header": changed(honest, 22, "<L", 1),
        "another size in the list": changed(honest, entry(honest, 0) + 24, "<L", 2**31),
        "another method in the header": changed(honest, 8, "<H", 8),
        "another count": changed(honest, -12, "<H", 2),
        "a member outside": changed(honest, entry(honest, 2) + 42, "<L", 2**31),
    }


def make(kind: str, pickled: Callable[[str], bytes]) -> bytes:
    """A file of one kind; its two pickles are those for the words checked and unchecked."""
    return ambiguous(pickled("checked"), pickled("unchecked"))[kind]


KINDS = tuple(ambiguous(b".", b"."))
