"""SHA-256 digests of bytes, files and folders."""

from __future__ import annotations

import hashlib
from io import BufferedReader
from pathlib import Path


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


def folder_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of all files of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{file_digest(path)} {path.relative_to(folder)}" for path in files]
    return bytes_digest("\n".join(lines).encode())
