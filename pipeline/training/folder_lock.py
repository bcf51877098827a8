"""The lock of a run folder: it holds the folder itself, so that a deleted file lets nobody in."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

import filelock

from pipeline.errors import StorageError


class FolderLock:
    """Keeps other processes out of a folder, by a kernel lock that ends with this process.

    The file `.lock` is locked, and the folder itself. Who deletes `.lock` in the middle of a run
    opens the folder to nobody: the lock of the folder stays. Disks of a network often cannot lock a
    folder; there `check` finds out that another process has taken a new `.lock`.

    Args:
        folder: The folder; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = filelock.FileLock(folder / ".lock")
        self._descriptor = -1
        self._held: tuple[int, int] | None = None

    def acquire(self, timeout: float) -> bool:
        """Take the lock.

        Args:
            timeout: Seconds to wait for another process.

        Returns:
            Whether this process has the lock.
        """
        end = time.monotonic() + timeout
        try:
            self._file.acquire(timeout=timeout)
        except filelock.Timeout:
            return False
        self._descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    self.release()
                    return False
                time.sleep(0.02)
            except OSError:  # this disk cannot lock folders
                self._held = identity(self.folder / ".lock")
                return True
            else:
                return True

    def check(self) -> None:
        """Check that no other process has come in.

        Raises:
            StorageError: If another process works in the folder.
        """
        if self._held and identity(self.folder / ".lock") not in (None, self._held):
            raise StorageError(
                f"{self.folder}: its file .lock was deleted, and another process works there now; "
                "this one stops"
            )

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = -1
        with contextlib.suppress(OSError):
            self._file.release()


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file or folder; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
