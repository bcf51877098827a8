"""Rows of a metrics.csv: read, with warnings about what is damaged; needs no torch."""

from __future__ import annotations

import functools
from pathlib import Path

from pipeline.files import digests
from pipeline.training.console import print_status
from pipeline.training.run_folder import read_state


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


def warn(path: Path, problem: str) -> None:
    """Print a warning about a file."""
    print_status(f"heatlift: warning: {path}: {problem}")


_warn_once = functools.cache(warn)
"""Warns once of a problem, because a run reads its file several times."""
