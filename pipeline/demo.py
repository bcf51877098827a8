"""The whole chain on embedded people in one process: every stage trained, then a table and a page."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import cli, dashboard
from pipeline.doctor import has_fast_bf16
from pipeline.errors import HeatliftError
from pipeline.run import newest_finished, read_state
from pipeline.watch import duration


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
    Step("heatmap", "demo", 4.5, "2D stage: rendered people to heatmaps to joints"),
    Step("pretrain", "demo", 1.5, "pretraining: motion out of masked, noisy projections"),
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
        3.0,
        "its own detections, cached; the lifter on them",
        ("--data.detections", "newest", "--model.pretrained", "newest"),
    ),
)


def demo(runs: str = "runs", wandb: str = "auto") -> None:
    """Train every stage on embedded people, then print a table and say where the pictures are.

    Args:
        runs: Folder of all runs.
        wandb: auto, online, offline or off.

    Raises:
        HeatliftError: If a stage fails; its line is printed before.
    """
    os.environ.setdefault("HEATLIFT_GROUP", f"demo-{time.strftime('%Y%m%d-%H%M%S')}")
    cli.say("heatlift demo, on two cores:")
    for step in STEPS:
        cli.say(f"  {duration(60 * step.minutes):>8}  {step.what}")
    taken = []
    for step in STEPS:
        begun = time.monotonic()
        code = cli.run(step.stage, _words(step, runs, wandb))
        if code:
            raise DemoError(f"stage {step.name} of the demo ended with exit code {code}", code)
        os.environ.pop("HEATLIFT_RUN", None)
        taken.append(time.monotonic() - begun)
    _summary(Path(runs), taken)


class DemoError(HeatliftError):
    """A stage of the demo failed and has said why."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


def _words(step: Step, runs: str, wandb: str) -> list[str]:
    words = [
        "fit",
        "-c",
        f"{step.stage}/demo",
        "--name",
        step.name,
        "--runs",
        runs,
        "--wandb",
        wandb,
        *step.words,
    ]
    if step.stage == "heatmap" and has_fast_bf16():
        words += ["--trainer.precision", "bf16-mixed"]
    return words


def _newest(runs: Path, step: Step) -> Path:
    """Folder of the newest finished run of a step."""
    found = newest_finished(runs, step.stage, lambda settings: True, name=step.name)
    assert found is not None
    return found.parents[1]


def _summary(runs: Path, taken: Sequence[float]) -> None:
    folders = [_newest(runs, step) for step in STEPS]
    numbers: list[dict[str, Any]] = [(read_state(folder) or {})["numbers"] for folder in folders]
    heat, pre, exact, detected = numbers
    mean_pose = exact["test/mean_pose_mpjpe_mm"]
    rows = [
        (
            "2D stage, PCK@0.1",
            f"{100 * heat['test/pck_0.1']:.1f} %",
            "joints, hidden ones too; no flip test",
        ),
        ("pretraining, MPJPE", f"{pre['test/mpjpe_mm']:.1f} mm", "from masked, noisy 2D"),
        ("mean pose, MPJPE", f"{mean_pose:.1f} mm", "what answering every frame alike would have"),
        (
            "lifter, exact 2D, MPJPE",
            f"{exact['test/mpjpe_mm']:.1f} mm",
            f"{exact['test/of_mean_pose']:.2f} of it",
        ),
        (
            "lifter, its detections, MPJPE",
            f"{detected['test/mpjpe_mm']:.1f} mm",
            f"{detected['test/of_mean_pose']:.2f} of it",
        ),
    ]
    lines = ["", "held-out people of the synthetic test split:"]
    lines += [f"  {name:<30} {number:>9}   {note}" for name, number, note in rows]
    lines += ["", "time taken:"]
    lines += [
        f"  {duration(seconds):>8}  {step.what}" for step, seconds in zip(STEPS, taken, strict=True)
    ]
    page = runs / "demo.html"
    dashboard.chain_index(folders, page)
    lines += ["", f"pictures and curves: {page}"]
    sys.stdout.write("\n".join(lines) + "\n")
