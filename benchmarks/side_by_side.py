"""Timing two implementations in turns in one process, for the scripts in this folder."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
"""Settings of glibc's allocator; without them, ratios depend on what ran before."""


def restart_with_allocator() -> None:
    """Start the script again with `ALLOCATOR` and one thread, if it does not run so already."""
    wanted = ALLOCATOR | {"OMP_NUM_THREADS": "1"}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)


@dataclass(frozen=True)
class Comparison:
    """Processor times of two implementations, one pair per round.

    Args:
        ours: Seconds of Heatlift's.
        other: Seconds of the one it is compared with.
    """

    ours: list[float]
    other: list[float]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of other / ours, round by round."""
        ratios = [other / ours for ours, other in zip(self.ours, self.other, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, middle, high

    def text(self) -> str:
        """Median times and the ratio with its quartiles; above 1 Heatlift is faster."""
        low, middle, high = self.quartiles
        ours, other = (1e3 * statistics.median(times) for times in (self.ours, self.other))
        return f"{other:9.2f} ms -> {ours:9.2f} ms  ratio {middle:6.2f} ({low:.2f} to {high:.2f})"


def compare(
    ours: Callable[[], Any],
    other: Callable[[], Any],
    rounds: int,
    *,
    repeats: int = 1,
    warm_up: int = 1,
) -> Comparison:
    """Time two functions in the order A B, B A, A B, …, in processor time of this process.

    Args:
        ours: Heatlift's implementation.
        other: The implementation it is compared with.
        rounds: Number of measured pairs, at least 2.
        repeats: Calls that are timed together.
        warm_up: Pairs before the first measured one.
    """
    functions = ours, other
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(-warm_up, rounds):
        for k in (0, 1) if number % 2 == 0 else (1, 0):
            start = time.process_time()
            for _ in range(repeats):
                functions[k]()
            if number >= 0:
                seconds[k].append((time.process_time() - start) / repeats)
    return Comparison(*seconds)
