"""Packages of pip and npm, wheels and tarballs: only wanted members read, nothing unpacked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import DataError
from pipeline.files import zip_members
from pipeline.files.reading import read_start, read_unpacked

MAX_UNPACKED = 256 * 2**20
"""Largest tarball, unpacked; that of @mediapipe/pose has 59 MB."""

MAX_WANTED = 64 * 2**20
"""Largest wanted member, and largest sum of all wanted ones is four times that."""

MAX_MEMBERS = 100_000

_BLOCK = 512
_FILE_TYPES, _LINK_TYPES = b"0\0", b"12"


class _TarMember(NamedTuple):
    """A member of a tarball: name, type, and where its content is."""

    name: str
    kind: int
    start: int
    size: int


def read_package(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The content of the wanted members of a wheel or a packed tarball.

    Names of members are only compared, never used as paths, and nothing is written.

    Args:
        path: The file; its first bytes decide what it is.
        wanted: Whether a member is wanted, by its name.

    Returns:
        Name -> content, without the wanted members that the package does not have.

    Raises:
        DataError: If the file cannot be read or is no package, if it is damaged, if a wanted member
            is there twice, a link or larger than `MAX_WANTED`, or if the package unpacks to more
            than a limit.
    """
    start = read_start(path, 4)
    if start.startswith(b"PK"):
        return _read_wheel(path, wanted)
    if start.startswith(b"\x1f\x8b"):
        return _read_tarball(path, wanted)
    raise DataError(
        f"{path}: is no wheel and no packed tarball (starts with {start.hex(' ')}); fetch it again"
    )


def is_wheel(path: Path) -> bool:
    """Whether a zip file is a package of pip, by the names in it.

    Raises:
        DataError: If it is damaged.
    """
    return any(".dist-info/" in member.name for member in _list_wheel(path))


def _list_wheel(path: Path) -> list[zip_members.Member]:
    try:
        with path.open("rb") as file:
            return zip_members.list_members(file)
    except (zip_members.ArchiveError, OSError) as error:
        raise DataError(f"{path}: is damaged ({error}); fetch it again") from None


def _read_wheel(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Wanted members of a zip file; a link in it is a short text, as the digest then shows."""
    members = [member for member in _list_wheel(path) if wanted(member.name)]
    _check_sizes(path, [(member.name, member.size) for member in members])
    _check_sizes(path, [(member.name, member.packed) for member in members])
    try:
        with path.open("rb") as file:
            return {member.name: zip_members.read_member(file, member) for member in members}
    except (zip_members.ArchiveError, OSError) as error:
        raise DataError(f"{path}: is damaged ({error}); fetch it again") from None


def _read_tarball(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Wanted members of a tarball that is packed by gzip."""
    data = memoryview(read_unpacked(path, MAX_UNPACKED))
    members = [member for member in _list_tar(path, data) if wanted(member.name)]
    _check_sizes(path, [(member.name, member.size) for member in members])
    found: dict[str, bytes] = {}
    for member in members:
        shown = repr(member.name[:60])
        if member.kind in _LINK_TYPES:
            raise DataError(f"{path}: {shown} is a link; rejected")
        if member.kind not in _FILE_TYPES:
            raise DataError(f"{path}: {shown} is no regular file; rejected")
        if member.name in found:
            raise DataError(f"{path}: has {shown} twice; rejected")
        found[member.name] = bytes(data[member.start : member.start + member.size])
    return found


def _check_sizes(path: Path, sizes: list[tuple[str, int]]) -> None:
    """Raise if wanted members are too large, one of them or all together."""
    for name, size in sizes:
        if size > MAX_WANTED:
            raise DataError(f"{path}: {name[:60]!r} has {size} bytes; the limit is {MAX_WANTED}")
    if sum(size for _, size in sizes) > 4 * MAX_WANTED:
        raise DataError(f"{path}: its wanted files have more than {4 * MAX_WANTED} bytes")


def _list_tar(path: Path, data: memoryview) -> Iterator[_TarMember]:
    """The members of a tarball, by their headers of the POSIX format (ustar).

    Long names, which stand in members of their own, are not looked up: no wanted name is long.
    """
    position = 0
    for _ in range(MAX_MEMBERS):
        header = bytes(data[position : position + _BLOCK])
        if len(header) < _BLOCK:
            raise DataError(f"{path}: is damaged (the tarball ends early); fetch it again")
        if not any(header):
            return
        place = f"{path}: is damaged at byte {position} of the tarball"
        blanked = header[:148] + b" " * 8 + header[156:]
        if _octal(header[148:156], place) != sum(blanked):
            raise DataError(f"{place} (a header fails its checksum); fetch it again")
        size = _octal(header[124:136], place)
        start = position + _BLOCK
        if start + size > len(data):
            raise DataError(f"{place} (a file is longer than the rest); fetch it again")
        prefix = _text(header[345:500]) if header[257:262] == b"ustar" else ""
        name = _text(header[:100])
        yield _TarMember(f"{prefix}/{name}" if prefix else name, header[156], start, size)
        position = start + -(-size // _BLOCK) * _BLOCK
    raise DataError(f"{path}: has more than {MAX_MEMBERS:,} members; rejected")


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _octal(field: bytes, place: str) -> int:
    """A number in a header; other notations than octal digits are rejected."""
    digits = field.strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        raise DataError(f"{place} (a number of a header is {field!r}); fetch it again")
    return int(digits, 8)
