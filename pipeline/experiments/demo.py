"""The whole chain on embedded people in one process: every stage trained, a table and a page."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cli import launch
from pipeline.cli.doctor import has_fast_bf16
from pipeline.dashboard import callback
from pipeline.errors import HeatliftError
from pipeline.files.writing import write_atomically
from pipeline.training.console import format_duration, print_line
from pipeline.training.run_folder import FINISHED, newest_finished_run, read_state, rename_to_bad


@dataclass(frozen=True)
class Step:
    """One stage of the demo.

    Args:
        stage: Which stage.
        name: Of its run.
        minutes: What it takes on two cores.
        what: For people.
        words: Options beside the config `STAGE/demo`.
    """

    stage: str
    name: str
    minutes: float
    what: str
    words: tuple[str, ...] = ()


STEPS = (
    Step("heatmap", "demo", 6.0, "2D stage: rendered people to heatmaps to joints"),
    Step("pretrain", "demo", 2.5, "pretraining: motion out of masked, noisy projections"),
    Step(
        "lift",
        "demo-exact",
        1.5,
        "lifter on exact 2D, from the pretrained weights",
        ("--data.detections", "exact", "--model.pretrained", "newest"),
    ),
    Step(
        "lift",
        "demo-detected",
        2.5,
        "lifter on its own detections, cached, from the weights before",
        (
            *("--data.detections", "newest", "--data.source.init_args.share", "lifter"),
            *("--data.step", "3", "--trainer.max_epochs", "3"),
            *("--model.optimizer.init_args.lr", "1e-3"),
        ),
    ),
)


def demo(runs: str = "runs", wandb: str = "auto") -> None:
    """Train every stage on embedded people, then print a table and say where the images are.

    A demo that was stopped goes on with the stage it was in; a finished one starts anew.

    Args:
        runs: Folder of all runs.
        wandb: auto, online, offline or off.

    Raises:
        DemoError: If a stage fails; its line is printed before.
    """
    os.environ.setdefault("HEATLIFT_GROUP", f"demo-{time.strftime('%Y%m%d-%H%M%S')}")
    print_line("heatlift demo, on two cores:")
    for step in STEPS:
        print_line(f"  {format_duration(60 * step.minutes):>8}  {step.what}")
    notes = Path(runs) / "demo.json"
    done = _done(notes)
    for step in STEPS[len(done) :]:
        code = launch.run_stage(step.stage, _words(step, Path(runs), wandb, list(done.values())))
        if code:
            raise DemoError(f"stage {step.name} of the demo ended with exit code {code}", code)
        done[step.name + step.stage] = str(_finished(Path(runs), step).parents[1])
        write_atomically(notes, lambda file: file.write(json.dumps(done).encode()))
    notes.unlink()
    _summary(Path(runs), [Path(folder) for folder in done.values()])


def _done(notes: Path) -> dict[str, str]:
    """Folders of the steps that a stopped demo had finished, in order; none if they are lost."""
    if not notes.exists():
        return {}
    try:
        done = json.loads(notes.read_text())
        if all((read_state(Path(folder)) or {})["state"] == FINISHED for folder in done.values()):
            return dict(done)
    except (ValueError, AttributeError, TypeError, KeyError):
        pass
    print_line(
        f"heatlift: warning: {notes} names no finished runs (damaged?); the demo begins anew"
    )
    rename_to_bad(notes)
    return {}


class DemoError(HeatliftError):
    """A stage of the demo failed and has said why."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


def _words(step: Step, runs: Path, wandb: str, folders: Sequence[str]) -> list[str]:
    """Command line of a step, after the steps whose folders are given."""
    words = ["fit", "-c", f"{step.stage}/demo", "--name", step.name, "--runs", str(runs)]
    words += ["--wandb", wandb, *step.words]
    if step.stage == "heatmap" and not has_fast_bf16():
        words += ["--trainer.precision", "32-true"]
    if step is STEPS[-1]:
        words += ["--model.pretrained", f"{folders[-1]}/checkpoints/best.ckpt"]
    return words


def _finished(runs: Path, step: Step) -> Path:
    """Checkpoint of the run of a step that has just finished."""
    found = newest_finished_run(runs, step.stage, lambda settings: True, name=step.name)
    if found is None:
        raise DemoError(f"{runs / step.stage / step.name}: did not finish", 1)
    return found


def _summary(runs: Path, folders: Sequence[Path]) -> None:
    """The table, the times taken, and where the images are."""
    states: list[dict[str, Any]] = [read_state(folder) or {} for folder in folders]
    heat, pretrained, exact, detected = [state["numbers"] for state in states]

    def share(numbers: Mapping[str, float]) -> str:
        return f"{numbers['test/of_mean_pose']:.2f} of the mean pose's"

    pck, mean_pose = 100 * heat["test/pck_0.1"], exact["test/mean_pose_mpjpe_mm"]
    rows = [
        ("2D stage, PCK@0.1", f"{pck:.1f} %", "of joints, hidden ones too; no flip test"),
        ("pretraining, MPJPE", f"{pretrained['test/mpjpe_mm']:.1f} mm", "from masked, noisy 2D"),
        ("mean pose, MPJPE", f"{mean_pose:.1f} mm", "every frame answered alike"),
        ("lifter on exact 2D, MPJPE", f"{exact['test/mpjpe_mm']:.1f} mm", share(exact)),
        ("lifter on its detections", f"{detected['test/mpjpe_mm']:.1f} mm", share(detected)),
    ]
    page = callback.write_chain_index(folders, runs / "demo.html")
    print_line("\nheld-out people of the synthetic test split:")
    for name, number, note in rows:
        print_line(f"  {name:<28} {number:>9}   {note}")
    print_line("\ntime taken:")
    for step, state in zip(STEPS, states, strict=True):
        print_line(f"  {format_duration(state['seconds']):>8}  {step.what}")
    print_line(f"\nimages and curves: {page}")
