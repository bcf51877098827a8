"""Lines, durations and progress bars on the terminal."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

from pipeline.errors import mask_secrets, printable
from pipeline.training import processes

LINE_INTERVAL = 10.0
"""Seconds between two progress lines of `count_progress` where there is no terminal."""


def format_duration(seconds: float) -> str:
    """Format a duration as text: `8 s`, `3 min`, `2 h 10 min`.

    >>> format_duration(8.2), format_duration(170), format_duration(7800)
    ('8 s', '3 min', '2 h 10 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def print_line(line: str) -> None:
    """Print one line on stdout, on rank 0 only; see `printable`."""
    if processes.is_rank_zero():
        sys.stdout.write(printable(mask_secrets(line)) + "\n")
        sys.stdout.flush()


def print_text(text: str) -> None:
    """Print lines on stdout, on rank 0 only; whoever makes the lines escapes their line ends."""
    if processes.is_rank_zero():
        sys.stdout.write(printable(mask_secrets(text), keep="\n") + "\n")
        sys.stdout.flush()


def print_status(line: str) -> None:
    """Print a line about the progress of a command on stderr, separate from its results."""
    sys.stderr.write(printable(mask_secrets(line)) + "\n")
    sys.stderr.flush()


def escape_log_records() -> None:
    """Let every record of Python's logging be one line; see `printable`."""
    make_record = logging.getLogRecordFactory()
    if getattr(make_record, "escapes", False):
        return

    def make_escaped_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        if record.name.partition(".")[0] == "pipeline":
            record.msg, record.args = printable(record.getMessage()), ()
        return record

    make_escaped_record.escapes = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_escaped_record)


Item = TypeVar("Item")


def progress_bar(items: Collection[Item], what: str) -> Iterator[Item]:
    """Iterate over items; on a terminal, show a progress bar on stderr.

    Args:
        items: Items to iterate over.
        what: Name of the file or part that is read.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track

    console = Console(stderr=True)
    title = escape(printable(f"reading {what} once"))
    yield from track(items, title, console=console, transient=True)


@contextlib.contextmanager
def count_progress(
    name: str, total: int, unit: str, *, shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show on stderr how much of a long task is done.

    On a terminal this is a progress bar, otherwise a line about every 10 s. The first line comes
    after the first batch if more than 10 s are left.

    Args:
        name: Name of the task.
        total: Number of items in the task.
        unit: Name of the items in the plural, for example "images".
        shown: Whether to show anything; false on all ranks but one.

    Yields:
        A function to call with the number of items that were done since the last call.
    """
    if not shown or not total:
        yield lambda done: None
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(escape(printable(name)), total=total)
            yield lambda done: bar.advance(task, done)
        return
    start = last_line = time.monotonic()
    count = 0

    def advance(done: int) -> None:
        nonlocal last_line, count
        is_first = count == 0
        count = min(count + done, total)
        now = time.monotonic()
        left = (total - count) * (now - start) / count
        if now - last_line > LINE_INTERVAL or (is_first and left > LINE_INTERVAL):
            last_line = now
            print_status(
                f"{name}: {count:,} of {total:,} {unit}, about {format_duration(left)} left"
            )

    yield advance
