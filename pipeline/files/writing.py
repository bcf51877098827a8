"""Files and folders written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import StorageError, printable

_FORMULA_STARTS = frozenset("=+-@\uff1d\uff0b\uff0d\uff20")
"""First characters of a formula in spreadsheets; full-width ones count in some languages."""

_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?(inf|nan)").fullmatch


def write_atomically(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file so that it is there whole or not at all.

    Args:
        path: The final name. An older file under it stays until the new one is on the disk.
        write: Called with an open binary file.

    Raises:
        StorageError: If the file cannot be written; the older file is untouched and nothing partial
            is left.
    """
    # torch's writer raises RuntimeError when the disk is full
    with _storage_errors(path, OSError, RuntimeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_replacement(path) as temporary, temporary.open("wb") as file:
            write(file)


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a table as a CSV file that a spreadsheet can open; see `csv_cell`.

    Raises:
        StorageError: If the file cannot be written; the older file is untouched.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([csv_cell(cell) for cell in row] for row in rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def csv_cell(cell: object) -> object:
    """A cell of a CSV file: text that a spreadsheet would run as a formula gets an apostrophe.

    Numbers stay as they are, also negative ones and those that are given as text; control
    characters and line ends are escaped.

    >>> [csv_cell(cell) for cell in ("=2+3", "-12.5", -12.5, "-", "walk")]
    ["'=2+3", '-12.5', -12.5, '-', 'walk']
    """
    if cell is None or isinstance(cell, int | float):
        return cell
    text = printable(cell)
    is_number = text == "-" or _NUMBER(text)
    return f"'{text}" if text.lstrip()[:1] in _FORMULA_STARTS and not is_number else text


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path for writers that need a name: it replaces `path` if the block succeeds.

    Args:
        path: The file to write; its folder is made.

    Yields:
        Path of an empty file in the same folder.

    Raises:
        StorageError: If the file cannot be written; the older file is untouched and nothing partial
            is left.
    """
    with _storage_errors(path, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_replacement(path) as temporary:
            temporary.touch()
            yield temporary


@contextlib.contextmanager
def atomic_replacement(path: Path, ending: str = "part") -> Iterator[Path]:
    """A temporary path beside `path`; the file or folder written there replaces `path`.

    When the block ends without an error, the new content is flushed to the disk, renamed to `path`
    in one step, and the rename is flushed, too. Otherwise the new content is removed and `path`
    stays as it was. Files inside a new folder are flushed by the block (`flush_path`).

    Args:
        path: The final name; its folder exists. A new folder replaces nothing but an empty folder.
        ending: Last part of the temporary name `.NAME.PID.ENDING`.

    Yields:
        The temporary path, where nothing exists yet.

    Raises:
        OSError: If the content cannot be written or renamed, or if a folder that somebody else made
            has the temporary name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{ending}")
    if temporary.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(temporary))
    try:
        yield temporary
        flush_path(temporary)
        temporary.replace(path)
        flush_path(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_path(temporary)
        raise


def flush_path(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_path(path: Path) -> None:
    """Remove a folder with its content, or a file or link itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of processes that no longer run."""
    for part in folder.glob(".*.part"):
        pid = part.name.split(".")[-2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def _storage_errors(path: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Raise errors of these kinds as one line that names the file."""
    try:
        yield
    except kinds as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"{path}: cannot be written ({reason}); free disk space, change the permissions or "
            "choose another folder. The file that was there before is untouched"
        ) from error
