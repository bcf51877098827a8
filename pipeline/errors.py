"""What goes wrong at the doors: one exception per exit code, each with one line for people."""

from __future__ import annotations

import sys


class HeatliftError(Exception):
    """Something a person can mend: the text names the file, what is wrong and what to do.

    The console prints it as one line, `heatlift: error: <text>`, and exits with `exit_code`.
    """

    exit_code = 1


class UsageError(HeatliftError):
    """A command line or configuration that cannot be run."""

    exit_code = 2


class NumbersError(HeatliftError):
    """A loss, gradient or weight that is no longer finite."""

    exit_code = 3


class DataError(HeatliftError):
    """A file whose content is not what its reader needs."""

    exit_code = 4


class StorageError(HeatliftError):
    """A disk, lock or permission that stands in the way."""

    exit_code = 5


class ProcessLostError(HeatliftError):
    """A process of a distributed run died or stopped answering."""

    exit_code = 6


def print_error(message: str, code: int) -> int:
    """Print one line on stderr and return the exit code."""
    sys.stderr.write(f"heatlift: error: {' '.join(message.split())}\n")
    sys.stderr.flush()
    return code
