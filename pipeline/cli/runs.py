"""`heatlift runs`: list the runs of all stages, show one, and compare several on one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.cli.arguments import CommandParser
from pipeline.cli.stages import STAGES
from pipeline.cli.tables import print_table
from pipeline.dashboard.catalog import METRICS
from pipeline.dashboard.comparison import write_comparison
from pipeline.dashboard.page import headline, read_series, with_unit
from pipeline.errors import UsageError
from pipeline.training.console import format_duration, print_line
from pipeline.training.run_folder import read_state

UNITS = {metric.name: metric.unit for metric in METRICS}
MAIN_METRICS = ("mpjpe_mm", "pck_0.1", "loss")
"""Metrics of the column `headline`: the first one that a run has."""

HIDDEN = ("subset_", "mean_pose_")
"""Beginnings of the metrics that `show` leaves out: the page and metrics.csv have them."""


def run(arguments: Sequence[str]) -> None:
    """Run `heatlift runs`.

    Args:
        arguments: Arguments after the name of the command.

    Raises:
        UsageError: If they are wrong, or there is no such run.
    """
    parser = CommandParser(
        "heatlift runs", description="List runs, show one, or compare several on one page."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("ls", help="print a table of all runs")
    listing.add_argument("--runs", default="runs", help="folder of all runs [runs]")
    showing = commands.add_parser("show", help="print what a run has reached")
    showing.add_argument("run", help="folder of the run, or its name, such as lift/mixste_small")
    comparing = commands.add_parser("compare", help="write one page that compares runs")
    comparing.add_argument("runs", nargs="+", help="folders of runs, or their names")
    comparing.add_argument("--out", default="comparison.html", help="the page [comparison.html]")
    options = vars(parser.parse_args(list(arguments)))
    commands_by_name: dict[str, Callable[..., None]] = {"ls": ls, "show": show, "compare": compare}
    commands_by_name[options.pop("command")](**options)


def ls(runs: str = "runs") -> None:
    """Print a table of all runs: their data, what they have reached, how long it took.

    Args:
        runs: Folder of all runs.

    Raises:
        UsageError: If there is none.
    """
    folders = find_runs(Path(runs))
    if not folders:
        raise UsageError(f"{runs}: has no runs; train one, or give the folder with --runs")
    columns = ("run", "state", "data", "headline", "of the mean pose", "time")
    rows = [describe_run(folder) for folder in folders]
    print_table(columns, rows, right=("headline", "of the mean pose", "time"))


def show(run: str) -> None:
    """Print what a run has reached, its protocol, and where its files are.

    Args:
        run: Folder of the run, or its name, such as lift/mixste_small.

    Raises:
        UsageError: If there is no such run.
    """
    folder = find_run(run)
    state, series = read_state(folder) or {}, read_series(folder)
    print_line(headline(series, state))
    rows = [
        (name, with_unit(points[-1][1], UNITS.get(name, "")))
        for name, points in sorted(series.items())
        if name.startswith(("test/", "val/"))
        and not name.partition("/")[2].startswith(HIDDEN)
        and "action_mean" not in name
    ]
    if rows:
        print_table(("metric", "last value"), rows, right=("last value",))
    for label, value in (
        ("protocol", state.get("protocol")),
        ("weights", state.get("checkpoint") and folder / state["checkpoint"]),
        ("page", folder / "index.html"),
    ):
        if value:
            print_line(f"  {label:<10} {value}")


def compare(runs: Sequence[str], out: str = "comparison.html") -> None:
    """Write one page that compares runs: numbers, different settings, learning curves, tables.

    Args:
        runs: Folders of runs, or their names, such as lift/mixste_small.
        out: Path of the page.

    Raises:
        UsageError: If fewer than two runs are given, or one does not exist.
    """
    if len(runs) < 2:
        raise UsageError("runs compare: give two runs or more; `heatlift runs ls` lists them")
    page = write_comparison([find_run(name) for name in runs], Path(out), METRICS)
    print_line(f"  page       {page}")


def find_runs(runs: Path) -> list[Path]:
    """Folders of all runs below a folder, by stage in their order, then by name."""
    return [path.parent for stage in STAGES for path in sorted((runs / stage).glob("*/run.json"))]


def find_run(name: str) -> Path:
    """Folder of a run by its path, or by its name below ./runs.

    Raises:
        UsageError: If there is no such run.
    """
    for folder in (Path(name), Path("runs") / name):
        if (folder / "run.json").is_file():
            return folder
    named = [f"{path.parent.name}/{name}" for path in find_runs(Path("runs")) if path.name == name]
    hint = f"did you mean {' or '.join(named)}?" if named else "`heatlift runs ls` lists them"
    raise UsageError(f"{name}: is no run; {hint}")


def describe_run(folder: Path) -> tuple[str, ...]:
    """The row of a run: name, state, data, main metric, its share of the mean pose, time."""
    state, series = read_state(folder) or {}, read_series(folder)
    step = max((points[-1][0] for points in series.values()), default=0)
    is_finished = state.get("state") == "finished"
    split = "test" if any(name.startswith("test/") for name in series) else "val"
    names = [f"{split}/{name}" for name in MAIN_METRICS if f"{split}/{name}" in series]
    number = f"{names[0]} {with_unit(series[names[0]][-1][1], UNITS[names[0]])}" if names else ""
    share = series.get(f"{split}/of_mean_pose")
    return (
        f"{folder.parent.name}/{folder.name}",
        "finished" if is_finished else f"step {step:.0f}",
        describe_data(state.get("settings", {})),
        number,
        with_unit(share[-1][1], "share") if share else "",
        format_duration(state["seconds"]) if "seconds" in state else "",
    )


def describe_data(settings: Mapping[str, Any]) -> str:
    """Data source of a run, and the 2D input of a lifter."""
    data = settings.get("data", {})
    source = str(data.get("source", {}).get("class_path", "")).rpartition(".")[2]
    detections = data.get("detections")
    return f"{source}, {detections}" if detections else source
