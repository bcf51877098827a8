"""metrics.csv: one line per number, appended to by resumed runs."""

from __future__ import annotations

import csv
import functools
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from pipeline.files import digests
from pipeline.files.writing import write_atomically
from pipeline.training.run_folder import read_state


class MetricsFile(Logger):
    """`metrics.csv`: one line per number, step,name,value; appended to, also by a resumed run.

    Args:
        path: Of the file.
        after: Lines of steps behind this one are dropped first, because a resumed run writes them
            again; -1 drops all.
    """

    def __init__(self, path: Path, after: int) -> None:
        super().__init__()
        self.path = path
        self._after = after
        self._ready = False

    @property
    def name(self) -> str:
        """Of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """Of the logger."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: run.json has the settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append numbers."""
        self._prepare()
        with self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                (step, name, repr(float(value)))
                for name, value in sorted(metrics.items())
                if name != "epoch"
            )

    def _prepare(self) -> None:
        if self._ready:
            return
        self._ready = True
        rows = read_metrics(self.path) if self._after >= 0 else []
        kept = [(step, name, repr(value)) for step, name, value in rows if step <= self._after]

        def write(file: Any) -> None:
            lines = ["step,name,value", *(f"{step},{name},{value}" for step, name, value in kept)]
            file.write(("\n".join(lines) + "\n").encode())

        write_atomically(self.path, write)


def read_metrics(path: Path) -> list[tuple[int, str, float]]:
    """Lines of a metrics.csv: step, name, value; a last line cut short by a crash is left out.

    Lines that cannot be read are left out too, with one warning on stderr; so is said of the file
    of a finished run that is not as that run left it.
    """
    if not path.exists():
        return []
    left = (read_state(path.parent) or {}).get("metrics")
    if left is not None and left != digests.file_digest(path):
        _warn_of_damage(path, "is not as its run left it; numbers in it may be wrong")
    rows, unreadable = [], 0
    for line in path.read_text(errors="replace").splitlines(keepends=True)[1:]:
        step, _, rest = line.partition(",")
        name, _, value = rest.rpartition(",")
        if not line.endswith("\n"):
            continue
        try:
            if not (step.isdecimal() and name) or "\ufffd" in line:
                raise ValueError(line)
            rows.append((int(step), name, float(value)))
        except ValueError:
            unreadable += 1
    if unreadable:
        _warn_of_damage(path, f"{unreadable} damaged line(s) left out")
    return rows


@functools.cache  # a run reads its file more than once
def _warn_of_damage(path: Path, what: str) -> None:
    sys.stderr.write(f"heatlift: warning: {path}: {what}\n")


def finite_or_none(value: Any) -> float | None:
    """A logged value as a number that JSON can hold; none where it is not finite."""
    number = float(value)
    return number if math.isfinite(number) else None
