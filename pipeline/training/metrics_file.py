"""metrics.csv: one line per logged number; a resumed run appends to it."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from pipeline.errors import StorageError
from pipeline.files.writing import csv_cell, flush_path, write_atomically
from pipeline.training.metrics_rows import read_metrics, warn
from pipeline.training.run_folder import mark_as_damaged

HEADER = "step,name,value\n"


class MetricsFile(Logger):
    """Lightning logger that writes `metrics.csv`, one line `step,name,value` per number.

    The first row replaces an older file, unless `keep` has kept rows of it.

    Args:
        path: Path of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._rows: int | None = None

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
        """Append the metrics of a step.

        Raises:
            StorageError: If the disk is full or fails.
        """
        rows = [
            (step, csv_cell(name), repr(float(value)))
            for name, value in sorted(metrics.items())
            if name != "epoch"
        ]
        self._begin()
        try:
            with self.path.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)
        except OSError as error:
            raise _cannot_be_written(self.path, error) from error
        self._rows = (self._rows or 0) + len(rows)

    def flush(self) -> dict[str, Any]:
        """Wait until all rows are on the disk; to be called before a state is saved.

        A file that something else has changed meanwhile gives a warning, and counts as it is.

        Returns:
            What `keep` needs to find these rows again: their number, and the file's SHA-256.

        Raises:
            StorageError: If the disk fails.
        """
        self._begin()
        try:
            flush_path(self.path)
            content = self.path.read_bytes()
        except OSError as error:
            raise _cannot_be_written(self.path, error) from error
        found = max(0, content.count(b"\n") - 1)
        if found != self._rows:
            warn(self.path, f"has {found} rows, and this run wrote {self._rows}; it was changed")
            self._rows = found
        return {"rows": found, "sha256": hashlib.sha256(content).hexdigest()}

    def finalize(self, status: str) -> None:
        """Wait until the rows are on the disk, when a training or an evaluation has succeeded."""
        if status == "success" and self._rows:
            self.flush()

    def keep(self, flushed: Mapping[str, Any], step: int) -> int:
        """Keep the rows that were there when a state was saved; the run writes later ones again.

        If they are not as they were, the readable ones of earlier steps are kept, the file is
        renamed to metrics.csv.bad, and a warning tells what is lost.

        Args:
            flushed: What `flush` returned when the state was saved.
            step: Step of the state.

        Returns:
            Number of lost rows.
        """
        expected = self._rows = flushed["rows"]
        content = self.path.read_bytes() if self.path.exists() else b""
        later = content.split(b"\n", 1 + expected)[-1]
        whole = content[: len(content) - len(later)]
        if hashlib.sha256(whole).hexdigest() == flushed["sha256"]:
            if later:
                write_atomically(self.path, lambda file: file.write(whole))
            return 0
        rows = [row for row in read_metrics(self.path) if row[0] < step][:expected]
        self._rows, lost = len(rows), expected - len(rows)
        mark_as_damaged(self.path)
        _write_rows(self.path, rows)
        problem = f"was changed after step {step} was saved; numbers in it may be wrong"
        if lost:
            problem = f"{lost} of {expected} rows before step {step} are lost, {len(rows)} are kept"
        warn(self.path, f"{problem}; the file as it was found is {self.path.name}.bad")
        return lost

    def _begin(self) -> None:
        """Begin an empty file before the first row, unless rows were kept."""
        if self._rows is None:
            _write_rows(self.path, [])
            self._rows = 0


def _write_rows(path: Path, rows: list[tuple[int, str, float]]) -> None:
    """Write a file with these rows."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        (step, name, repr(value)) for step, name, value in rows
    )
    write_atomically(path, lambda file: file.write((HEADER + text.getvalue()).encode()))


def _cannot_be_written(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path}: cannot be written ({error.strerror}); free disk space or choose "
        "another disk, and run the same command again"
    )


def finite_or_none(value: Any) -> float | None:
    """A logged value as a number for JSON; None if it is not finite."""
    number = float(value)
    return number if math.isfinite(number) else None
