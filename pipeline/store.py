"""Content-addressed folders of memory-mapped arrays: written once, checked on opening."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import logging
import os
import re
import shutil
import stat
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StorageError

SCHEMA = 1
"""Version of the layout of an entry; entries of another version are rebuilt."""

Arrays = dict[str, NDArray[Any]]

_log = logging.getLogger(__name__)
_DIGESTS = ".digests.jsonl"
_MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 2**28
_PATIENCE = 10.0  # seconds between two lines that say for whom a process waits
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


class _MissingError(Exception):
    """No entry of that name."""


class _DamagedError(Exception):
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


@dataclass(frozen=True)
class Shards:
    """Finished parts of an entry that is being built; they outlive a killed builder.

    Args:
        folder: Where they lie. Several processes may write different shards at once.
    """

    folder: Path

    def put(self, name: str, arrays: Arrays) -> None:
        """Write a shard whole or not at all."""
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        with _storage(self.folder, "cannot write"):
            _write(temporary, content.getbuffer())
            temporary.replace(self.folder / f"{name}.npz")

    def get(self, name: str) -> Arrays | None:
        """The arrays of a shard; none if it is not there or its checksums fail."""
        try:
            with _open(self.folder / f"{name}.npz") as file, zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:
                    return None
                file.seek(0)
                with np.load(file, allow_pickle=False) as members:
                    return dict(members)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError):
            return None


@dataclass(frozen=True, eq=False)
class Wanted:
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


Build = Callable[[Shards], Arrays]
"""Makes what is missing, keeping finished parts as shards, and returns all arrays of the entry."""


@dataclass(frozen=True)
class Store:
    """The cache: a folder of entries.

    Convention:
        An entry is a folder with one `.npy` file per array and `manifest.json`. The same key and
        content give the same bytes, file for file. Names that start with a dot are locks,
        unfinished entries and remembered digests.

    Args:
        root: The folder; made when the first entry is.
    """

    root: Path

    def shards(self, wanted: Wanted) -> Shards:
        """Where the finished parts of an entry lie while it is being built."""
        return Shards(self.root / f".{wanted.name}.building")

    def find(self, wanted: Wanted) -> Entry | None:
        """The entry if it is there and whole.

        Raises:
            StorageError: If the entry is a link or holds one.
        """
        try:
            return self._checked(wanted)
        except (_MissingError, _DamagedError):
            return None

    def fetch(self, wanted: Wanted, build: Build) -> Entry:
        """The entry, built if it is missing or damaged.

        One process builds at a time, under a kernel lock that dies with it; others wait and say
        so. A builder that was killed is taken over: its shards are kept.

        Args:
            wanted: Which entry.
            build: Called under the lock.

        Raises:
            StorageError: If the entry is missing and cannot be written, or is a link.
        """
        if entry := self.find(wanted):
            return entry
        path = self.root / wanted.name
        with _storage(self.root, "cannot be written"):
            self.root.mkdir(parents=True, exist_ok=True)
        with self.lock(wanted.name):
            try:
                return self._checked(wanted)
            except _MissingError:
                pass
            except _DamagedError as damage:
                _log.warning("heatlift: warning: %s: %s; rebuilding", path, damage)
            _warn_if_open_to_all(self.root)
            self.sweep(wanted.name)
            self._room_for(2 * wanted.size)
            shards = self.shards(wanted)
            with _storage(shards.folder, "cannot be written"):
                _real_folder(shards.folder)
            arrays = build(shards)
            with _storage(path, "cannot be written"):
                _publish(path, wanted, arrays)
                shutil.rmtree(shards.folder)
            return self._checked(wanted)

    def digest(self, file: Path) -> str:
        """SHA-256 of a file's bytes, remembered by path, size and time of change.

        Raises:
            OSError: If the file cannot be read.
        """
        file = file.resolve()
        status = file.stat()
        mark = (str(file), status.st_size, status.st_mtime_ns)
        known = _remembered(self.root / _DIGESTS)
        if mark not in known:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            # A file changed within the clock's last tick may change again and keep its time.
            if time.time_ns() - status.st_mtime_ns < 2_000_000_000:
                return digest
            known[mark] = digest
            with contextlib.suppress(OSError):
                self.root.mkdir(parents=True, exist_ok=True)
                with (self.root / _DIGESTS).open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps([*mark, digest]) + "\n")
        return known[mark]

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold an entry alone; wait, and say for whom, while another process holds it."""
        lock = filelock.FileLock(self.root / f".{name}.lock")
        holder = self.root / f".{name}.pid"
        began = time.monotonic()
        with _storage(self.root / name, "is not complete and cannot be written"):
            while not lock.is_locked:
                try:
                    lock.acquire(timeout=_PATIENCE)
                except filelock.Timeout:
                    pid = "?"
                    with contextlib.suppress(OSError):
                        pid = holder.read_text("ascii")
                    waited = time.monotonic() - began
                    _log.warning(
                        "heatlift: %s: locked by process %s for %.0f s; waiting", name, pid, waited
                    )
            holder.write_text(str(os.getpid()), "ascii")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                holder.unlink()
            lock.release()

    def _checked(self, wanted: Wanted) -> Entry:
        entry = read(self.root / wanted.name)
        if entry.key != json.loads(_canonical(wanted.key)):
            raise _DamagedError("was made for another key")
        layout = {name: (array.shape, array.dtype.str) for name, array in entry.arrays.items()}
        facts = entry.facts if wanted.facts is None else json.loads(_canonical(wanted.facts))
        if wanted.layout not in (None, layout) or entry.facts != facts:
            raise _DamagedError("holds arrays of other shapes, types or offsets")
        return entry

    def sweep(self, mine: str) -> None:
        """Remove what is left of writers that are gone; `mine` is locked here.

        Whether a writer of another entry is gone, its lock tells: in another container its process
        id means nothing.
        """
        for temporary in self.root.glob(".*.tmp"):
            owner, _, pid = temporary.name.removesuffix(".tmp").removesuffix(".old").rpartition(".")
            if not pid.isdigit():
                continue
            if owner == f".{mine}":
                remove(temporary)
                continue
            theirs = filelock.FileLock(self.root / f"{owner}.lock", timeout=0)
            with contextlib.suppress(filelock.Timeout, OSError), theirs:  # at work, or another's
                remove(temporary)
        for temporary in (self.root / f".{mine}.building").glob(".*.tmp"):
            remove(temporary)

    def _room_for(self, size: int) -> None:
        free = shutil.disk_usage(self.root).free
        if size > free:
            raise StorageError(
                f"{self.root}: needs {readable(size)}, {readable(free)} free; "
                f"make room or set HEATLIFT_CACHE to a folder on another disk"
            )


def place() -> Store:
    """The cache: `$HEATLIFT_CACHE`, else `cache/` in the current folder, beside `runs/`."""
    return Store(Path(os.environ.get("HEATLIFT_CACHE") or "cache").absolute())


def read(path: Path) -> Entry:
    """Open an entry and check it whole: names, sizes, types and SHA-256 of each array.

    The folder is opened once and its files through it, so that what was checked is what is used
    even if the entry is replaced meanwhile.

    Raises:
        StorageError: If the entry or a file in it is a symbolic link.
    """
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise _MissingError from None
    except OSError as error:
        if path.is_symlink():
            raise StorageError(
                f"{path}: is a symbolic link; entries are never links, remove it"
            ) from None
        raise _DamagedError(f"cannot be opened ({error.strerror})") from None
    try:
        manifest = _manifest(path, folder)
        with os.scandir(folder) as members:
            names = {member.name for member in members}
        if names != {_MANIFEST, *(f"{name}.npy" for name in manifest["arrays"])}:
            raise _DamagedError("has files too many or too few")
        arrays = {
            name: _array(path, folder, name, told) for name, told in manifest["arrays"].items()
        }
        return Entry(path, manifest["key"], arrays, manifest["facts"])
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        raise _DamagedError("its manifest or an array's head is not readable") from None
    finally:
        os.close(folder)


def damage(path: Path) -> str:
    """Why an entry must not be used; empty if it is whole."""
    try:
        read(path)
    except (_MissingError, _DamagedError, StorageError) as reason:
        return str(reason) or "missing"
    return ""


def _manifest(path: Path, folder: int) -> dict[str, Any]:
    with _member(path, folder, _MANIFEST) as file:
        content = file.read(_LARGEST_MANIFEST)
    manifest: dict[str, Any] = json.loads(content)
    digest = manifest.pop("sha256")
    if _canonical({**manifest, "sha256": digest}) != content or digest != _digest(manifest):
        raise _DamagedError("its manifest fails its checksum")
    if manifest["schema"] != SCHEMA:
        raise _DamagedError(f"was made by version {manifest['schema']} of the cache")
    return manifest


def _array(path: Path, folder: int, name: str, told: dict[str, Any]) -> NDArray[Any]:
    with _member(path, folder, f"{name}.npy") as file:
        if os.fstat(file.fileno()).st_size != told["bytes"]:
            raise _DamagedError(f"{name}.npy has another size than its manifest says")
        if hashlib.file_digest(file, "sha256").hexdigest() != told["sha256"]:
            raise _DamagedError(f"{name}.npy fails its checksum")
        file.seek(0)
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if dtype.hasobject or fortran or start + size != told["bytes"]:
            raise _DamagedError(f"{name}.npy is no plain array")
        if [list(shape), dtype.str] != [told["shape"], told["dtype"]]:
            raise _DamagedError(f"{name}.npy has another shape or type than its manifest says")
        if not size:
            return np.zeros(shape, dtype)  # nothing cannot be mapped
        return np.memmap(file, dtype, mode="r", offset=start, shape=shape)


def _member(path: Path, folder: int, name: str) -> io.BufferedReader:
    """A regular file of an entry, opened through its folder."""
    if not _NAME.fullmatch(name):
        raise _DamagedError("its manifest names a file outside the entry")
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StorageError(
                f"{path / name}: is a symbolic link; entries hold no links, remove the entry"
            ) from None
        raise _DamagedError(f"{name} cannot be opened ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _DamagedError(f"{name} is not a regular file")
    return os.fdopen(descriptor, "rb")


def _open(file: Path) -> io.BufferedReader:
    return os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW), "rb")


def _canonical(content: dict[str, Any]) -> bytes:
    """The one way to write plain content as JSON."""
    return json.dumps(content, sort_keys=True, allow_nan=False, indent=1).encode("ascii")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _publish(path: Path, wanted: Wanted, arrays: Arrays) -> None:
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
            "key": wanted.key,
            "arrays": described,
            "facts": wanted.facts or {},
        }
        manifest["sha256"] = _digest(manifest)
        _write(temporary / _MANIFEST, _canonical(manifest))
        _flush_folder(temporary)
        if (
            path.exists()
        ):  # only a damaged entry: it is moved aside because rename replaces no full folder
            aside = path.parent / f".{path.name}.{os.getpid()}.old.tmp"
            path.rename(aside)
            temporary.rename(path)
            remove(aside)
        else:
            temporary.rename(path)
        _flush_folder(path.parent)
    except BaseException:
        remove(temporary)
        raise


def _write(file: Path, content: bytes | memoryview) -> None:
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


def _real_folder(folder: Path) -> None:
    """Make a folder; refuse a link in its place."""
    folder.mkdir(exist_ok=True)
    if folder.is_symlink():
        raise StorageError(f"{folder}: is a symbolic link; unfinished entries are never links")


def remove(path: Path) -> None:
    """Remove a folder with what is in it, or a link or file itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _warn_if_open_to_all(root: Path) -> None:
    mode = root.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        _log.warning("heatlift: warning: %s: the folder is writable by everyone", root)


@functools.cache
def _remembered(file: Path) -> dict[tuple[str, int, int], str]:
    """Digests by path, size, time of change; a torn line only means reading that file again."""
    known = {}
    with contextlib.suppress(OSError), file.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            with contextlib.suppress(ValueError, TypeError):
                name, size, changed, digest = json.loads(line)
                known[str(name), int(size), int(changed)] = str(digest)
    return known


@contextlib.contextmanager
def _storage(path: Path, what: str) -> Iterator[None]:
    """Turn what the system refuses into one line."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: {what} ({error.strerror or error}); "
            f"make room, change the permissions or set HEATLIFT_CACHE to another folder"
        ) from error


def readable(size: float) -> str:
    """A number of bytes for people.

    >>> readable(312_400_000)
    '312 MB'
    """
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size:.3g} {units[0]}"
