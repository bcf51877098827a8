"""Lines and progress bars for people."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from typing import TypeVar

from lightning.fabric.utilities.rank_zero import rank_zero_only


def format_duration(seconds: float) -> str:
    """A time for people: `8 s`, `3 min`, `2 h 10 min`.

    >>> format_duration(8.2), format_duration(170), format_duration(7800)
    ('8 s', '3 min', '2 h 10 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@rank_zero_only
def print_line(line: str) -> None:
    """A line on the terminal, from the first process alone."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


Item = TypeVar("Item")


def progress_bar(items: Collection[Item], what: str) -> Iterator[Item]:
    """The items one by one, with a bar on a terminal while they are worked on.

    Args:
        items: What is read.
        what: Of which file they are.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    bar = Console(stderr=True)
    yield from track(items, f"reading {what} once", console=bar, transient=True)
