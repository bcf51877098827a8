"""Rows of the open benchmark, and its page: tables, images and text."""

from __future__ import annotations

import functools
import json
import math
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.dashboard import charts, media
from pipeline.experiments import robustness
from pipeline.experiments.budget import cpu_seconds_used
from pipeline.files.writing import write_atomically
from pipeline.training.metrics_file import read_metrics
from pipeline.training.run_folder import read_state

MARK = "<!-- What stands below this line is written by hand and kept. -->"
"""Line between the generated part of the page and the part that is kept."""

SMOOTH = {"noisy": 3.0, "exact": 1.0}
"""2D input -> standard deviation of the Gaussian over time, frames at 50 Hz; see `LiftModule`."""

CHAIN = ("08_10", "10_03", "14_37")
"""Test recordings that are rendered and detected: a walk, a kick, a drink."""

SUBSET_FILE = "subset.json"
"""File in a run folder with errors on the frame subset, if the test of the run had none."""

CHAIN_FILE = "chain.json"
"""File in the folder of the benchmark with the errors of the whole chain."""

HEAD = """\
# Results on the open benchmark

`make results DATA=mocap ROOT=folder` trains these rows one by one and writes this page. An
interrupted run is resumed, and finished rows are kept.

- **Written** {date} on {hardware}.
- **Budget** in CPU seconds of one thread, for training only: batches, steps and saving, without
  validation. A short run measures the time of a step; the number of steps follows from it, so that
  the schedule knows its length. *used* is the time of a row's lifting. VideoPose3D, Martinez and
  MixSTE have {seconds:g} each. Pretraining has the same budget again; one more row of MixSTE uses
  both for lifting. The other lifters have {twice:g} and are compared with that row.
- **Data** {data}.
- **Protocol** test split, frames outside bad ranges, 4 cameras; prediction and truth relative to
  the root, 17 joints with the root counted as zero, mean over frames, no flip test; mm, MPJVE in mm
  per frame. Predictions are smoothed over time (Gaussian; deviation {noisy:g} frames on noisy,
  {exact:g} on exact 2D). Weights are those of the best validation. *hidden*: 20 and 40 % of the
  joints of the 2D input, at random; one camera of each recording.
- **Frame subset** Frames 0 and 1 of every 16 of each video, two in a row so that MPJVE is defined.
  Lifters that predict only the centre frame of a window (†) are lifted and evaluated on these
  frames only, in validation too, and are not smoothed, because they have no neighbours. A separate
  table has all lifters on noisy 2D on these frames; those without † are smoothed there too."""
"""Beginning of the page."""


@dataclass(frozen=True)
class Row:
    """One trained lifter of the table.

    Args:
        name: First part of the name of its run.
        title: Name in the table.
        size: Size in the table.
        config: Config of the lifter.
        detections: 2D input: exact or noisy.
        share: Its budget for lifting, as a multiple of the budget of a row.
        pretraining: Config of its pretraining, which has a separate budget; None without one.
        frames: Evaluated frames, all or subset; see `LiftModule`.
    """

    name: str
    title: str
    size: str
    config: str
    detections: str
    share: float = 1.0
    pretraining: str | None = None
    frames: str = "all"

    def arguments(self) -> list[str]:
        """Arguments of the run besides the config and the data."""
        smooth = SMOOTH[self.detections] if self.frames == "all" else 0.0
        arguments = ["--data.detections", self.detections, "--model.flip_test", "false"]
        return [*arguments, f"--model.smooth={smooth}", f"--model.frames={self.frames}"]


def _main_rows(detections: str) -> tuple[Row, ...]:
    """Three lifters at equal budgets, and one of them with and without pretraining."""
    mixste, pretraining = "lift/mixste_mocap", "pretrain/mixste_mocap"
    mixste_size = "27 frames, 64 channels, 4 pairs of blocks"
    rows = (
        ("videopose3d", "VideoPose3D", "27 frames, 512 channels", "lift/videopose3d_mocap"),
        ("martinez", "Martinez", "1024 channels", "lift/martinez_mocap"),
        ("mixste", "MixSTE from scratch", mixste_size, mixste),
        ("mixste-pretrained", "MixSTE pretrained", mixste_size, mixste, 1.0, pretraining),
        ("mixste-total", "MixSTE from scratch", mixste_size, mixste, 2.0),
    )
    return tuple(
        Row(f"{name}-{detections}", title, size, config, detections, *more)
        for name, title, size, config, *more in rows
    )


def _other_rows() -> tuple[Row, ...]:
    """The other lifters of the papers, on noisy 2D, at twice the budget."""
    centre = "27 frames, 16 channels per joint, 2 + 2 blocks"
    rows = (
        ("combined", "Combined Deep Learner", "512 channels", "all"),
        ("cascade", "Cascade", "3 stages of 3 blocks, 512 channels", "all"),
        ("poseformer", "PoseFormer", centre, "subset"),
        ("poseformer_group", "PoseFormer with group attention", centre, "subset"),
    )
    return tuple(
        Row(f"{name}-noisy", title, size, f"lift/{name}_mocap", "noisy", 2.0, frames=frames)
        for name, title, size, frames in rows
    )


ROWS = (*_main_rows("noisy"), *_other_rows(), *_main_rows("exact"))
"""Rows of the benchmark, in the order in which they are trained."""


def run_state(folder: Path) -> dict[str, Any]:
    """State of a run; empty if it has none."""
    return read_state(folder) or {}


def run_numbers(folder: Path) -> dict[str, float]:
    """Test metrics of a finished run, with those on the frame subset that were added later."""
    subset_file = folder / SUBSET_FILE
    subset = json.loads(subset_file.read_text()) if subset_file.is_file() else {}
    return {**run_state(folder)["numbers"], **subset}


@dataclass(frozen=True)
class PageContent:
    """Finished runs and settings of a benchmark, as its page needs them.

    Args:
        finished: Row -> run folder.
        pretraining: Row -> run folder of its pretraining, for rows that have one.
        seconds: Budget of a row, CPU seconds.
        data: Description of the data.
        folder: Folder of the benchmark.
    """

    finished: Mapping[Row, Path]
    pretraining: Mapping[Row, Path]
    seconds: float
    data: str
    folder: Path

    @functools.cached_property
    def curves(self) -> dict[Row, list[robustness.Point]]:
        """Errors on corrupted 2D of all finished rows."""
        return {row: robustness.read_points(folder) for row, folder in self.finished.items()}


def write_page(docs: Path, content: PageContent) -> None:
    """Write `results.md` and its images; the part below `MARK` is kept.

    Args:
        docs: Folder of the page.
        content: Content of the page.
    """
    page = docs / "results.md"
    old_text = page.read_text() if page.is_file() else ""
    kept = old_text.partition(MARK)[2] or "\n"
    parts = [_head(content), *error_tables(content), subset_table(content)]
    parts += [*_learning_section(docs, content), *_robustness_section(docs, content)]
    parts += _chain_section(content.folder / CHAIN_FILE)
    text = "\n\n".join(parts) + f"\n\n{MARK}{kept}"
    write_atomically(page, lambda file: file.write(text.encode()))


def _head(content: PageContent) -> str:
    return HEAD.format(
        date=time.strftime("%Y-%m-%d"),
        hardware=describe_hardware(),
        seconds=content.seconds,
        twice=2 * content.seconds,
        data=content.data,
        **SMOOTH,
    )


def describe_hardware() -> str:
    """Describe processor and torch version."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"one core of {names[0] if names else platform.processor()}, torch {torch.__version__}"


def error_tables(content: PageContent) -> Iterable[str]:
    """Tables of errors in Markdown, one per 2D input; also rows that are not finished."""
    curves = content.curves
    for detections in ("noisy", "exact"):
        lines = [f"## {detections.capitalize()} 2D\n", *_header("20 % hidden", "40 % hidden")]
        rows = [row for row in ROWS if row.detections == detections]
        on_all_frames = [row for row in rows if row in content.finished and row.frames == "all"]
        if on_all_frames:
            numbers = run_numbers(content.finished[on_all_frames[0]])
            cells = ["mean training pose", "-", "-", "-", *_error_cells(numbers, "mean_pose_")]
            lines.append(_markdown_row([*cells, "-", "-"]))
        for row in rows:
            errors = [""] * 7
            if row in content.finished:
                hidden = (p for p in curves[row] if p.corruption == "joints hidden")
                levels = {p.level: f"{p.mpjpe:.1f}" for p in hidden}
                errors = _error_cells(run_numbers(content.finished[row]))
                errors += [levels.get(0.2, "-"), levels.get(0.4, "-")]
            lines.append(_markdown_row([*_first_cells(row, content), *errors]))
        yield "\n".join(lines)


def subset_table(content: PageContent) -> str:
    """Table of all lifters on noisy 2D in Markdown, with their errors on the frame subset."""
    lines = ["## All lifters on the frame subset, noisy 2D\n", *_header()]
    for row in ROWS:
        if row.detections == "noisy":
            errors = [""] * 5
            if row in content.finished:
                errors = _error_cells(run_numbers(content.finished[row]), "subset_")
            lines.append(_markdown_row([*_first_cells(row, content), *errors]))
    return "\n".join(lines)


def _header(*more: str) -> list[str]:
    cells = ["lifter", "size", "budget, s", "used, s", "MPJPE", "P-MPJPE", "N-MPJPE", "MPJVE"]
    cells += ["kinds seen / unseen", *more]
    return [_markdown_row(cells), _markdown_row(["---"] * len(cells))]


def _first_cells(row: Row, content: PageContent) -> list[str]:
    """Cells of title, size, budget and used time of a row."""
    folder = content.finished.get(row)
    title = f"{row.title} †" if row.frames == "subset" else row.title
    budget, used = f"{row.share * content.seconds:g}", "not yet"
    if folder:
        used = f"{cpu_seconds_used(read_metrics(folder / 'metrics.csv')):.0f}"
    if row.pretraining:
        budget += f" + {content.seconds:g}"
        used += " + pretraining" if folder else ""
    return [title, row.size, budget, used]


def _error_cells(numbers: Mapping[str, float], prefix: str = "") -> list[str]:
    """Cells of errors; `prefix` is the beginning of the names of their metrics."""

    def cell(key: str, digits: int = 1) -> str:
        value = numbers.get(f"test/{prefix}{key}_mm")
        return "-" if value is None else f"{value:.{digits}f}"

    cells = [cell("mpjpe"), cell("p_mpjpe"), cell("n_mpjpe"), cell("mpjve", 2)]
    return [*cells, f"{cell('mpjpe_seen')} / {cell('mpjpe_unseen')}"]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _learning_section(docs: Path, content: PageContent) -> list[str]:
    """Draw the learning curves of the MixSTE rows; nothing if there are none."""
    series = {}
    for row, folder in content.finished.items():
        if row.name.startswith("mixste"):
            label = row.title.removeprefix("MixSTE ")
            label += f"{' x 2' if row.share > 1 else ''}, {row.detections}"
            if curve := _learning_curve(row, folder, content):
                series[label] = curve
    if not series:
        return []
    chart = charts.draw_curves(
        series,
        "CPU seconds, pretraining included",
        "MPJPE on the validation split, mm",
        "MixSTE with and without pretraining",
    )
    media.write_png(docs / "results_learning.png", chart)
    return ["## With and without pretraining\n\n![Learning](results_learning.png)"]


def _learning_curve(
    row: Row, folder: Path, content: PageContent
) -> tuple[list[float], list[float]] | None:
    """CPU seconds since the start of pretraining, and validation errors at these times."""
    start = 0.0
    if row.pretraining:
        pretraining = content.pretraining.get(row)
        start = math.nan
        if pretraining:
            start = cpu_seconds_used(read_metrics(pretraining / "metrics.csv"))
    metrics = read_metrics(folder / "metrics.csv")
    clock = [(step, value) for step, name, value in metrics if name == "train/cpu_s"]
    errors = [(step, value) for step, name, value in metrics if name == "val/mpjpe_mm"]
    if not clock or not errors:
        return None
    steps, seconds = zip(*clock, strict=True)
    times = np.interp([step for step, _ in errors], steps, seconds)
    return (times + start).tolist(), [value for _, value in errors]


def _robustness_section(docs: Path, content: PageContent) -> list[str]:
    """Draw the errors on corrupted 2D of the rows on noisy 2D; nothing if there are none."""
    lifters = {}
    for row, points in content.curves.items():
        if points and row.detections == "noisy":
            label = row.title
            label += " x 2" if row.share > 1 else ""
            label += " †" if row.frames == "subset" else ""
            lifters[label] = points
    if not lifters:
        return []
    media.write_png(docs / "results_robustness.png", robustness.draw_robustness(lifters))
    return [
        "## On corrupted 2D\n\nRows trained on noisy 2D; one camera of each recording; "
        "x 2: twice the budget; † on the frame subset.\n\n"
        "![Robustness](results_robustness.png)"
    ]


def _chain_section(file: Path) -> list[str]:
    """Table of the errors of the whole chain; nothing if they were not measured."""
    if not file.is_file():
        return []
    content = json.loads(file.read_text())
    lines = [
        "## The whole chain on real motion\n",
        f"Recordings {', '.join(CHAIN)}, rendered as people from four cameras, detected by a 2D "
        f"stage ({content['digest'][:12]}), lifted by {ROWS[0].title} trained on noisy 2D.\n",
        "| 2D input | MPJPE | P-MPJPE | MPJVE |\n| --- | --- | --- | --- |",
    ]
    for name, numbers in content["numbers"].items():
        cells = [f"{numbers[f'test/{key}_mm']:.1f}" for key in ("mpjpe", "p_mpjpe", "mpjve")]
        lines.append(_markdown_row([name, *cells]))
    return ["\n".join(lines)]
