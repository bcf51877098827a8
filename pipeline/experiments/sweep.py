"""`heatlift sweep`: every combination of a W&B sweep file as a separate run, without an account."""

from __future__ import annotations

import glob
import hashlib
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
from pipeline.cli.arguments import option_values
from pipeline.cli.configs import find_config, read_yaml, resolve_configs
from pipeline.cli.stage_check import check_fit
from pipeline.cli.stages import STAGES
from pipeline.cli.tables import print_table
from pipeline.errors import HeatliftError, StorageError, UsageError
from pipeline.files.writing import write_csv
from pipeline.training.console import print_line
from pipeline.training.metrics_rows import read_metrics
from pipeline.training.run_changes import FINISHED, describe_mixture, finish_order
from pipeline.training.run_folder import read_state


class PointError(HeatliftError):
    """Points of a sweep have no result; an error line of each is printed before.

    Args:
        missing: Number of these points.
        code: Exit code of the first run that failed.
    """

    def __init__(self, missing: int, code: int) -> None:
        super().__init__(
            f"{missing} point(s) without a result; run the same command again to repeat them"
        )
        self.exit_code = code


@dataclass(frozen=True)
class Sweep:
    """Content of a sweep file.

    Args:
        stem: File name without extension; part of the names of the runs and of the table.
        stage: Name of the stage that is trained.
        arguments: Arguments after the stage; `${args}` is replaced by the options of a point.
        parameters: Option -> its values.
        metric: Metric that is compared.
        goal: Whether smaller or larger values of the metric are better: min or max.
    """

    stem: str
    stage: str
    arguments: tuple[str, ...]
    parameters: Mapping[str, tuple[Any, ...]]
    metric: str
    goal: str

    def points(self) -> list[dict[str, Any]]:
        """All combinations of values; the last parameter changes fastest."""
        names = list(self.parameters)
        return [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*self.parameters.values())
        ]

    def run_arguments(self, point: Mapping[str, Any], also: Sequence[str] = ()) -> list[str]:
        """Arguments of the run of a point, without its name.

        Args:
            point: Option -> value.
            also: More arguments.
        """
        options = [f"--{name}={format_value(value)}" for name, value in point.items()]
        arguments = []
        for argument in self.arguments:
            arguments += options if argument == "${args}" else [argument]
        return [*arguments, *also]

    def name(self, point: Mapping[str, Any], arguments: Sequence[str]) -> str:
        """Name of the run of a point: its values, and a digest of arguments and configs.

        Args:
            point: Option -> value.
            arguments: Arguments of the run.
        """
        label = "-".join(
            f"{name.rpartition('.')[2]}-{shorten_value(value)}"
            for name, value in point.items()
            if len(self.parameters[name]) > 1
        )
        paths = option_values(resolve_configs(arguments), "-c")
        configs = [Path(path).read_text() for path in paths]
        digest = hashlib.sha256(json.dumps([*arguments, *configs]).encode()).hexdigest()[:6]
        readable = re.sub(r"[^\w.]+", "-", label).strip("-.")[:80]
        return "-".join(part for part in (self.stem, readable, digest) if part)


def format_value(value: Any) -> str:
    """Format a value for an option of the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def shorten_value(value: Any) -> str:
    """Format a value for a table; of a class, its name and arguments.

    >>> shorten_value('{"class_path": "pipeline.lift.Martinez", "init_args": {"blocks": 4}}')
    'Martinez blocks=4'
    """
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        parsed = value
    if not isinstance(parsed, dict):
        return format_value(value)
    parts = [str(parsed.get("class_path", "")).rpartition(".")[2]]
    for name, argument in parsed.get("init_args", {}).items():
        for item in argument if isinstance(argument, list) else [argument]:
            if isinstance(item, dict):
                parts.append(shorten_value(item))
            else:
                parts.append(f"{name}={format_value(item)}")
    return " ".join(parts)


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file of W&B: `command`, `method`, `metric` and `parameters`.

    Raises:
        UsageError: If a part is missing or wrong, or the method is not `grid`; others need W&B.
    """
    content = read_yaml(path)
    missing = {"command", "method", "metric", "parameters"} - set(content)
    if missing:
        raise UsageError(f"{path}: is not a sweep; it has no {', '.join(sorted(missing))}")
    if content["method"] != "grid":
        raise UsageError(
            f"{path}: method is {content['method']!r}, but only `grid` can be run; use "
            "`wandb sweep` and `wandb agent` for others"
        )
    command, metric = content["command"], content["metric"]
    arguments = [str(argument) for argument in command] if isinstance(command, list) else []
    if "pipeline" not in arguments or "${args}" not in arguments:
        raise UsageError(f"{path}: the command must list `pipeline`, a stage and `${{args}}`")
    stage, *rest = arguments[arguments.index("pipeline") + 1 :] or [""]
    if stage not in STAGES:
        raise UsageError(f"{path}: {stage} is no stage; there are {', '.join(STAGES)}")
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise UsageError(f"{path}: metric has no `name`")
    goal = "max" if metric.get("goal") == "maximize" else "min"
    parameters = _read_parameters(path, content["parameters"])
    return Sweep(path.stem, stage, tuple(rest), parameters, metric["name"], goal)


def _read_parameters(path: Path, parameters: Any) -> dict[str, tuple[Any, ...]]:
    """Convert the `parameters` of a sweep file to option -> values."""
    if not isinstance(parameters, dict):
        raise UsageError(f"{path}: parameters are {parameters!r}; give options with their values")
    found = {}
    for name, content in parameters.items():
        if not isinstance(content, dict) or not {"value", "values"} & content.keys():
            raise UsageError(f"{path}: parameter {name} has neither `value` nor `values`")
        values = content["values"] if "values" in content else [content["value"]]
        if not isinstance(values, list) or not values:
            raise UsageError(f"{path}: values of parameter {name} are {values!r}; give a list")
        found[str(name)] = tuple(values)
    return found


def sweep(file: str, also: str = "", runs: str = "runs") -> None:
    """Train every combination of a sweep as a separate run, and print a table.

    All points are checked before the first is trained. Finished runs are kept, an interrupted one
    is resumed, and one that another process trains is skipped. The table is also in
    `RUNS/sweeps/NAME.csv`, written after each run.

    Args:
        file: W&B sweep file with method grid: a path, or a name such as sweeps/paper003_frames.
        also: More arguments for every run, as one text: --also="-c data/mocap --data.step=9".
        runs: Folder of all runs.

    Raises:
        UsageError: If the file is not such a sweep, or a point cannot be trained.
        PointError: If a run failed or was skipped; the runs after it were trained nevertheless.
    """
    found = read_sweep(find_config(file))
    points = [SweepPoint(found, values, shlex.split(also), Path(runs)) for values in found.points()]
    _check_points(points)
    codes = []
    for number, point in enumerate(points, start=1):
        if point.finished_folder() is None:
            print_line(f"sweep {found.stem}: {number} of {len(points)}, {point.name}")
            code = _train(point)
            if code > 128:  # a signal stopped the run
                raise SystemExit(code)
            codes += [code] if code else []
        _write_csv(found, points, Path(runs))
    columns, *rows = _table_rows(found, points)
    print_table(columns, rows)
    if not any(name.startswith("data.source") for name in found.parameters):
        folders = [folder for point in points if (folder := point.finished_folder())]
        for line in describe_mixture({folder: read_state(folder) or {} for folder in folders}):
            print_line(line)
    missing = sum(point.finished_folder() is None for point in points)
    if missing:
        raise PointError(missing, codes[0] if codes else 1)


class SweepPoint:
    """One combination of the values of a sweep, and its run.

    Args:
        found: The sweep.
        values: Option -> value.
        also: More arguments of the run.
        runs: Folder of all runs.
    """

    def __init__(
        self, found: Sweep, values: Mapping[str, Any], also: Sequence[str], runs: Path
    ) -> None:
        self.stage, self.values = found.stage, values
        self.folder = runs / found.stage
        arguments = found.run_arguments(values, also)
        self.name = found.name(values, arguments)
        self.arguments = [*arguments, "--runs", str(runs), "--group", found.stem]

    def finished_folder(self) -> Path | None:
        """Folder of the run that finished last; NAME, NAME-2, NAME-3 … are of this point."""
        orders = {
            path.parent: finish_order(state)
            for path in self.folder.glob(f"{glob.escape(self.name)}*/run.json")
            if (state := read_state(path.parent)) and state.get("state") == FINISHED
        }
        return max(orders, key=lambda path: orders[path]) if orders else None


def _check_points(points: Sequence[SweepPoint]) -> None:
    """Check all points that are not finished before the first is trained, and print them.

    Raises:
        HeatliftError: If a point cannot be trained.
    """
    open_points = [point for point in points if point.finished_folder() is None]
    for point in open_points:
        plan = check_fit(point.stage, [*point.arguments, "--name", point.name])
        print_line(f"  to train: {plan.folder}; {plan.length}")


def _train(point: SweepPoint) -> int:
    """Train a point unless another process trains it; return the exit code."""
    for lock in point.folder.glob(f"{glob.escape(point.name)}*/.lock"):
        try:
            with filelock.FileLock(lock, timeout=0):
                pass
        except filelock.Timeout:
            print_line(f"  {lock.parent}: another process trains this point; it is skipped")
            return StorageError.exit_code
    return launch.run_stage(point.stage, [*point.arguments, "--name", point.name])


def _table_rows(found: Sweep, points: Sequence[SweepPoint]) -> list[list[str]]:
    """Header and rows of the table: values, best validation, test, minutes and name of each run."""
    split, _, metric = found.metric.partition("/")
    test_metric = f"test/{metric}" if split == "val" else found.metric
    varied = [name for name, values in found.parameters.items() if len(values) > 1]
    header = [name.rpartition(".")[2] for name in varied]
    rows = [[*header, found.metric, test_metric, "minutes", "run"]]
    for point in points:
        finished = point.finished_folder()
        folder = finished or point.folder / point.name
        state = read_state(folder) or {}
        metrics = read_metrics(folder / "metrics.csv")
        values = [value for _, name, value in metrics if name == found.metric]
        best = (max if found.goal == "max" else min)(values) if values else None
        tested = (state.get("numbers") or {}).get(test_metric) if finished else None
        minutes = state["seconds"] / 60 if finished else None
        numbers = ["-" if number is None else f"{number:.4g}" for number in (best, tested, minutes)]
        cells = [shorten_value(point.values[name]) for name in varied]
        rows.append([*cells, *numbers, folder.name])
    return rows


def _write_csv(found: Sweep, points: Sequence[SweepPoint], runs: Path) -> None:
    write_csv(runs / "sweeps" / f"{found.stem}.csv", _table_rows(found, points))
