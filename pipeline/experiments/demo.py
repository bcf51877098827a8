"""`heatlift demo`: all stages trained on rendered people, then a table of errors and a page."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.cli import launch
from pipeline.cli.configs import find_config, read_source
from pipeline.cli.doctor import has_fast_bf16
from pipeline.cli.stage_check import check_fit
from pipeline.cli.tables import print_table
from pipeline.dashboard import callback
from pipeline.dashboard.media import write_png
from pipeline.errors import HeatliftError
from pipeline.experiments.demo_image import draw_chain
from pipeline.experiments.detection_errors import (
    ALL,
    EXACT,
    PARTS,
    load_detected_clips,
    measure_inputs,
)
from pipeline.files.writing import write_atomically
from pipeline.lift.module import LiftModule
from pipeline.mocap import Synthetic
from pipeline.training.checkpoints import load_module
from pipeline.training.console import format_duration, print_line
from pipeline.training.run_changes import FINISHED
from pipeline.training.run_folder import mark_as_damaged, newest_finished_run, read_state


@dataclass(frozen=True)
class Step:
    """One training of the demo.

    Args:
        stage: Name of the stage.
        name: Name of the run.
        minutes: Expected duration on two CPU cores, minutes.
        description: Description in the printed tables.
        arguments: Arguments after the config `STAGE/demo`.
    """

    stage: str
    name: str
    minutes: float
    description: str
    arguments: tuple[str, ...] = ()


STEPS = (
    Step("heatmap", "demo", 7.0, "2D stage: rendered people to heatmaps to joints"),
    Step("pretrain", "demo", 2.0, "pretraining: motion from masked, noisy projections"),
    Step(
        "lift",
        "demo-exact",
        3.0,
        "lifter on exact 2D, from the pretrained weights",
        ("--data.detections", "exact", "--model.pretrained", "newest"),
    ),
    Step(
        "lift",
        "demo-detected",
        3.0,
        "lifter on detections of the 2D stage, from the weights of the lifter before",
        (
            # half of 8 people: those whom the detector has not seen
            *("--data.detections", "newest", "--data.source.init_args.share", "lifter"),
            *("--data.source.init_args.train", "8"),
            *("--data.step", "3", "--data.augment_every", "0", "--trainer.max_epochs", "2"),
            *("--model.optimizer.init_args.lr", "1e-3"),
        ),
    ),
)


class DemoError(HeatliftError):
    """A stage of the demo failed; its own error line is printed before.

    Args:
        message: Text of the error.
        code: Exit code of the stage.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


def demo(
    runs: str = "runs", wandb: str | None = None, *, resume_with_changed_code: bool = False
) -> None:
    """Train all stages on rendered people, then print a table and the path of a page of images.

    An interrupted demo is resumed; a finished demo is run again from the beginning.

    Args:
        runs: Folder of all runs.
        wandb: W&B mode: auto (online if there is an API key), online, offline or off; by default
            that of the variable WANDB, or auto.
        resume_with_changed_code: Whether a run is resumed also if the code of Heatlift has changed.

    Raises:
        DemoError: If a stage fails.
    """
    os.environ.setdefault("HEATLIFT_GROUP", f"demo-{time.strftime('%Y%m%d-%H%M%S')}")
    _print_durations("heatlift demo, on two cores:", [60 * step.minutes for step in STEPS])
    progress_file = Path(runs) / "demo.json"
    finished = _finished_steps(progress_file)
    _check_steps(STEPS[len(finished) :], Path(runs), wandb, finished)
    for step in STEPS[len(finished) :]:
        arguments = _arguments(step, Path(runs), wandb, list(finished.values()))
        arguments += ["--resume_with_changed_code"] if resume_with_changed_code else []
        code = _train(step, arguments)
        if code:
            raise DemoError(f"stage {step.name} of the demo ended with exit code {code}", code)
        finished[step.name + step.stage] = str(_newest_checkpoint(Path(runs), step).parents[1])
        write_atomically(progress_file, lambda file: file.write(json.dumps(finished).encode()))
    progress_file.unlink()
    with _threads(1):
        _print_summary(Path(runs), [Path(folder) for folder in finished.values()])


def _train(step: Step, arguments: list[str]) -> int:
    """Train a step; return its exit code.

    The networks are small: on free cores several threads gain little, and on cores that other
    programs use they wait for each other. So lifters have one. The worker of the 2D stage, which
    draws most of the time, has a core of its own, and torch the others.
    """
    with _threads(max(1, torch.get_num_threads() - 1) if step.stage == "heatmap" else 1):
        return launch.run_stage(step.stage, arguments)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads, unless `OMP_NUM_THREADS` is set."""
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_steps(
    steps: Sequence[Step], runs: Path, wandb: str | None, finished: Mapping[str, str]
) -> None:
    """Check all steps that are left before the first one, and print where they are trained.

    Raises:
        HeatliftError: If a step cannot be trained.
    """
    planned: set[str] = set()
    for step in steps:
        folders = [] if planned else list(finished.values())
        plan = check_fit(step.stage, _arguments(step, runs, wandb, folders), planned)
        print_line(f"  to train: {plan.folder}; {plan.length}; {plan.inputs}")
        planned.add(step.stage)


def _finished_steps(progress_file: Path) -> dict[str, str]:
    """Read the run folders of the finished steps of an interrupted demo, in order.

    If the file is damaged or a run is missing, the result is empty, and the file is renamed.
    """
    if not progress_file.exists():
        return {}
    try:
        folders = json.loads(progress_file.read_text())
        if all((read_state(Path(path)) or {})["state"] == FINISHED for path in folders.values()):
            return dict(folders)
    except (ValueError, AttributeError, TypeError, KeyError):
        pass
    print_line(
        f"heatlift: warning: {progress_file} names no finished runs (damaged?); "
        "the demo starts from the beginning"
    )
    mark_as_damaged(progress_file)
    return {}


def _arguments(step: Step, runs: Path, wandb: str | None, folders: Sequence[str]) -> list[str]:
    """Arguments of a step; `folders` are the run folders of the steps before, if there are any."""
    arguments = ["fit", "-c", f"{step.stage}/demo", "--name", step.name, "--runs", str(runs)]
    arguments += [*(["--wandb", wandb] if wandb else []), *step.arguments]
    if step.stage == "heatmap" and not has_fast_bf16():
        arguments += ["--trainer.precision", "32-true"]
    if step is STEPS[-1] and folders:
        arguments += ["--model.pretrained", f"{folders[-1]}/checkpoints/best.ckpt"]
    return arguments


def _newest_checkpoint(runs: Path, step: Step) -> Path:
    """Checkpoint of the run of a step that has just finished."""
    found = newest_finished_run(runs, step.stage, lambda settings: True, name=step.name)
    if found is None:
        raise DemoError(f"{runs / step.stage / step.name}: did not finish", 1)
    return found


def _print_durations(title: str, seconds: Sequence[float]) -> None:
    """Print a table with the durations of the steps."""
    rows = [
        (format_duration(duration), step.description)
        for step, duration in zip(STEPS, seconds, strict=True)
    ]
    print_table(("time", "stage"), rows, title, right=("time",))


def _print_summary(runs: Path, folders: Sequence[Path]) -> None:
    """Print the errors, the durations, and the path of the page."""
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
    columns, detail = _gap_table(checkpoints)
    gap = ("From exact to detected 2D", columns, detail)
    titles = [step.description for step in STEPS]
    write_png(runs / "demo.png", draw_chain(checkpoints[0], checkpoints[-1]))
    page = callback.write_chain_index(
        folders,
        runs / "demo.html",
        titles=titles,
        rows=rows,
        image=runs / "demo.png",
        details=[gap],
    )
    print_line("")
    heads = ("metric", "value", "remark")
    print_table(heads, rows, "people of the synthetic test split:", right=("value",))
    print_line("")
    print_table(columns, detail, "from exact to detected 2D, test split:", right=columns[1:])
    print_line("")
    _print_durations("time taken:", [state["seconds"] for state in states])
    print_line("")
    print_line(f"images and curves: {page}")


def _gap_table(checkpoints: Sequence[Path]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of a table of what the errors of the detector cost the two lifters.

    Args:
        checkpoints: Weights of all steps.
    """
    detector, _, *lifters = checkpoints
    names = ("lifter on exact 2D", "lifter on detections")
    modules = {
        name: load_module(path, (LiftModule,)) for name, path in zip(names, lifters, strict=True)
    }
    source = Synthetic(**read_source(find_config("lift/demo"))["init_args"])
    clips = load_detected_clips(source, detector)
    words = {EXACT: "exact 2D", ALL: "all: the detections"}
    words |= {part: f"exact 2D and {text}" for part, text in PARTS.items()}
    rows = [
        (
            words[row.name],
            f"{100 * row.affected:.1f} %",
            f"{row.pixels:.2f} px",
            f"{100 * row.relative:.2f} %",
            *(f"{row.mpjpe[name]:.1f} mm" for name in names),
        )
        for row in measure_inputs(clips, modules)
    ]
    return ("2D input", "joints", "2D error in the crop", "of the person", *names), rows
