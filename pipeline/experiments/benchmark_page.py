"""The rows of the open benchmark, and the page with their numbers."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.experiments import robustness
from pipeline.experiments.budget import cpu_seconds_used
from pipeline.training.metrics_file import read_metrics
from pipeline.training.run_folder import read_state

MARK = "<!-- What stands below this line is written by hand and kept. -->"
"""Divides the page: above it numbers, written anew each time; below it words."""


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
"""How the page begins."""


@dataclass(frozen=True)
class Row:
    """One trained lifter of the table.

    Args:
        name: Of its run.
        title: For people.
        size: Of the lifter, for people.
        config: Of the lifter.
        detections: exact or noisy.
        share: Its lifting budget in parts of the budget of a row.
        pretraining: Config of the pretraining it starts from, which has a budget of its own.
        frames: Those that are scored, as `LiftModule` has it.
    """

    name: str
    title: str
    size: str
    config: str
    detections: str
    share: float = 1.0
    pretraining: str | None = None
    frames: str = "all"

    def words(self) -> list[str]:
        """What the command line is told beside the config."""
        smooth = SMOOTH[self.detections] if self.frames == "all" else 0.0
        found = ["--data.detections", self.detections, "--model.flip_test", "false"]
        return [*found, f"--model.smooth={smooth}", f"--model.frames={self.frames}"]


def _compared(detections: str) -> tuple[Row, ...]:
    """Three lifters at equal budgets, and one of them with and without pretraining."""
    mixste, first = "lift/mixste_mocap", "pretrain/mixste_mocap"
    size = "27 frames, 64 channels, 4 pairs of blocks"
    rows = (
        ("videopose3d", "VideoPose3D", "27 frames, 512 channels", "lift/videopose3d_mocap"),
        ("martinez", "Martinez", "1024 channels", "lift/martinez_mocap"),
        ("mixste", "MixSTE from scratch", size, mixste),
        ("mixste-pretrained", "MixSTE pretrained", size, mixste, 1.0, first),
        ("mixste-total", "MixSTE from scratch", size, mixste, 2.0),
    )
    return tuple(
        Row(f"{name}-{detections}", title, shown, config, detections, *more)
        for name, title, shown, config, *more in rows
    )


def _others() -> tuple[Row, ...]:
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


SMOOTH = {"noisy": 3.0, "exact": 1.0}
"""Deviation of the Gaussian over time on what comes out, frames at 50 Hz."""


ROWS = (*_compared("noisy"), *_others(), *_compared("exact"))
"""In the order in which they are trained."""


SUBSET = "subset.json"
"""Beside a run whose own test did not score the frame subset: what it has on it."""


def run_state(folder: Path) -> dict[str, Any]:
    return read_state(folder) or {}


def run_numbers(folder: Path) -> dict[str, float]:
    """What a finished run was tested to have."""
    beside = folder / SUBSET
    later = json.loads(beside.read_text()) if beside.is_file() else {}
    return {**run_state(folder)["numbers"], **later}


def hardware() -> str:
    """Processor and torch, for the page."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"one core of {names[0] if names else platform.processor()}, torch {torch.__version__}"


def error_tables(
    done: Mapping[Row, Path], curves: Mapping[Row, list[robustness.Point]], seconds: float
) -> Iterable[str]:
    """One table for each kind of 2D input; a row that is not finished says so."""
    for detections in ("noisy", "exact"):
        lines = [f"## {detections.capitalize()} 2D\n", *_header("20 % hidden", "40 % hidden")]
        mine = [row for row in ROWS if row.detections == detections]
        whole = (row for row in mine if row in done and row.frames == "all")
        floor = next((run_numbers(done[row]) for row in whole), None)
        if floor:
            cells = ["mean training pose", "-", "-", "-", *_errors(floor, "mean_pose_")]
            lines.append(_line([*cells, "-", "-"]))
        for row in mine:
            errors: list[str] = []
            if row in done:
                errors = _errors(run_numbers(done[row]))
                hidden = (p for p in curves[row] if p.corruption == "joints hidden")
                levels = {p.level: f"{p.mpjpe:.1f}" for p in hidden}
                errors += [levels.get(0.2, "-"), levels.get(0.4, "-")]
            lines.append(_line([*_about(row, done.get(row), seconds), *(errors or [""] * 7)]))
        yield "\n".join(lines)


def subset_table(done: Mapping[Row, Path], seconds: float) -> str:
    """A table of all lifters on noisy 2D, each on the frames that all of them are scored on."""
    lines = ["## All lifters on the frame subset, noisy 2D\n", *_header()]
    for row in ROWS:
        if row.detections == "noisy":
            errors = _errors(run_numbers(done[row]), "subset_") if row in done else [""] * 5
            lines.append(_line([*_about(row, done.get(row), seconds), *errors]))
    return "\n".join(lines)


def _header(*more: str) -> list[str]:
    cells = ["lifter", "size", "budget, s", "used, s", "MPJPE", "P-MPJPE", "N-MPJPE", "MPJVE"]
    cells += ["kinds seen / unseen", *more]
    return [_line(cells), _line(["---"] * len(cells))]


def _about(row: Row, folder: Path | None, seconds: float) -> list[str]:
    """Which lifter, how large, how long it may train and how long it did."""
    budget = f"{row.share * seconds:g}"
    spent = f"{cpu_seconds_used(read_metrics(folder / 'metrics.csv')):.0f}" if folder else "not yet"
    if row.pretraining:
        budget += f" + {seconds:g}"
        spent += " + pretraining" if folder else ""
    return [row.title + (" †" if row.frames == "subset" else ""), row.size, budget, spent]


def _errors(numbers: Mapping[str, float], part: str = "") -> list[str]:
    """Cells of errors; `part` is what stands before the names of their quantities."""

    def shown(key: str, digits: int = 1) -> str:
        value = numbers.get(f"test/{part}{key}_mm")
        return "-" if value is None else f"{value:.{digits}f}"

    cells = [shown("mpjpe"), shown("p_mpjpe"), shown("n_mpjpe"), shown("mpjve", 2)]
    return [*cells, f"{shown('mpjpe_seen')} / {shown('mpjpe_unseen')}"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
