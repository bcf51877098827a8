"""Exceptions for the user: one class per exit code, each printed as one line."""

from __future__ import annotations

import re
import sys
import unicodedata

_ESCAPED_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories of control, format (also bidi overrides), surrogate and line characters."""

_JOINERS = "\u200c\u200d"
"""Format characters that names in Persian and emojis need."""


def printable(text: object, *, keep: str = "") -> str:
    r"""Text for a terminal, a log or a page: characters that control it are shown as escapes.

    These are control characters, line ends, bidi overrides and other format characters, and bytes
    of file names that are no text. So a name inside data cannot forge or hide a line.

    Args:
        text: Text, or what has one.
        keep: Characters that stay, such as the line ends of a table.

    >>> print(printable("walk\x1b[2J\nheatlift: error: none"))
    walk\x1b[2J\nheatlift: error: none
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _ESCAPED_CATEGORIES
        and character not in _JOINERS
        and character not in keep
        else character
        for character in text
    )


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


_SECRETS = (
    (re.compile(r"(?<=://)[^/@\s]+@"), "***@"),
    (
        re.compile(
            r"(?i)((?:(?:^|[?&;_\s-])(?:api_?key|access_?key|token|secret|password|passwd)"
            r"|[?&](?:key|sig|signature|credential))=)[^&;\s'\"]+"
        ),
        r"\1***",
    ),
)
"""Keys and passwords in addresses and paths: `user:word@host`, `?token=word`, `api_key=word`."""


def mask_secrets(text: str) -> str:
    """Replace keys and passwords in a text by `***`, before it is printed or written.

    >>> mask_secrets("https://me:word@host/x?token=abc&step=3 api_key=7")
    'https://***@host/x?token=***&step=3 api_key=***'
    """
    for pattern, masked in _SECRETS:
        text = pattern.sub(masked, text)
    return text


def print_error(message: str, code: int) -> int:
    """Print an error as one line on stderr, see `printable`, and return its exit code."""
    line = printable(mask_secrets(" ".join(message.split())))
    sys.stderr.write(f"heatlift: error: {line}\n")
    sys.stderr.flush()
    return code
