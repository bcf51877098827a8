"""Entries of the content store: their manifest, how they are published and checked."""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import json
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StorageError

SCHEMA = 1
"""Version of the layout of an entry; entries of another version are rebuilt."""


Arrays = dict[str, NDArray[Any]]


_MANIFEST = "manifest.json"


_LARGEST_MANIFEST = 2**28


_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


class MissingEntryError(Exception):
    """No entry of that name."""


class DamagedEntryError(Exception):
    """An entry that must not be used; the text says why."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A checked entry.

    Args:
        path: Its folder.
        key: Everything that decided its content.
        arrays: Memory-mapped, read-only.
        facts: What its maker wrote beside them (offsets, counts), plain JSON.
    """

    path: Path
    key: dict[str, Any]
    arrays: Arrays
    facts: dict[str, Any]


@dataclass(frozen=True, eq=False)
class CacheSpecification:
    """What an entry is, said before it exists.

    Args:
        stem: Readable beginning of its name.
        key: Everything that decides its content, plain JSON.
        layout: Shape and type (as `numpy.dtype.str`) of each array; none to find an entry whose
            layout only the key decides.
        facts: Written beside the arrays for whoever reads them (offsets, counts), plain JSON; none
            to find an entry whatever they are.
    """

    stem: str
    key: dict[str, Any]
    layout: dict[str, tuple[tuple[int, ...], str]] | None = None
    facts: dict[str, Any] | None = None

    @functools.cached_property
    def name(self) -> str:
        """`<stem>-<first 16 digits of the key's SHA-256>`."""
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", self.stem).strip("-")[:80] or "entry"
        return f"{stem}-{_digest(self.key)[:16]}"

    @property
    def size(self) -> int:
        """Bytes of the arrays."""
        return sum(
            int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
            for shape, kind in (self.layout or {}).values()
        )


def read_entry(path: Path) -> Entry:
    """Open an entry and check it whole: names, sizes, types and SHA-256 of each array.

    The folder is opened once and its files through it, so that what was checked is what is used
    even if the entry is replaced meanwhile.

    Raises:
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
        manifest = _manifest(path, folder)
        with os.scandir(folder) as members:
            names = {member.name for member in members}
        if names != {_MANIFEST, *(f"{name}.npy" for name in manifest["arrays"])}:
            raise DamagedEntryError("has files too many or too few")
        arrays = {
            name: _array(path, folder, name, told) for name, told in manifest["arrays"].items()
        }
        return Entry(path, manifest["key"], arrays, manifest["facts"])
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        raise DamagedEntryError("its manifest or an array's head is not readable") from None
    finally:
        os.close(folder)


def describe_damage(path: Path) -> str:
    """Why an entry must not be used; empty if it is whole."""
    try:
        read_entry(path)
    except (MissingEntryError, DamagedEntryError, StorageError) as reason:
        return str(reason) or "missing"
    return ""


def _manifest(path: Path, folder: int) -> dict[str, Any]:
    with _member(path, folder, _MANIFEST) as file:
        content = file.read(_LARGEST_MANIFEST)
    manifest: dict[str, Any] = json.loads(content)
    digest = manifest.pop("sha256")
    if canonical_json({**manifest, "sha256": digest}) != content or digest != _digest(manifest):
        raise DamagedEntryError("its manifest fails its checksum")
    if manifest["schema"] != SCHEMA:
        raise DamagedEntryError(f"was made by version {manifest['schema']} of the cache")
    return manifest


def _array(path: Path, folder: int, name: str, told: dict[str, Any]) -> NDArray[Any]:
    with _member(path, folder, f"{name}.npy") as file:
        if os.fstat(file.fileno()).st_size != told["bytes"]:
            raise DamagedEntryError(f"{name}.npy has another size than its manifest says")
        if hashlib.file_digest(file, "sha256").hexdigest() != told["sha256"]:
            raise DamagedEntryError(f"{name}.npy fails its checksum")
        file.seek(0)
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if dtype.hasobject or fortran or start + size != told["bytes"]:
            raise DamagedEntryError(f"{name}.npy is no plain array")
        if [list(shape), dtype.str] != [told["shape"], told["dtype"]]:
            raise DamagedEntryError(f"{name}.npy has another shape or type than its manifest says")
        if not size:
            return np.zeros(shape, dtype)  # nothing cannot be mapped
        return np.memmap(file, dtype, mode="r", offset=start, shape=shape)


def _member(path: Path, folder: int, name: str) -> io.BufferedReader:
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
    """The one way to write plain content as JSON."""
    return json.dumps(content, sort_keys=True, allow_nan=False, indent=1).encode("ascii")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content)).hexdigest()


def publish_entry(path: Path, specification: CacheSpecification, arrays: Arrays) -> None:
    """Write an entry under a temporary name and put it in its place in one step."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    temporary.mkdir()
    try:
        described = {}
        for name, array in arrays.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"an array cannot be called {name!r}")
            file = temporary / f"{name}.npy"
            content = np.ascontiguousarray(array)
            with file.open("wb") as stream:
                np.lib.format.write_array(stream, content, version=(1, 0), allow_pickle=False)
                _flush(stream)
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            described[name] = {
                "bytes": file.stat().st_size,
                "dtype": content.dtype.str,
                "shape": list(content.shape),
                "sha256": digest,
            }
        manifest = {
            "schema": SCHEMA,
            "key": specification.key,
            "arrays": described,
            "facts": specification.facts or {},
        }
        manifest["sha256"] = _digest(manifest)
        write_flushed(temporary / _MANIFEST, canonical_json(manifest))
        _flush_folder(temporary)
        if (
            path.exists()
        ):  # only a damaged entry: it is moved aside because rename replaces no full folder
            aside = path.parent / f".{path.name}.{os.getpid()}.old.tmp"
            path.rename(aside)
            temporary.rename(path)
            remove_path(aside)
        else:
            temporary.rename(path)
        _flush_folder(path.parent)
    except BaseException:
        remove_path(temporary)
        raise


def write_flushed(file: Path, content: bytes | memoryview) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        _flush(stream)


def _flush(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_path(path: Path) -> None:
    """Remove a folder with what is in it, or a link or file itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
