"""The page of the open benchmark: tables, images and what they show, made from finished rows."""

from __future__ import annotations

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

from pipeline.cli.configs import configured_classes
from pipeline.dashboard import charts, media
from pipeline.experiments import robustness
from pipeline.experiments.benchmark_errors import (
    PRECISION,
    Output,
    RowErrors,
    average_errors,
)
from pipeline.experiments.benchmark_findings import SAME_MM, write_findings
from pipeline.experiments.benchmark_rows import MASKS, ROWS, SMOOTH, Row
from pipeline.experiments.budget import cpu_seconds_used
from pipeline.files.writing import write_atomically
from pipeline.lift.clips import smoothing_reach
from pipeline.training.metrics_rows import read_metrics
from pipeline.training.run_folder import read_state

MARK = "<!-- What stands below this line is written by hand and kept. -->"
"""Line between the generated part of the page and the part that is kept."""

CHAIN = ("08_10", "10_03", "14_37")
"""Test recordings that are rendered and detected: a walk, a kick, a drink."""

CHAIN_FILE = "chain.json"
"""File in the folder of the benchmark with the errors of the whole chain."""

CORRUPTED = {
    "untouched": ("joints hidden", 0.0),
    "20 % of joints": ("joints hidden", 0.2),
    "40 % of joints": ("joints hidden", 0.4),
    "60 % of joints": ("joints hidden", 0.6),
    "20 % of frames": ("frames dropped", 0.2),
    "40 % of frames": ("frames dropped", 0.4),
    "60 % of frames": ("frames dropped", 0.6),
    "noise x 2": ("noise", 2.0),
}
"""Column of a table on corrupted 2D -> corruption and level."""

COLUMNS = (
    *("size", "budget, s", "used, s", "output", "frames seen"),
    *("MPJPE", "P-MPJPE", "N-MPJPE", "MPJVE", "acceleration", "kinds seen / unseen"),
)
"""Columns of a table of errors, after the name of the lifter."""

HEAD = """\
# Results on the open benchmark

`make results DATA=mocap ROOT=folder` trains these rows, one per core at once, and writes this page.
An interrupted run is resumed, and finished rows are kept.

- **Written** {date} on {hardware}.
- **Budget** in CPU seconds of one thread, for training only: batches, steps and saving, without
  validation. A short run measures the time of a step; the number of steps follows from it, so that
  the schedule knows its length. *used* is the time of a row's lifting. VideoPose3D, Martinez and
  both MixSTE have {seconds:g} each. Pretraining has the same budget again; one more row of MixSTE
  uses both for lifting. The other lifters have {twice:g} and are compared with that row.
- **Seeds** MixSTE on noisy 2D, with and without pretraining, is trained with several seeds, which
  give its first weights, the order of windows, masks, bodies, cameras and noise of the training.
  Its errors are means over the seeds; errors on corrupted 2D are those of seed 0. All other rows
  are one training each. Differences below {same:g} mm are called equal.
- **Data** {data}.
- **Protocol** test split, frames outside bad ranges, 4 cameras, every frame lifted once, no flip
  test; prediction and truth relative to the root, 17 joints with the root counted as zero, mean
  over frames, {precision}; mm, MPJVE in mm per frame, acceleration in mm per frame squared. Weights
  are those of the best validation of the plain output. Lifters that predict only the centre frame
  of a window (†) are validated on frames 0 and 1 of every 16, and tested on all frames as well.
- **Output** Each row is measured several times with the same weights. *plain*: as the lifter
  predicts, windows one after the other. *smoothed*: the same, smoothed over time with a Gaussian of
  {noisy:g} frames on noisy 2D and {exact:g} on exact 2D, cut off at three times that. *blended*,
  for lifters that predict all frames of a window: windows that overlap by half, blended, without
  smoothing (`overlap: blend`, as `heatlift predict` lifts). *frames seen* are the frames of 2D that
  one predicted frame depends on. With smoothing, a lifter of single frames depends on {noisy_reach}
  frames before and after, too ({exact_reach} on exact 2D). Compare lines of the same output.
- **Masks** In all trainings {joint_mask:g} % of the joints and {frame_mask:g} % of the whole frames
  are hidden, in the pretraining too.
- **Groups of frames** MixSTE and its pretraining see the means of groups of 5 frames, and frames
  between the middles of groups are interpolated (`StridedLifter`). One more row of MixSTE sees 27
  consecutive frames and is trained with AdamW.
- **Pretraining** has the lifter, the motion and the masks of the rows. It differs in its 2D (a
  random camera for each clip in each epoch, and MotionBERT's noise, also before rows on exact 2D),
  in its bodies, which stay those of the data set, and in its loss.
- **Yardstick** The mean training pose: the mean of all valid frames of the training split, relative
  to the root, in the camera frame. It has the same frames, joints and means as the rows. It never
  moves, so its outputs are equal."""
"""Beginning of the page."""


def run_state(folder: Path) -> dict[str, Any]:
    """State of a run; empty if it has none."""
    return read_state(folder) or {}


@dataclass(frozen=True)
class PageContent:
    """Finished runs and settings of a benchmark, as its page needs them.

    Args:
        finished: Row -> run folder.
        seeds: Row -> errors with each seed, for the rows that are measured.
        pretraining: Row -> run folder of its pretraining, for rows that have one.
        seconds: Budget of a row, CPU seconds.
        data: Description of the data.
        folder: Folder of the benchmark.
    """

    finished: Mapping[Row, Path]
    seeds: Mapping[Row, Sequence[RowErrors]]
    pretraining: Mapping[Row, Path]
    seconds: float
    data: str
    folder: Path

    @property
    def errors(self) -> dict[Row, RowErrors]:
        """Row -> errors, means over its seeds."""
        return {row: average_errors(found) for row, found in self.seeds.items()}


def write_page(docs: Path, content: PageContent) -> None:
    """Write `results.md` and its images; the part below `MARK` is kept.

    Args:
        docs: Folder of the page.
        content: Content of the page.
    """
    page = docs / "results.md"
    old_text = page.read_text() if page.is_file() else ""
    kept = old_text.partition(MARK)[2] or "\n"
    parts = [_head(content), *error_tables(content), *seeds_table(content.seeds)]
    parts += settings_table(content)
    parts += [*_learning_section(docs, content), *_robustness_section(docs, content)]
    parts += [*_chain_section(content.folder / CHAIN_FILE), *write_findings(content.errors)]
    text = "\n\n".join(parts) + f"\n\n{MARK}{kept}"
    write_atomically(page, lambda file: file.write(text.encode()))


def _head(content: PageContent) -> str:
    return HEAD.format(
        date=time.strftime("%Y-%m-%d"),
        hardware=describe_hardware(),
        seconds=content.seconds,
        twice=2 * content.seconds,
        same=SAME_MM,
        data=content.data,
        precision=PRECISION,
        **SMOOTH,
        **{f"{name}_reach": smoothing_reach(value) for name, value in SMOOTH.items()},
        **{name: 100 * share for name, share in MASKS.items()},
    )


def describe_hardware() -> str:
    """Describe processor and torch version."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"one core of {names[0] if names else platform.processor()}, torch {torch.__version__}"


def error_tables(content: PageContent) -> Iterable[str]:
    """Tables of errors in Markdown, two per 2D input; the first also has unfinished rows."""
    for detections in SMOOTH:
        rows = [row for row in ROWS if row.detections == detections]
        lines = [f"## {detections.capitalize()} 2D\n", *_header("lifter", *COLUMNS)]
        measured = [row for row in rows if row in content.errors]
        if measured:
            numbers = content.errors[measured[0]].plain
            cells = ["mean training pose", "-", "-", "-", "all", "0"]
            lines.append(_markdown_row([*cells, *_error_cells(numbers, "mean_pose_")]))
        for row in rows:
            if row not in content.errors:
                cells = [*_first_cells(row, content), *[""] * (len(COLUMNS) - 3)]
                lines.append(_markdown_row(cells))
                continue
            errors = content.errors[row]
            for output in errors.outputs:
                cells = _first_cells(row, content)
                cells = cells if output == "plain" else [cells[0], "", "", ""]
                cells += [output, _frames_seen(errors, output), *_error_cells(errors.of(output))]
                lines.append(_markdown_row(cells))
        yield "\n".join(lines)
        if measured:
            yield _corrupted_table(detections, measured, content.errors)


def _corrupted_table(
    detections: str, rows: Sequence[Row], measured: Mapping[Row, RowErrors]
) -> str:
    """Table of the errors of rows on corrupted 2D, in Markdown."""
    lines = [
        f"### Corrupted {detections} 2D\n",
        "MPJPE on every fourth video of the test split (in the benchmark one camera of each "
        "recording), so the first column differs from the table above. Joints are hidden and "
        "frames are dropped at random.\n",
        *_header("lifter", "output", *CORRUPTED),
    ]
    for row in rows:
        for smoothed in (False, True):
            points = measured[row].corrupted(smoothed=smoothed)
            found = [points.get(key) for key in CORRUPTED.values()]
            cells = [f"{point.mpjpe:.1f}" if point else "-" for point in found]
            lines.append(_markdown_row([row.label, "smoothed" if smoothed else "plain", *cells]))
    return "\n".join(lines)


def seeds_table(seeds: Mapping[Row, Sequence[RowErrors]]) -> Iterable[str]:
    """Table of the errors with each seed, and with the last weights instead of the best ones."""
    if not seeds:
        return
    columns = ("2D", "best weights: MPJPE", "last weights: MPJPE", "best: MPJVE", "last: MPJVE")
    lines = [
        "## Seeds, best and last weights\n",
        "Plain output, on the test split, with each seed. *Best* are the weights of the best "
        "validation, which all other tables have; *last* are those at the end of the training.\n",
        *_header("lifter", *columns),
    ]
    for row, found in seeds.items():
        cells = [
            ", ".join(f"{numbers[f'test/{key}_mm']:.{digits}f}" for numbers in group if numbers)
            for key, digits in (("mpjpe", 1), ("mpjve", 2))
            for group in ([e.plain for e in found], [e.last for e in found])
        ]
        lines.append(_markdown_row([row.label, row.detections, *(cell or "-" for cell in cells)]))
    yield "\n".join(lines)


def settings_table(content: PageContent) -> Iterable[str]:
    """Table of what differs between the trainings of finished rows, from their run folders."""
    runs = {f"{row.label}, {row.detections}": folder for row, folder in content.finished.items()}
    for row, folder in content.pretraining.items():
        runs[f"pretraining of {row.title.removesuffix(' pretrained')}"] = folder
    if not runs:
        return
    columns = ("joints hidden", "frames hidden", "turned to the person", "loss", "optimizer")
    lines = [
        "## How the rows were trained\n",
        "From `run.json` of each run. *Turned to the person*: 2D as a camera that is turned to the "
        "person sees it (`CentredLifter`). *Re-rendered*: epochs after which bodies, cameras and "
        "noise are drawn again; the pretraining draws cameras and noise in each epoch. "
        "*Optimizer*: with its learning rate.\n",
        *_header("training", *columns, "batch", "re-rendered, epochs"),
    ]
    for name, folder in runs.items():
        settings = run_state(folder)["settings"]
        lines.append(_markdown_row([name, *_settings_cells(settings)]))
    yield "\n".join(lines)


def _settings_cells(settings: Mapping[str, Any]) -> list[str]:
    """Cells of the settings of one run."""
    data, model = settings["data"], settings["model"]
    loss, optimizer = model["loss"], model["optimizer"]
    wrapped = configured_classes(model["net"])
    factors = (loss.get("init_args") or {}).items()
    arguments = ", ".join(f"{name} {value:g}" for name, value in factors)
    name, method = (part["class_path"].rpartition(".")[2] for part in (loss, optimizer))
    return [
        *(f"{100 * data[mask]:g} %" for mask in MASKS),
        "yes" if any(path.endswith("CentredLifter") for path in wrapped) else "no",
        f"{name} ({arguments})" if arguments else name,
        f"{method} {optimizer['init_args']['lr']:g}",
        str(data["batch_size"]),
        str(data.get("augment_every", "-")),
    ]


def _header(*cells: str) -> list[str]:
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


def _frames_seen(errors: RowErrors, output: Output) -> str:
    """Cell of the frames that a predicted frame depends on."""
    if output == "smoothed":
        return f"{errors.frames} ± {smoothing_reach(errors.smooth)}"
    if output == "blended":  # the two windows that a frame lies in
        return str(errors.frames + (errors.frames + 1) // 2)
    return str(errors.frames)


def _error_cells(numbers: Mapping[str, float], prefix: str = "") -> list[str]:
    """Cells of errors; `prefix` is the beginning of the names of their metrics."""

    def cell(key: str, digits: int = 1) -> str:
        value = numbers.get(f"test/{prefix}{key}_mm")
        return "-" if value is None else f"{value:.{digits}f}"

    cells = [cell("mpjpe"), cell("p_mpjpe"), cell("n_mpjpe"), cell("mpjve", 2)]
    kinds = f"{cell('mpjpe_seen')} / {cell('mpjpe_unseen')}"
    return [*cells, cell("acceleration", 2), kinds]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _learning_section(docs: Path, content: PageContent) -> list[str]:
    """Draw the learning curves of the MixSTE rows; nothing if there are none."""
    series = {}
    for row, folder in content.finished.items():
        if row.name.startswith("mixste"):
            label = f"{row.label.removeprefix('MixSTE ')}, {row.detections}"
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
    return [
        "## With and without pretraining\n\nErrors of validation, plain output.\n\n"
        "![Learning](results_learning.png)"
    ]


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
    lifters = {
        row.label: list(errors.corrupted(smoothed=False).values())
        for row, errors in content.errors.items()
        if row.detections == "noisy"
    }
    if not any(lifters.values()):
        return []
    media.write_png(docs / "results_robustness.png", robustness.draw_robustness(lifters))
    return [
        "## On corrupted 2D\n\nRows trained on noisy 2D, plain output; every fourth video of "
        "the test split; x 2: twice the budget.\n\n![Robustness](results_robustness.png)"
    ]


def _chain_section(file: Path) -> list[str]:
    """Table of the errors of the whole chain; nothing if they were not measured."""
    if not file.is_file():
        return []
    content = json.loads(file.read_text())
    keys = ("mpjpe", "p_mpjpe", "mpjve", "acceleration")
    lines = [
        "## The whole chain on real motion\n",
        f"Recordings {', '.join(CHAIN)}, rendered as people from four cameras, detected by a 2D "
        f"stage ({content['digest'][:12]}), lifted by {ROWS[0].title} trained on noisy 2D.\n",
        *_header("2D input", "output", "MPJPE", "P-MPJPE", "MPJVE", "acceleration"),
    ]
    for name, numbers in content["numbers"].items():
        for output, errors in zip(("plain", "smoothed"), numbers, strict=True):
            cells = [f"{errors[f'test/{key}_mm']:.1f}" for key in keys]
            lines.append(_markdown_row([name, output, *cells]))
    return ["\n".join(lines)]
