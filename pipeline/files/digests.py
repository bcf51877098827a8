"""SHA-256 digests of files and folders."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of all files of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{file_digest(path)} {path.relative_to(folder)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
