"""Marks: the list of files that the cache wrote into a folder; nothing else is ever removed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pipeline.files.writing import flush_path

MARK = "heatlift.txt"
"""Name of the file that marks a folder of the cache."""

_FIRST_LINE = "Made by Heatlift. Its cache removes these files and no others:"
_MAX_MARK_BYTES = 2**24


def mark_content(names: Iterable[str]) -> bytes:
    """Content of the mark of a folder with these files, always with the same bytes."""
    return "".join(f"{line}\n" for line in (_FIRST_LINE, *sorted(names))).encode("ascii")


def write_mark(folder: Path, names: Iterable[str] = ()) -> None:
    """Mark a folder, flushed to the disk, before its files are written.

    Raises:
        OSError: If it cannot be written.
    """
    (folder / MARK).write_bytes(mark_content(names))
    flush_path(folder / MARK)


def add_to_mark(folder: Path, name: str) -> None:
    """Add a file to the mark of a folder before it is written; several processes may do it.

    Raises:
        OSError: If it cannot be written.
    """
    with (folder / MARK).open("ab", buffering=0) as file:
        file.write(f"{name}\n".encode("ascii"))


def marked_files(folder: Path) -> set[str]:
    """Names that the mark of a folder lists, with the mark; empty if it has no readable mark."""
    try:
        descriptor = os.open(folder / MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            first, *names = file.read(_MAX_MARK_BYTES).decode("ascii").splitlines()
    except (OSError, ValueError):
        return set()
    return {MARK, *names} if first == _FIRST_LINE else set()


def remove_marked(folder: Path, marked: set[str], *, last: str = MARK) -> list[str]:
    """Remove a folder if all in it is marked; an empty folder is removed, too.

    Args:
        folder: The folder; it may be missing.
        marked: Names of the files that may be removed; their unfinished copies, `.NAME.PID.tmp`,
            may be, too.
        last: File that is removed last, so that an interrupted removal can be repeated.

    Returns:
        Names of the other things; if there are any, nothing was removed.

    Raises:
        OSError: If a file cannot be removed.
    """
    if not os.path.lexists(folder):
        return []
    if folder.is_symlink() or not folder.is_dir():
        return [folder.name]
    with os.scandir(folder) as members:
        found = {member.name: member.is_file(follow_symlinks=False) for member in members}
    foreign = [
        name
        for name, is_file in found.items()
        if not (is_file and (name in marked or _finished_name(name) in marked))
    ]
    if not foreign:
        for name in sorted(found, key=lambda name: (name == MARK, name == last)):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    return sorted(foreign)


def _finished_name(name: str) -> str:
    """NAME of an unfinished file `.NAME.PID.tmp`; empty for other names."""
    owner, _, pid = name.removesuffix(".tmp").rpartition(".")
    is_temporary = name.startswith(".") and name.endswith(".tmp") and pid.isdecimal()
    return owner.removeprefix(".") if is_temporary else ""
