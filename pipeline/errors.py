"""Exceptions for the user: one class per exit code, each printed as one line."""

from __future__ import annotations

import sys


class HeatliftError(Exception):
    """An error that the user can fix; the text names the file, the problem and what to do.

    The command prints it as one line, `heatlift: error: <text>`, and exits with `exit_code`.
    """

    exit_code = 1


class UsageError(HeatliftError):
    """A command line or configuration that cannot be run."""

    exit_code = 2


class NonFiniteError(HeatliftError):
    """A loss, gradient, weight or metric that is not finite."""

    exit_code = 3


class DataError(HeatliftError):
    """A file that is missing, damaged or has the wrong content."""

    exit_code = 4


class StorageError(HeatliftError):
    """A file or folder that cannot be written, because of the disk, a lock or permissions."""

    exit_code = 5


class ProcessLostError(HeatliftError):
    """A process of a distributed run died or stopped answering."""

    exit_code = 6


def print_error(message: str, code: int) -> int:
    """Print an error as one line on stderr and return its exit code."""
    sys.stderr.write(f"heatlift: error: {' '.join(message.split())}\n")
    sys.stderr.flush()
    return code
