"""`heatlift demo`: all stages trained on rendered people, then a table of errors and a page."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.cli.configs import find_config, read_source
from pipeline.cli.doctor import has_fast_bf16
from pipeline.cli.stage_check import check_fit
from pipeline.cli.tables import print_table
from pipeline.dashboard import callback
from pipeline.dashboard.media import write_png
from pipeline.detections.cache import detect
from pipeline.experiments.demo_image import draw_chain
from pipeline.experiments.detection_errors import (
    ALL,
    EXACT,
    PARTS,
    DetectedClip,
    InputErrors,
    load_detected_clips,
    measure_inputs,
)
from pipeline.experiments.stage_process import StageProcess, end_all
from pipeline.files.writing import write_atomically
from pipeline.lift.module import LiftModule
from pipeline.mocap import Synthetic
from pipeline.training.checkpoints import load_module
from pipeline.training.console import format_duration, print_line
from pipeline.training.processes import StoppedBySignal
from pipeline.training.run_changes import FINISHED
from pipeline.training.run_folder import mark_as_damaged, newest_finished_run, read_state

Row = tuple[str, ...]
"""Cells of a row of a printed table."""


@dataclass(frozen=True)
class Step:
    """One training of the demo.

    Args:
        stage: Name of the stage.
        name: Name of the run.
        label: Label of its lines.
        minutes: Expected duration on two CPU cores, minutes.
        description: Description in the printed tables.
        arguments: Arguments after the config `STAGE/demo`.
        needs: Labels of the steps that have to be finished before.
    """

    stage: str
    name: str
    label: str
    minutes: float
    description: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


_UNSEEN = {"share": "lifter", "train": 8}
"""Options of the source of `lift/demo`: half of 8 people, those whom the detector has not seen."""

STEPS = (
    Step("heatmap", "demo", "2D stage", 7.0, "2D stage: rendered people to heatmaps to joints"),
    Step("pretrain", "demo", "pretrain", 2.0, "pretraining: motion from masked, noisy projections"),
    Step(
        "lift",
        "demo-exact",
        "exact",
        2.0,
        "lifter on exact 2D, from the pretrained weights",
        ("--data.detections", "exact", "--model.pretrained", "newest"),
        needs=("pretrain",),
    ),
    Step(
        "lift",
        "demo-detected",
        "detected",
        2.0,
        "lifter on detections of the 2D stage, from the weights of the lifter before",
        (
            *("--data.detections", "newest", "--data.source.init_args.share", "lifter"),
            *("--data.source.init_args.train", str(_UNSEEN["train"])),
            *("--data.step", "3", "--data.augment_every", "0", "--trainer.max_epochs", "2"),
            *("--model.optimizer.init_args.lr", "1e-3"),
        ),
        needs=("2D stage", "exact"),
    ),
)
TOTAL_MINUTES = 10.0
"""Expected duration of all steps and of the measurements: steps that need no other ones are trained
beside them."""

_LABELS = {step.label for step in STEPS}
_LABEL_WIDTH = max(map(len, _LABELS))


def demo(
    runs: str = "runs", wandb: str | None = None, *, resume_with_changed_code: bool = False
) -> None:
    """Train all stages on rendered people, then print a table and the path of a page of images.

    The 2D stage is trained beside pretraining and the first lifter, each in a process of its own.
    An interrupted demo is resumed; a finished demo is run again from the beginning.

    Args:
        runs: Folder of all runs.
        wandb: W&B mode: auto (online if there is an API key), online, offline or off; by default
            that of the variable WANDB, or auto.
        resume_with_changed_code: Whether a run is resumed also if the code of Heatlift has changed.

    Raises:
        HeatliftError: If a step cannot be trained.
        StageProcessError: If a step fails.
    """
    os.environ.setdefault("HEATLIFT_GROUP", f"demo-{time.strftime('%Y%m%d-%H%M%S')}")
    started = time.monotonic()
    minutes = (*(step.minutes for step in STEPS), TOTAL_MINUTES)
    _print_durations("heatlift demo, on two cores:", [60 * duration for duration in minutes])
    training = DemoTraining(Path(runs), wandb, resume_with_changed_code)
    training.check()
    training.train(STEPS[:-1])
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # from now on a second process works beside this one
    for split in ("train", "val"):
        detect(_source(**_UNSEEN), str(training.checkpoint("2D stage")), split, workers=1)
    measurement = _GapMeasurement(training.checkpoint("2D stage"))
    training.train(
        STEPS[-1:], lambda: measurement.add("lifter on exact 2D", training.checkpoint("exact"))
    )
    measurement.add("lifter on detections", training.checkpoint("detected"))
    folders = [Path(training.finished[step.label]) for step in STEPS]
    _print_summary(Path(runs), folders, measurement.table(), time.monotonic() - started)
    training.progress_file.unlink()


class DemoTraining:
    """The steps of a demo: which ones are finished, and the training of the others.

    Args:
        runs: Folder of all runs.
        wandb: W&B mode; None for the default.
        resume_with_changed_code: Whether a run is resumed also if the code has changed.
    """

    def __init__(self, runs: Path, wandb: str | None, resume_with_changed_code: bool) -> None:
        self.runs, self.wandb = runs, wandb
        self.options = ["--resume_with_changed_code"] if resume_with_changed_code else []
        self.progress_file = runs / "demo.json"
        self.finished = _finished_steps(self.progress_file)  # label -> run folder

    def check(self) -> None:
        """Check all steps that are left before the first one, and print where they are trained.

        Raises:
            HeatliftError: If a step cannot be trained.
        """
        planned: set[str] = set()
        for step in STEPS:
            if step.label not in self.finished:
                plan = check_fit(step.stage, self._arguments(step), planned)
                print_line(f"  to train: {plan.folder}; {plan.length}; {plan.inputs}")
                planned.add(step.stage)

    def checkpoint(self, label: str) -> Path:
        """Best weights of a finished step."""
        folder = Path(self.finished[label])
        return folder / (read_state(folder) or {})["checkpoint"]

    def train(self, steps: Sequence[Step], meanwhile: Callable[[], None] | None = None) -> None:
        """Train steps, each as soon as those that it needs are finished.

        The networks are small: on free cores several threads gain little, and on cores that other
        programs use they wait for each other. So lifters have one. The worker of the 2D stage,
        which draws most of the time, has a core of its own, and torch the others.

        Args:
            steps: The steps.
            meanwhile: A function that is called once beside the first of them.

        Raises:
            StageProcessError: If a step fails; the others are stopped, and resumed next time.
        """
        threads = max(1, torch.get_num_threads() - 1)
        waiting = [step for step in steps if step.label not in self.finished]
        running: dict[Step, StageProcess] = {}
        try:
            while True:
                for step in [s for s in waiting if self.finished.keys() >= set(s.needs)]:
                    arguments = [step.stage, *self._arguments(step), *self.options]
                    count = threads if step.stage == "heatmap" else 1
                    running[step] = StageProcess(step.label, arguments, count, _LABEL_WIDTH)
                    waiting.remove(step)
                if meanwhile:
                    meanwhile()
                    meanwhile = None
                if not running:
                    return
                for step in [s for s, process in running.items() if not process.is_running()]:
                    running.pop(step).check()
                    self._finish(step)
                time.sleep(0.1)
        except StoppedBySignal as stop:
            end_all([*running.values()], stop.exit_code - 128)
            raise
        except BaseException:
            end_all([*running.values()], signal.SIGTERM)
            raise

    def _arguments(self, step: Step) -> list[str]:
        """Arguments of a step after the name of its stage."""
        arguments = ["fit", "-c", f"{step.stage}/demo", "--name", step.name]
        arguments += ["--runs", str(self.runs), *(["--wandb", self.wandb] if self.wandb else [])]
        arguments += step.arguments
        if step.stage == "heatmap" and not has_fast_bf16():
            arguments += ["--trainer.precision", "32-true"]
        if step.label == "detected" and "exact" in self.finished:
            arguments += ["--model.pretrained", str(self.checkpoint("exact"))]
        return arguments

    def _finish(self, step: Step) -> None:
        """Store that a step is finished."""
        found = newest_finished_run(self.runs, step.stage, lambda settings: True, name=step.name)
        assert found is not None
        self.finished[step.label] = str(found.parents[1])
        text = json.dumps(self.finished)
        write_atomically(self.progress_file, lambda file: file.write(text.encode()))


def _finished_steps(progress_file: Path) -> dict[str, str]:
    """Read the run folders of the finished steps of an interrupted demo, in order.

    If the file is damaged or a run is missing, the result is empty, and the file is renamed.
    """
    if not progress_file.exists():
        return {}
    try:
        folders = json.loads(progress_file.read_text())
        states = [read_state(Path(path)) or {} for path in folders.values()]
        if all(state["state"] == FINISHED for state in states) and folders.keys() <= _LABELS:
            return dict(folders)
    except (ValueError, AttributeError, TypeError, KeyError):
        pass
    print_line(
        f"heatlift: warning: {progress_file} names no finished runs (damaged?); "
        "the demo starts from the beginning"
    )
    mark_as_damaged(progress_file)
    return {}


def _source(**options: Any) -> Synthetic:
    """The source of `lift/demo` with other options."""
    return Synthetic(**read_source(find_config("lift/demo"))["init_args"] | options)


def _print_durations(title: str, seconds: Sequence[float]) -> None:
    """Print a table with the durations of the steps and of the whole demo."""
    descriptions = (*(step.description for step in STEPS), "all, some of them at once")
    rows = [(format_duration(d), text) for d, text in zip(seconds, descriptions, strict=True)]
    print_table(("time", "stage"), rows, title, right=("time",))


def _print_summary(
    runs: Path, folders: Sequence[Path], gap: tuple[Row, list[Row]], seconds: float
) -> None:
    """Print the errors, the durations, and the path of the page.

    Args:
        runs: Folder of all runs.
        folders: Run folders of the steps.
        gap: Columns and rows of the table from exact to detected 2D.
        seconds: Duration of the demo since its start, or since it was resumed.
    """
    states: list[dict[str, Any]] = [read_state(folder) or {} for folder in folders]
    detector, pretrained, exact, detected = [state["numbers"] for state in states]

    def relative_error(numbers: Mapping[str, float]) -> str:
        return f"{numbers['test/of_mean_pose']:.2f} of the error of the mean pose"

    pck, mean_pose = 100 * detector["test/pck_0.1"], exact["test/mean_pose_mpjpe_mm"]
    rows = [
        ("2D stage, PCK@0.1", f"{pck:.1f} %", "all joints, also hidden ones; no flip test"),
        ("pretraining, MPJPE", f"{pretrained['test/mpjpe_mm']:.1f} mm", "from masked, noisy 2D"),
        ("mean pose, MPJPE", f"{mean_pose:.1f} mm", "the same pose in all frames"),
        ("lifter on exact 2D, MPJPE", f"{exact['test/mpjpe_mm']:.1f} mm", relative_error(exact)),
        (
            "lifter on detections, MPJPE",
            f"{detected['test/mpjpe_mm']:.1f} mm",
            relative_error(detected),
        ),
    ]
    checkpoints = [
        folder / state["checkpoint"] for folder, state in zip(folders, states, strict=True)
    ]
    columns, detail = gap
    titles = [step.description for step in STEPS]
    write_png(runs / "demo.png", draw_chain(checkpoints[0], checkpoints[-1]))
    page = callback.write_chain_index(
        folders,
        runs / "demo.html",
        titles=titles,
        rows=rows,
        image=runs / "demo.png",
        details=[("From exact to detected 2D", columns, detail)],
    )
    print_line("")
    heads = ("metric", "value", "remark")
    print_table(heads, rows, "people of the synthetic test split:", right=("value",))
    print_line("")
    print_table(columns, detail, "from exact to detected 2D, test split:", right=columns[1:])
    print_line("")
    _print_durations("time taken:", [*(state["seconds"] for state in states), seconds])
    print_line("")
    print_line(f"images and curves: {page}")


class _GapMeasurement:
    """Table of what the errors of the detector cost the two lifters.

    Args:
        detector: Checkpoint of the 2D stage.
    """

    def __init__(self, detector: Path) -> None:
        self._detector = detector
        self._clips: list[DetectedClip] = []
        self._errors: dict[str, list[InputErrors]] = {}

    def add(self, name: str, checkpoint: Path) -> None:
        """Measure a lifter on the test split of `lift/demo`."""
        if not self._clips:
            self._clips = load_detected_clips(_source(), self._detector)
        module = load_module(checkpoint, (LiftModule,))
        self._errors[name] = measure_inputs(self._clips, {name: module})

    def table(self) -> tuple[Row, list[Row]]:
        """Columns and rows."""
        words = {EXACT: "exact 2D", ALL: "all: the detections"}
        words |= {part: f"exact 2D and {text}" for part, text in PARTS.items()}
        rows = [
            (
                words[row.name],
                f"{100 * row.affected:.1f} %",
                f"{row.pixels:.2f} px",
                f"{100 * row.relative:.2f} %",
                *(
                    f"{error:.1f} mm"
                    for lifted in (row, *others)
                    for error in lifted.mpjpe.values()
                ),
            )
            for row, *others in zip(*self._errors.values(), strict=True)
        ]
        columns = ("2D input", "joints", "2D error in the crop", "of the person")
        return (*columns, *self._errors), rows
