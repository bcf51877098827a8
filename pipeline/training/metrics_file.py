"""metrics.csv: one line per logged number; a resumed run appends to it."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from pipeline.files import digests
from pipeline.files.writing import csv_cell, write_atomically
from pipeline.training.console import print_status
from pipeline.training.run_folder import read_state


class MetricsFile(Logger):
    """Lightning logger that writes `metrics.csv`, one line `step,name,value` per number.

    Args:
        path: Path of the file.
        after: Last step to keep of an existing file, because a resumed run writes the later steps
            again; -1 keeps nothing.
    """

    def __init__(self, path: Path, after: int) -> None:
        super().__init__()
        self.path = path
        self._after = after
        self._ready = False

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """Version of the logger; there is none."""
        return ""

    @property
    def save_dir(self) -> str:
        """Run folder."""
        return str(self.path.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing; run.json has the settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append the metrics of a step."""
        self._prepare()
        with self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                (step, csv_cell(name), repr(float(value)))
                for name, value in sorted(metrics.items())
                if name != "epoch"
            )

    def _prepare(self) -> None:
        """Drop the lines of later steps, before the first write."""
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
    """Read the lines of a metrics.csv: step, name, value.

    A last line that is incomplete after a crash is left out. Damaged lines are left out with one
    warning on stderr. There is also a warning if the file of a finished run was changed later.
    """
    if not path.exists():
        return []
    digest = (read_state(path.parent) or {}).get("metrics")
    if digest is not None and digest != digests.file_digest(path):
        _warn_once(path, "was changed after its run finished; numbers in it may be wrong")
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
        _warn_once(path, f"{unreadable} damaged line(s) left out")
    return rows


@functools.cache  # a run reads its file several times
def _warn_once(path: Path, problem: str) -> None:
    print_status(f"heatlift: warning: {path}: {problem}")


def finite_or_none(value: Any) -> float | None:
    """A logged value as a number for JSON; None if it is not finite."""
    number = float(value)
    return number if math.isfinite(number) else None
