"""Regular files read within a size limit, and names that stay inside their folder."""

from __future__ import annotations

import stat
from pathlib import Path

from pipeline.errors import DataError

MAX_BYTES = 256 * 2**20
"""Largest file that is read, unless a reader gives another limit."""


def safe_relative_name(name: str, place: str) -> str:
    """The name of an image in a data set, checked to stay inside the folder of the data set.

    Args:
        name: Name of the image, relative to the folder.
        place: File that has the name, for the error message.

    Raises:
        DataError: If the name leads out of the folder.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise DataError(f"{place} {name[:60]!r} leads out of the folder")
    return name


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Content of a regular file.

    Raises:
        DataError: If it is missing, empty, a folder, a pipe or a device, or larger than `limit`
            bytes.
    """
    try:
        state = path.stat()
        if stat.S_ISDIR(state.st_mode):
            raise DataError(f"{path}: is a directory; name a file")
        if not stat.S_ISREG(state.st_mode):
            raise DataError(f"{path}: is not a regular file; name a file on disk")
        if not state.st_size:
            raise DataError(f"{path}: is empty; fetch it again")
        if state.st_size > limit:
            raise DataError(f"{path}: {state.st_size} bytes are more than the limit of {limit}")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path}: not found; see docs/data.md for what the folder must hold"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from None
    except ValueError as error:
        raise DataError(f"{str(path)!r}: is no file name ({error})") from None
