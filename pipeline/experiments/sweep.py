"""`heatlift sweep FILE`: every point of a W&B sweep as a run of its own, without an account."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import itertools
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from pipeline.cli import launch
from pipeline.cli.configs import find_config, read_yaml, resolve_configs
from pipeline.cli.stages import STAGES
from pipeline.errors import HeatliftError, StorageError, UsageError
from pipeline.files.writing import write_atomically
from pipeline.training.console import print_line
from pipeline.training.metrics_file import read_metrics
from pipeline.training.run_folder import FINISHED, read_state

STOPPED = (130, 143)
"""Exit codes of runs that a signal ended: the sweep ends with them."""


class PointError(HeatliftError):
    """Points of a sweep have no result, each with a line of its own before."""

    def __init__(self, missing: int, code: int) -> None:
        super().__init__(f"{missing} point(s) without a result; the same command tries again")
        self.exit_code = code


@dataclass(frozen=True)
class Sweep:
    """What a sweep file holds.

    Args:
        stem: Name of the file, which runs and table get.
        stage: Which stage trains.
        words: Of the command line behind the stage; `${args}` stands for those of a point.
        parameters: Option -> its values.
        metric: What is compared.
        goal: min or max: how a better value differs.
    """

    stem: str
    stage: str
    words: tuple[str, ...]
    parameters: Mapping[str, tuple[Any, ...]]
    metric: str
    goal: str

    def points(self) -> list[dict[str, Any]]:
        """Every combination of values; the last parameter changes fastest."""
        names = list(self.parameters)
        return [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*self.parameters.values())
        ]

    def line(self, point: Mapping[str, Any], also: Sequence[str] = ()) -> list[str]:
        """The command line of a point, without a name."""
        options = [f"--{name}={format_value(value)}" for name, value in point.items()]
        words = [o for word in self.words for o in (options if word == "${args}" else [word])]
        return [*words, *also]

    def name(self, point: Mapping[str, Any], line: Sequence[str]) -> str:
        """Name of a point's run: readable, and another one for other words or configs."""
        label = "-".join(
            f"{name.rpartition('.')[2]}-{shorten_value(value)}"
            for name, value in point.items()
            if len(self.parameters[name]) > 1
        )
        configs = [
            Path(path).read_text()
            for word, path in itertools.pairwise(resolve_configs(line))
            if word == "-c"
        ]
        digest = hashlib.sha256(json.dumps([*line, *configs]).encode()).hexdigest()[:6]
        readable = re.sub(r"[^\w.]+", "-", label).strip("-.")[:80]
        return "-".join(part for part in (self.stem, readable, digest) if part)


def format_value(value: Any) -> str:
    """A value as an option takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def shorten_value(value: Any) -> str:
    """A value as a table shows it: of classes the last word and what they are made with.

    >>> shorten_value('{"class_path": "pipeline.lift.Martinez", "init_args": {"blocks": 4}}')
    'Martinez blocks=4'
    """
    try:
        made = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        made = value
    if not isinstance(made, dict):
        return format_value(value)
    words = [str(made.get("class_path", "")).rpartition(".")[2]]
    for name, inner in made.get("init_args", {}).items():
        for one in inner if isinstance(inner, list) else [inner]:
            words.append(
                shorten_value(one) if isinstance(one, dict) else f"{name}={format_value(one)}"
            )
    return " ".join(words)


def read_sweep(path: Path) -> Sweep:
    """A sweep file as W&B takes it: `command`, `method`, `metric` and `parameters`.

    Raises:
        UsageError: If something is missing, or the method is not `grid`: others need W&B.
    """
    content = read_yaml(path)
    missing = {"command", "method", "metric", "parameters"} - set(content)
    if missing:
        raise UsageError(f"{path}: is no sweep; it has no {', '.join(sorted(missing))}")
    if content["method"] != "grid":
        raise UsageError(
            f"{path}: method is {content['method']!r}; here only `grid` is run, others by "
            "`wandb sweep` and `wandb agent`"
        )
    command, metric, spreads = (content[key] for key in ("command", "metric", "parameters"))
    words = [str(word) for word in command] if isinstance(command, list) else []
    if "pipeline" not in words or "${args}" not in words:
        raise UsageError(f"{path}: the command must list `pipeline`, a stage and `${{args}}`")
    stage, *rest = [*words[words.index("pipeline") + 1 :], ""]
    if stage not in STAGES:
        raise UsageError(f"{path}: {stage} is no stage; there are {', '.join(STAGES)}")
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise UsageError(f"{path}: metric has no `name`")
    if not isinstance(spreads, dict):
        raise UsageError(f"{path}: parameters are {spreads!r}; give options with their values")
    parameters = {}
    for name, spread in spreads.items():
        if not isinstance(spread, dict) or not {"value", "values"} & spread.keys():
            raise UsageError(f"{path}: parameter {name} has neither `value` nor `values`")
        values = spread["values"] if "values" in spread else [spread["value"]]
        if not isinstance(values, list) or not values:
            raise UsageError(f"{path}: values of parameter {name} are {values!r}; give a list")
        parameters[str(name)] = tuple(values)
    goal = "max" if metric.get("goal") == "maximize" else "min"
    return Sweep(path.stem, stage, tuple(rest[:-1]), parameters, metric["name"], goal)


def sweep(file: str, also: str = "", runs: str = "runs") -> None:
    """Train every point of a sweep as a run of its own and print a table.

    Finished points are kept, a stopped one goes on where it was, and one that another process
    trains is left to it. The table is also in `RUNS/sweeps/NAME.csv`, written after each point.

    Args:
        file: A sweep of W&B's with method grid: a path, or a name such as sweeps/paper003_frames.
        also: More words for every run, as one: --also="--trainer.max_epochs=2 -c data/mocap".
        runs: Folder of all runs.

    Raises:
        UsageError: If the file is no such sweep.
        PointError: If a point has no result; those after it were trained nevertheless.
    """
    found = read_sweep(find_config(file))
    points, codes = found.points(), []
    for number, point in enumerate(points, start=1):
        line = found.line(point, shlex.split(also))
        name = found.name(point, line)
        folder = Path(runs) / found.stage
        if _finished(folder, name) is None:
            print_line(f"sweep {found.stem}: {number} of {len(points)}, {name}")
            words = [*line, "--runs", runs, "--group", found.stem]
            code = _train(found.stage, name, words, folder)
            if code in STOPPED:
                raise SystemExit(code)
            codes += [code] if code else []
        _write(found, points, shlex.split(also), Path(runs))
    print_line(_table(found, points, shlex.split(also), Path(runs)))
    names = [found.name(point, found.line(point, shlex.split(also))) for point in points]
    missing = sum(_finished(Path(runs) / found.stage, name) is None for name in names)
    if missing:
        raise PointError(missing, codes[0] if codes else 1)


def _train(stage: str, name: str, words: Sequence[str], folder: Path) -> int:
    """Train a point, unless another process does; exit code."""
    for lock in folder.glob(f"{glob.escape(name)}*/.lock"):
        try:
            with filelock.FileLock(lock, timeout=0):
                pass
        except filelock.Timeout:
            print_line(
                f"  {lock.parent}: another process trains this point; it is left to that one"
            )
            return StorageError.exit_code
    return launch.run_stage(stage, [*words, "--name", name])


def _finished(folder: Path, name: str) -> Path | None:
    """Folder of the point's run that finished last, which NAME-2, NAME-3 … may be."""
    found = {
        path.parent: state.get("finished", 0.0)
        for path in folder.glob(f"{glob.escape(name)}*/run.json")
        if (state := read_state(path.parent)) and state.get("state") == FINISHED
    }
    return max(found, key=lambda folder: found[folder]) if found else None


def _rows(
    found: Sweep, points: Sequence[Mapping[str, Any]], also: Sequence[str], runs: Path
) -> list[list[str]]:
    """Head and lines: values, best validation, test, minutes and name of each run."""
    test = found.metric.replace("val/", "test/")
    varied = [name for name, values in found.parameters.items() if len(values) > 1]
    rows = [[name.rpartition(".")[2] for name in varied] + [found.metric, test, "minutes", "run"]]
    for point in points:
        name = found.name(point, found.line(point, also))
        finished = _finished(runs / found.stage, name)
        folder = finished or runs / found.stage / name
        state = read_state(folder) or {}
        values = [
            v for _, metric, v in read_metrics(folder / "metrics.csv") if metric == found.metric
        ]
        best = (max if found.goal == "max" else min)(values) if values else None
        tested = (state.get("numbers") or {}).get(test) if finished else None
        took = state["seconds"] / 60 if finished else None
        numbers = ["-" if number is None else f"{number:.4g}" for number in (best, tested, took)]
        rows.append([shorten_value(point[name]) for name in varied] + [*numbers, folder.name])
    return rows


def _write(
    found: Sweep, points: Sequence[Mapping[str, Any]], also: Sequence[str], runs: Path
) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(_rows(found, points, also, runs))
    path = runs / "sweeps" / f"{found.stem}.csv"
    write_atomically(path, lambda handle: handle.write(text.getvalue().encode()))


def _table(
    found: Sweep, points: Sequence[Mapping[str, Any]], also: Sequence[str], runs: Path
) -> str:
    rows = _rows(found, points, also, runs)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)
