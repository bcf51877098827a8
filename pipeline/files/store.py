"""The content store: content-addressed folders of memory-mapped arrays, checked on opening."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import math
import os
import re
import shutil
import stat
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np

from pipeline.errors import StorageError
from pipeline.files.digests import file_digest_and_version, file_version
from pipeline.files.entries import (
    ENTRY_NAME,
    Arrays,
    CacheSpecification,
    DamagedEntryError,
    Entry,
    MissingEntryError,
    canonical_json,
    clear_place,
    publish_entry,
    read_entry,
    remove_entry,
)
from pipeline.files.marks import add_to_mark, marked_files, remove_marked, write_mark
from pipeline.files.writing import WRITER, atomic_replacement, format_bytes

_log = logging.getLogger(__name__)

_DIGESTS_FILE = ".digests.jsonl"
_SHARD = re.compile(r"[0-9]{7}\.npz").fullmatch
_UNFINISHED = re.compile(rf"\.(?P<name>{ENTRY_NAME.pattern})\.{WRITER}(\.old)?\.tmp")
_WAITING_INTERVAL = 10.0  # seconds between two lines that name the process that is waited for


@dataclass(frozen=True)
class Shards:
    """Finished parts of an entry that is being built; they stay if the builder is killed.

    Args:
        folder: Folder of the shards. Several processes may write different shards at once.
    """

    folder: Path

    def put(self, name: str, arrays: Arrays) -> None:
        """Write a shard so that it is there whole or not at all.

        Raises:
            StorageError: If it cannot be written.
        """
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        with _storage_errors(self.folder, "cannot write"):
            add_to_mark(self.folder, f"{name}.npz")
            with atomic_replacement(self.folder / f"{name}.npz", ending="tmp") as temporary:
                temporary.write_bytes(content.getbuffer())

    def get(self, name: str) -> Arrays | None:
        """The arrays of a shard; none if it is not there or its checksums fail."""
        try:
            with (
                _open_no_link(self.folder / f"{name}.npz") as file,
                zipfile.ZipFile(file) as archive,
            ):
                if archive.testzip() is not None:
                    return None
                file.seek(0)
                with np.load(file, allow_pickle=False) as members:
                    return dict(members)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError):
            return None

    def make_folder(self) -> None:
        """Make the folder with its mark; the folder of a killed builder stays as it is.

        Raises:
            OSError: If it cannot be made.
            StorageError: If a symbolic link is in its place.
        """
        self.folder.mkdir(exist_ok=True)
        if self.folder.is_symlink():
            raise StorageError(
                f"{self.folder}: is a symbolic link; unfinished entries are never links"
            )
        if not marked_files(self.folder):
            write_mark(self.folder, self._files_without_mark())

    def remove(self) -> list[str]:
        """Remove the folder if only shards are in it.

        Returns:
            Names of the other things; if there are any, nothing was removed.

        Raises:
            OSError: If a file cannot be removed.
        """
        return remove_marked(self.folder, marked_files(self.folder) or self._files_without_mark())

    def _files_without_mark(self) -> set[str]:
        """Shards of detections as earlier versions named them; they wrote no mark."""
        return {file.name for file in self.folder.glob("[0-9]*.npz") if _SHARD(file.name)}


Build = Callable[[Shards], Arrays]
"""Builds what is missing, stores finished parts as shards, and returns all arrays of the entry."""


@dataclass(frozen=True)
class Store:
    """The cache: a folder of entries.

    Convention:
        An entry is a folder with one `.npy` file per array, `manifest.json` and a mark that lists
        these files. The same key and content give the same bytes, file for file. Names that start
        with a dot are locks, unfinished entries and remembered digests. Only files that a mark or a
        whole manifest lists are ever removed; a folder with anything else in it stays.

    Args:
        root: Folder of the cache; it is made with the first entry.
    """

    root: Path

    def shards(self, specification: CacheSpecification) -> Shards:
        """The finished parts of an entry while it is being built."""
        return Shards(self.root / f".{specification.name}.building")

    def find(self, specification: CacheSpecification) -> Entry | None:
        """The entry if it is there and whole.

        Raises:
            StorageError: If the entry is a symbolic link or holds one.
        """
        try:
            return self._checked(specification)
        except (MissingEntryError, DamagedEntryError):
            return None

    def fetch(self, specification: CacheSpecification, build: Build) -> Entry:
        """The entry, built if it is missing or damaged.

        One process builds at a time, under a kernel lock that ends with the process; the others
        wait and log it. If a builder was killed, the next one continues with its shards.

        Args:
            specification: Specification of the entry.
            build: Function that builds the arrays; called under the lock.

        Raises:
            StorageError: If the entry is missing and cannot be written, or is a symbolic link.
        """
        if entry := self.find(specification):
            return entry
        path = self.root / specification.name
        with _storage_errors(self.root, "cannot be written"):
            self.root.mkdir(parents=True, exist_ok=True)
        with self.lock(specification.name):
            try:
                return self._checked(specification)
            except MissingEntryError:
                pass
            except DamagedEntryError as damage:
                with _storage_errors(path, "cannot be replaced"):
                    kept = clear_place(path)
                aside = f"; what was there is now {kept.name}" if kept else ""
                _log.warning("heatlift: warning: %s: %s; rebuilding%s", path, damage, aside)
            _warn_if_open_to_all(self.root)
            self.remove_leftovers(specification.name)
            self._check_free_space(2 * specification.size)
            shards = self.shards(specification)
            with _storage_errors(shards.folder, "cannot be written"):
                shards.make_folder()
            arrays = build(shards)
            with _storage_errors(path, "cannot be written"):
                publish_entry(path, specification, arrays)
                if foreign := shards.remove():
                    _warn_of_foreign(shards.folder, foreign)
            return self._checked(specification)

    def digest(self, file: Path) -> str:
        """SHA-256 of a file, remembered by its path and version; see `file_version`.

        Raises:
            OSError: If the file cannot be read.
        """
        file = file.resolve()
        known = _known_digests(self.root / _DIGESTS_FILE)
        version = (str(file), *file_version(file.stat()))
        if version not in known:
            digest, read_version = file_digest_and_version(file)
            changed = max(read_version[2:]) if read_version else math.inf
            # a file that changed just now may change again within the same clock tick
            if read_version is None or time.time_ns() - changed < 2_000_000_000:
                return digest
            version = (str(file), *read_version)
            known[version] = digest
            with contextlib.suppress(OSError):
                self.root.mkdir(parents=True, exist_ok=True)
                with (self.root / _DIGESTS_FILE).open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps([*version, digest]) + "\n")
        return known[version]

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lock of an entry; while another process holds it, wait and log its id."""
        lock = filelock.FileLock(self.root / f".{name}.lock")
        holder = self.root / f".{name}.pid"
        began = time.monotonic()
        with _storage_errors(self.root / name, "is not complete and cannot be written"):
            while not lock.is_locked:
                try:
                    lock.acquire(timeout=_WAITING_INTERVAL)
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

    def _checked(self, specification: CacheSpecification) -> Entry:
        """The entry, checked against its specification."""
        entry = read_entry(self.root / specification.name)
        if entry.key != json.loads(canonical_json(specification.key)):
            raise DamagedEntryError("was made for another key")
        layout = {name: (array.shape, array.dtype.str) for name, array in entry.arrays.items()}
        facts = (
            entry.facts
            if specification.facts is None
            else json.loads(canonical_json(specification.facts))
        )
        if specification.layout not in (None, layout) or entry.facts != facts:
            raise DamagedEntryError("holds arrays of other shapes, types or offsets")
        return entry

    def remove_leftovers(self, locked: str) -> None:
        """Remove the unfinished files of processes that no longer run.

        The lock of an entry tells whether its writer still runs. Process ids do not: a writer may
        run in another container.

        Args:
            locked: Name of the entry whose lock this process holds.
        """
        for temporary in self.root.glob(".*.tmp"):
            owner = unfinished_owner(temporary)
            if owner == locked:
                remove_entry(temporary)
            elif owner:
                other_lock = filelock.FileLock(self.root / f".{owner}.lock", timeout=0)
                # Timeout: its writer runs; OSError: the lock or the files belong to another user
                with contextlib.suppress(filelock.Timeout, OSError), other_lock:
                    remove_entry(temporary)

    def remove(self, name: str) -> list[Path]:
        """Remove an entry, finished or not.

        Args:
            name: Name of the entry.

        Returns:
            Things that stay because Heatlift did not write them.

        Raises:
            StorageError: If a file cannot be removed.
        """
        path, shards = self.root / name, Shards(self.root / f".{name}.building")
        with self.lock(name), _storage_errors(path, "cannot be removed"):
            self.remove_leftovers(name)
            foreign = [path / other for other in remove_entry(path)]
            return foreign + [shards.folder / other for other in shards.remove()]

    def _check_free_space(self, size: int) -> None:
        free = shutil.disk_usage(self.root).free
        if size > free:
            raise StorageError(
                f"{self.root}: needs {format_bytes(size)}, {format_bytes(free)} free; "
                f"free disk space or set HEATLIFT_CACHE to a folder on another disk"
            )


def default_store() -> Store:
    """The cache: `$HEATLIFT_CACHE`, else `cache/` in the current folder, beside `runs/`."""
    return Store(Path(os.environ.get("HEATLIFT_CACHE") or "cache").absolute())


def _open_no_link(file: Path) -> io.BufferedReader:
    """Open a file, but not through a symbolic link."""
    return os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW), "rb")


def unfinished_owner(path: Path) -> str:
    """Name of the entry that `.NAME.PID.tmp` is an unfinished copy of; empty for other names."""
    match = _UNFINISHED.fullmatch(path.name)
    return match["name"] if match else ""


def _warn_of_foreign(folder: Path, names: list[str]) -> None:
    _log.warning(
        "heatlift: warning: %s: stays, because Heatlift did not write %s", folder, ", ".join(names)
    )


def _warn_if_open_to_all(root: Path) -> None:
    mode = root.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        _log.warning("heatlift: warning: %s: the folder is writable by everyone", root)


@functools.cache
def _known_digests(file: Path) -> dict[tuple[str | int, ...], str]:
    """Digests by path and version; incomplete lines, and those of earlier versions, are left out.

    Earlier versions remembered fewer facts of a file.
    """
    known: dict[tuple[str | int, ...], str] = {}
    with contextlib.suppress(OSError), file.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            with contextlib.suppress(ValueError, TypeError):
                name, inode, size, modified, changed, digest = json.loads(line)
                known[str(name), int(inode), int(size), int(modified), int(changed)] = str(digest)
    return known


@contextlib.contextmanager
def _storage_errors(path: Path, what: str) -> Iterator[None]:
    """Raise operating system errors as one line that names the path."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: {what} ({error.strerror or error}); "
            f"free disk space, change the permissions or set HEATLIFT_CACHE to another folder"
        ) from error
