"""SHA-256 digests of bytes, files and folders."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path

FileVersion = tuple[int, int, int, int]
"""Inode, size, time of change of the content, time of change of anything, nanoseconds."""


def file_version(status: os.stat_result) -> FileVersion:
    """What tells two versions of a file apart without reading it.

    Size and modification time are not enough: both can be set, and a copy keeps them. A user cannot
    set the time of change of anything (`st_ctime`); only a changed clock of the machine, or a file
    system that does not keep it, can make two versions equal.
    """
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def bytes_digest(content: bytes) -> str:
    """SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def open_file_digest(file: BufferedReader) -> str:
    """SHA-256 of an open file, from its position to its end."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return open_file_digest(file)


def file_digest_and_version(path: Path) -> tuple[str, FileVersion | None]:
    """SHA-256 of a file and the version that it is of; None if the file changed meanwhile.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        before = file_version(os.fstat(file.fileno()))
        digest = open_file_digest(file)
        return digest, before if file_version(os.fstat(file.fileno())) == before else None


def folder_digest(folder: Path, digest: Callable[[Path], str] = file_digest) -> str:
    """SHA-256 of the names and contents of all files of a folder.

    Args:
        folder: The folder.
        digest: Function that gives the SHA-256 of a file.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{digest(path)} {path.relative_to(folder)}" for path in files]
    return bytes_digest("\n".join(lines).encode())


CODE = (".py", ".json", ".csv", ".yaml")
"""Suffixes of the files of a package that decide what it computes."""


def listing_digest(folder: Path) -> tuple[int, str]:
    """Number of files at any depth below a folder, and SHA-256 of their names, sizes and times.

    No file is read, so a folder of images takes a second. Times are in whole seconds, as copies on
    other disks have them. Hidden files and folders do not count.
    """
    lines = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                path = Path(parent, name)
                state = path.stat()
                lines.append(f"{path.relative_to(folder)} {state.st_size} {int(state.st_mtime)}")
    return len(lines), bytes_digest("\n".join(sorted(lines)).encode())


def code_digests(package: Path) -> dict[str, str]:
    """SHA-256 of each file of a package that decides what it computes, by its name in the package.

    Configs do not count: they are settings.
    """
    files = sorted(path for path in package.rglob("*") if path.suffix in CODE)
    names = [(path, path.relative_to(package)) for path in files]
    return {
        f"{package.name}/{name.as_posix()}": file_digest(path)
        for path, name in names
        if name.parts[0] != "configs"
    }
