"""`heatlift chain`: a lifter and the 2D stage that it needs, checked before the first step."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.cli import launch
from pipeline.cli.command_table import Command
from pipeline.cli.configs import find_config, read_source
from pipeline.cli.newest import newest_detector, with_root
from pipeline.cli.stage_check import PlannedFit, check_fit
from pipeline.cli.stages import STAGES
from pipeline.detections.request import DetectionRequest
from pipeline.errors import HeatliftError, UsageError
from pipeline.training.console import print_line

DETECT = Command("", "pipeline.detections.cache:detect", options_only=True)
"""The command `detect`, as in the command table."""


@dataclass(frozen=True)
class Step:
    """One training of a command that runs several.

    Args:
        stage: Name of the stage.
        arguments: Arguments after the name of the stage.
        description: What it is, for the plan.
    """

    stage: str
    arguments: tuple[str, ...]
    description: str = ""


class StepError(HeatliftError):
    """A step failed; its own error line is printed before.

    Args:
        step: Name of the step.
        code: Exit code of the step.
    """

    def __init__(self, step: str, code: int) -> None:
        super().__init__(
            f"{step} ended with exit code {code}; run the same command again to resume"
        )
        self.exit_code = code


def check_steps(steps: Sequence[Step]) -> list[PlannedFit]:
    """Check all steps before the first one is run; see `check_fit`.

    Raises:
        HeatliftError: If anything is wrong; the message names the step.
    """
    plans = []
    for number, step in enumerate(steps):
        planned = {before.stage for before in steps[:number]}
        plans.append(check_fit(step.stage, step.arguments, planned))
    return plans


def print_plan(title: str, steps: Sequence[Step], plans: Sequence[PlannedFit]) -> None:
    """Print what is trained, from what, and into which folder."""
    print_line(title)
    for number, (step, plan) in enumerate(zip(steps, plans, strict=True), start=1):
        resumed = ", resumed" if plan.resumed else ""
        print_line(f"  {number}. {step.stage}: {step.description or STAGES[step.stage].help}")
        print_line(f"     from   {plan.inputs}")
        print_line(f"     into   {plan.folder}{resumed}; {plan.length}")


def chain(
    lifter: str = "lift/mixste_small",
    data: str = "data/synthetic",
    *,
    root: str | None = None,
    detections: str = "newest",
    pretrained: str = "newest",
    detector: str = "heatmap/hrnet_narrow",
    name: str | None = None,
    also: str = "",
    runs: str = "runs",
    plan: bool = False,
) -> None:
    """Train a lifter, and first the 2D stage whose detections it needs, if there is none yet.

    Everything that can be known is checked before the first step of the first stage: configs,
    networks, data, weights and folders. Then a plan is printed.

    Args:
        lifter: Config of the lifter, a shipped one or a YAML file.
        data: Config of the data, a shipped one or a YAML file.
        root: Folder of the data; by default the one in the config.
        detections: 2D input of the lifter; `newest` is the newest finished 2D stage on the data.
        pretrained: Weights that it starts from: `newest` pretraining, `none`, or a checkpoint.
        detector: Config of the 2D stage that is trained if there is none yet.
        name: Name of the lifter's run.
        also: More arguments of the lifter, as one text: --also="--trainer.max_epochs 3".
        runs: Folder of all runs.
        plan: Whether to print the plan only.

    Raises:
        UsageError: If an option or a config is wrong.
        StepError: If a stage fails.
    """
    request = DetectionRequest.parse(detections)
    shared = ["-c", data]
    shared += ["--data.source.init_args.root", root] if root is not None else []
    lifting = ["fit", "-c", lifter, *shared, "--runs", runs]
    lifting += ["--name", name] if name is not None else []
    lifting += ["--data.detections", detections, "--model.pretrained", pretrained]
    steps = [Step("lift", (*lifting, *shlex.split(also)))]
    if request.kind == "newest" and not _has_detector(data, root, Path(runs)):
        fit = ("fit", "-c", detector, *shared, "--runs", runs)
        steps.insert(0, Step("heatmap", fit))
    print_plan("heatlift chain:", steps, check_steps(steps))
    if plan:
        return
    for step in steps:
        if step.stage == "lift" and request.kind in ("newest", "checkpoint"):
            checkpoint = detections
            if request.kind == "newest":
                checkpoint = newest_detector(Path(runs), _source(data, root))
            arguments = ["-c", lifter, *shared, "--detector", checkpoint]
            _raise_failure("detect", launch.run_command("detect", DETECT, arguments))
        _raise_failure(step.stage, launch.run_stage(step.stage, step.arguments))


def _raise_failure(step: str, code: int) -> None:
    """Raise an error if a step failed, or end as it did if a signal stopped it."""
    if code > 128:
        raise SystemExit(code)
    if code:
        raise StepError(step, code)


def _has_detector(data: str, root: str | None, runs: Path) -> bool:
    """Whether there is a finished 2D stage on the data."""
    try:
        newest_detector(runs, _source(data, root))
    except UsageError:
        return False
    return True


def _source(data: str, root: str | None) -> dict[str, object]:
    """Data source of a config, with another root folder if one is given."""
    source = read_source(find_config(data))
    return source if root is None else with_root(source, root)
