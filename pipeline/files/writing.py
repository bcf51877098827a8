"""Files and folders written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import StorageError


def fsync_folder(folder: Path) -> None:
    """Make renames inside a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Any) -> None:
    """Write a file so that it is there whole or not at all.

    Args:
        path: The final name. An older file under it stays until the new one is on the disk.
        write: Called with an open binary file.

    Raises:
        StorageError: If the disk refuses; the older file is untouched and nothing partial is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        fsync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer turns ENOSPC into RuntimeError
        part.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: cannot be written ({error}); make room or choose another folder. "
            "The file that was there before is untouched"
        ) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of processes that no longer live."""
    for part in folder.glob(".*.part"):
        pid = part.name.split(".")[-2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, else goes.

    Args:
        path: The file to write; its folder is made.

    Yields:
        Where to write: an empty file.

    Raises:
        StorageError: If the folder takes no file, or the file cannot be put in place.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")  # `checkpoint.sweep` finds it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); make room, or let this user "
            "write to the folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
