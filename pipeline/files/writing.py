"""Files and folders written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import hashlib
import io
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import StorageError, printable

_FORMULA_STARTS = frozenset("=+-@\uff1d\uff0b\uff0d\uff20")
"""First characters of a formula in spreadsheets; full-width ones count in some languages."""

_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?(inf|nan)").fullmatch

WRITER = r"(?:(?P<machine>[0-9a-f]{8}-[0-9a-f]{8}-\d*)-(?P<start>\d*)-)?(?P<pid>\d+)"
"""Pattern of the writer in a temporary name: host, boot and process namespace, start time and id of
the process. Until version 0.3 it was the id alone."""

FOREIGN_SECONDS = 86400.0
"""Age from which the unfinished file of a process that cannot be looked up is a leftover."""


def write_atomically(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file so that it is there whole or not at all.

    Args:
        path: The final name. An older file under it stays until the new one is on the disk.
        write: Called with an open binary file.

    Raises:
        StorageError: If the file cannot be written; the older file is untouched and nothing partial
            is left.
    """
    with storage_errors(path, write):
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
    with storage_errors(path):
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
        ending: Last part of the temporary name `.NAME.WRITER.ENDING`.

    Yields:
        The temporary path, where nothing exists yet.

    Raises:
        OSError: If the content cannot be written or renamed, or if a folder that somebody else made
            has the temporary name.
    """
    temporary = path.with_name(f".{path.name}.{writer_name()}.{ending}")
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
    """Remove the unfinished files of processes that no longer run.

    Files of another machine or container, whose processes cannot be looked up, go after a day; so
    do those with an old name whose id belongs to a process of this machine by chance.
    """
    for part in folder.glob(".*.part"):
        writer = re.fullmatch(WRITER, part.name.split(".")[-2])
        if writer and not _may_run(writer, part):
            part.unlink(missing_ok=True)


def _may_run(writer: re.Match[str], part: Path) -> bool:
    """Whether the process that writes a file runs, or may run where it cannot be looked up."""
    start_time = process_start_time(int(writer["pid"]))
    here = machine_name()
    machine = writer["machine"] or here
    if machine == here:
        if not start_time and Path("/proc").exists():
            return False
        if writer["machine"]:
            return start_time == writer["start"]
    elif (
        machine.split("-")[0] == here.split("-")[0] and machine.split("-")[1] != here.split("-")[1]
    ):
        return False  # this machine was started again
    try:
        return time.time() - part.stat().st_mtime < FOREIGN_SECONDS
    except OSError:  # finished meanwhile
        return True


def writer_name() -> str:
    """Name of this process that no process of another machine, container or time has."""
    pid = os.getpid()
    return f"{machine_name()}-{process_start_time(pid)}-{pid}"


@functools.cache
def machine_name() -> str:
    """Host, boot and process namespace of this process: digests of the first two, and a number."""
    boot, namespace = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = "".join(filter(str.isdigit, str(Path("/proc/self/ns/pid").readlink())))
    digests = [
        hashlib.sha256(text.encode()).hexdigest()[:8] for text in (socket.gethostname(), boot)
    ]
    return "-".join([*digests, namespace])


def process_start_time(pid: int) -> str:
    """Start time of a process of this machine in clock ticks since boot; "" if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19]
    except OSError:
        return ""


def format_bytes(size: float) -> str:
    """A number of bytes with its unit.

    >>> format_bytes(312_400_000)
    '312 MB'
    """
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size:.3g} {units[0]}"


class _Counter(io.RawIOBase):
    """A file that only counts the bytes written to it."""

    count = 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        size = memoryview(content).nbytes
        self.count += size
        return size


@contextlib.contextmanager
def storage_errors(path: Path, write: Callable[[Any], object] | None = None) -> Iterator[None]:
    """Raise errors of the disk as one line that names the file.

    Args:
        path: The file.
        write: Writes its content once more, to count what is needed where the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = _disk_error(error)
        if cause is None:
            raise
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            reason, hint = _full_disk(path, cause, write), "free disk space"
        else:
            reason = f"cannot be written ({cause.strerror or cause})"
            hint = "free disk space, change the permissions"
        raise StorageError(
            f"{path}: {reason}; {hint} or choose another folder. "
            "The file that was there before is untouched"
        ) from error


def _disk_error(error: BaseException | None) -> OSError | None:
    """The OSError that an error is or follows: torch's writer raises a RuntimeError after it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _full_disk(path: Path, error: OSError, write: Callable[[Any], object] | None) -> str:
    """Text about a full disk: what is needed and what is free."""
    parts = []
    with contextlib.suppress(Exception), _Counter() as counter:
        if write is not None:
            write(counter)
            parts.append(f"needs {format_bytes(counter.count)}")
    with contextlib.suppress(OSError):
        parts.append(f"{format_bytes(shutil.disk_usage(path.parent).free)} free")
    quota = " for your quota" if error.errno == errno.EDQUOT else ""
    return ": ".join(["disk full" + quota, *([", ".join(parts)] if parts else [])])
