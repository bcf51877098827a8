"""Entries of the content store: their manifest, how they are written and checked."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StorageError
from pipeline.files.digests import bytes_digest, file_digest, open_file_digest
from pipeline.files.marks import MARK, mark_content, marked_files, remove_marked, write_mark
from pipeline.files.writing import atomic_replacement, flush_path

SCHEMA = 2
"""Version of the layout of an entry; entries of a version that is not known are rebuilt."""

_UNMARKED_SCHEMA = 1
"""Version of the layout before entries had a mark; otherwise it is the same."""

ENTRY_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}-[0-9a-f]{16}")
"""Name of an entry; see `CacheSpecification.name`."""

Arrays = dict[str, NDArray[Any]]
"""The arrays of an entry by name."""

_MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 2**28
_UNREADABLE = (ValueError, LookupError, AttributeError, TypeError, RecursionError)
"""What reading a damaged manifest or header raises."""
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


class MissingEntryError(Exception):
    """No entry of that name."""


class DamagedEntryError(Exception):
    """An entry that must not be used; the text is the reason."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A checked entry.

    Args:
        path: Folder of the entry.
        key: Everything that decided its content, plain JSON.
        arrays: Arrays by name, memory-mapped and read-only.
        facts: Facts about the arrays (offsets, counts), plain JSON.
    """

    path: Path
    key: dict[str, Any]
    arrays: Arrays
    facts: dict[str, Any]


@dataclass(frozen=True, eq=False)
class CacheSpecification:
    """Specification of a cache entry: its name, key, arrays and facts.

    Args:
        stem: Readable beginning of the entry's name.
        key: Everything that decides the content, plain JSON.
        layout: Shape and type (as `numpy.dtype.str`) of each array. None finds an entry by its key,
            with any layout.
        facts: Facts about the arrays (offsets, counts), plain JSON, stored beside them. None finds
            an entry with any facts.
    """

    stem: str
    key: dict[str, Any]
    layout: dict[str, tuple[tuple[int, ...], str]] | None = None
    facts: dict[str, Any] | None = None

    @functools.cached_property
    def name(self) -> str:
        """`<stem>-<first 16 digits of the key's SHA-256>`."""
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", self.stem).strip("-")[:80] or "entry"
        return f"{stem}-{json_digest(self.key)[:16]}"

    @property
    def size(self) -> int:
        """Size of all arrays, bytes."""
        return sum(
            int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
            for shape, kind in (self.layout or {}).values()
        )


def read_entry(path: Path) -> Entry:
    """Open an entry and check names, sizes, types and SHA-256 of all its arrays.

    The folder is opened once, and its files through the open folder. So the files that were checked
    are the files that are used, even if the entry is replaced meanwhile.

    Raises:
        MissingEntryError: If there is no such entry.
        DamagedEntryError: If it fails a check.
        StorageError: If the entry or a file in it is a symbolic link.
    """
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise MissingEntryError from None
    except OSError as error:
        if path.is_symlink():
            raise StorageError(
                f"{path}: is a symbolic link; entries are never links, remove it"
            ) from None
        raise DamagedEntryError(f"cannot be opened ({error.strerror})") from None
    try:
        manifest = _read_manifest(path, folder)
        with os.scandir(folder) as members:
            names = {member.name for member in members}
        listed = _manifest_files(manifest)
        if manifest["schema"] != _UNMARKED_SCHEMA:
            with _open_member(path, folder, MARK) as file:
                if file.read(len(mark_content(listed)) + 1) != mark_content(listed):
                    raise DamagedEntryError(f"{MARK} has other content than the manifest")
            listed.add(MARK)
        if names != listed:
            raise DamagedEntryError("has other files than its manifest lists")
        arrays = {
            name: _map_array(path, folder, name, described)
            for name, described in manifest["arrays"].items()
        }
        return Entry(path, manifest["key"], arrays, manifest["facts"])
    except _UNREADABLE:
        raise DamagedEntryError("its manifest or the header of an array is not readable") from None
    finally:
        os.close(folder)


def describe_damage(path: Path) -> str:
    """The reason why an entry must not be used; empty if it is whole."""
    try:
        read_entry(path)
    except (MissingEntryError, DamagedEntryError, StorageError) as reason:
        return str(reason) or "missing"
    return ""


def looks_like_entry(path: Path) -> bool:
    """Whether a path has the name of an entry, and is a link or has a manifest or a mark."""
    if not ENTRY_NAME.fullmatch(path.name):
        return False
    return path.is_symlink() or any(os.path.lexists(path / name) for name in (MARK, _MANIFEST))


def remove_entry(path: Path) -> list[str]:
    """Remove an entry, finished or not, if its mark or its manifest lists all that is in it.

    Entries of earlier versions have no mark, but a manifest with a checksum.

    Returns:
        Names of the other things; if there are any, nothing was removed.

    Raises:
        OSError: If a file cannot be removed.
    """
    listed: set[str] = set()
    with contextlib.suppress(OSError, StorageError, DamagedEntryError, *_UNREADABLE):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            listed = _manifest_files(_read_manifest(path, folder))
        finally:
            os.close(folder)
    return remove_marked(path, marked_files(path) | listed, last=_MANIFEST)


def clear_place(path: Path) -> Path | None:
    """Remove a damaged entry; if other things are in it, rename it to NAME.bad and return that.

    Raises:
        OSError: If it can be neither removed nor renamed.
    """
    try:
        if not remove_entry(path):
            return None
    except PermissionError:  # of another user: renamed, if the folder of the cache allows it
        pass
    number, kept = 1, path.with_name(f"{path.name}.bad")
    while os.path.lexists(kept):
        number += 1
        kept = path.with_name(f"{path.name}.bad-{number}")
    path.rename(kept)
    return kept


def _manifest_files(manifest: dict[str, Any]) -> set[str]:
    """Names of the files of an entry without its mark."""
    return {_MANIFEST, *(f"{name}.npy" for name in manifest["arrays"])}


def _read_manifest(path: Path, folder: int) -> dict[str, Any]:
    """The manifest of an entry whose folder is open, checked by its digest."""
    with _open_member(path, folder, _MANIFEST) as file:
        content = file.read(_MAX_MANIFEST_BYTES)
    manifest: dict[str, Any] = json.loads(content)
    digest = manifest.pop("sha256")
    if canonical_json({**manifest, "sha256": digest}) != content or digest != json_digest(manifest):
        raise DamagedEntryError("its manifest fails its checksum")
    if manifest["schema"] not in (SCHEMA, _UNMARKED_SCHEMA):
        raise DamagedEntryError(f"was made by version {manifest['schema']} of the cache")
    return manifest


def _map_array(path: Path, folder: int, name: str, described: dict[str, Any]) -> NDArray[Any]:
    """An array of an entry, checked against its description in the manifest, memory-mapped."""
    with _open_member(path, folder, f"{name}.npy") as file:
        if os.fstat(file.fileno()).st_size != described["bytes"]:
            raise DamagedEntryError(f"{name}.npy has another size than in its manifest")
        if open_file_digest(file) != described["sha256"]:
            raise DamagedEntryError(f"{name}.npy fails its checksum")
        file.seek(0)
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if dtype.hasobject or fortran or start + size != described["bytes"]:
            raise DamagedEntryError(f"{name}.npy is no plain array")
        if [list(shape), dtype.str] != [described["shape"], described["dtype"]]:
            raise DamagedEntryError(f"{name}.npy has another shape or type than in its manifest")
        if not size:
            return np.zeros(shape, dtype)  # an empty file cannot be mapped
        return np.memmap(file, dtype, mode="r", offset=start, shape=shape)


def _open_member(path: Path, folder: int, name: str) -> io.BufferedReader:
    """A regular file of an entry, opened through its folder."""
    if not _NAME.fullmatch(name):
        raise DamagedEntryError("its manifest names a file outside the entry")
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StorageError(
                f"{path / name}: is a symbolic link; entries hold no links, remove the entry"
            ) from None
        raise DamagedEntryError(f"{name} cannot be opened ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedEntryError(f"{name} is not a regular file")
    return os.fdopen(descriptor, "rb")


def canonical_json(content: dict[str, Any]) -> bytes:
    """Plain content as JSON, always with the same bytes."""
    return json.dumps(content, sort_keys=True, allow_nan=False, indent=1).encode("ascii")


def json_digest(content: dict[str, Any]) -> str:
    """SHA-256 of plain content as canonical JSON."""
    return bytes_digest(canonical_json(content))


def publish_entry(path: Path, specification: CacheSpecification, arrays: Arrays) -> None:
    """Write an entry so that it is there whole or not at all.

    Raises:
        OSError: If it cannot be written, or if something is in its place.
    """
    with atomic_replacement(path, ending="tmp") as temporary:
        temporary.mkdir()
        write_mark(temporary, _manifest_files({"arrays": arrays}))
        manifest = {
            "schema": SCHEMA,
            "key": specification.key,
            "arrays": {
                name: _write_array(temporary, name, array) for name, array in arrays.items()
            },
            "facts": specification.facts or {},
        }
        manifest["sha256"] = json_digest(manifest)
        (temporary / _MANIFEST).write_bytes(canonical_json(manifest))
        flush_path(temporary / _MANIFEST)


def _write_array(folder: Path, name: str, array: NDArray[Any]) -> dict[str, Any]:
    """Write an array to a folder, flushed to the disk; its description for the manifest."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"an array cannot be called {name!r}")
    file = folder / f"{name}.npy"
    content = np.ascontiguousarray(array)
    with file.open("wb") as stream:
        np.lib.format.write_array(stream, content, version=(1, 0), allow_pickle=False)
    flush_path(file)
    return {
        "bytes": file.stat().st_size,
        "dtype": content.dtype.str,
        "shape": list(content.shape),
        "sha256": file_digest(file),
    }
