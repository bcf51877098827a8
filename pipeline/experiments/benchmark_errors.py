"""Errors of a row of the benchmark: of what it predicts, also smoothed or blended over windows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import lightning.pytorch as pl

from pipeline.experiments.robustness import Point, measure_robustness
from pipeline.files.writing import write_atomically
from pipeline.lift.data import LiftDataModule
from pipeline.lift.module import LiftModule
from pipeline.sources import MotionSource
from pipeline.training.checkpoints import load_module

ERRORS_FILE = "benchmark.json"
"""File in the run folder of a row with its `RowErrors`."""

Output = Literal["plain", "smoothed", "blended"]
"""What is measured with the same weights: predictions of windows one after the other, the same
smoothed over time, and predictions of windows that overlap, blended."""

OUTPUTS: tuple[Output, ...] = get_args(Output)

PRECISION: Literal["32-true"] = "32-true"
"""Precision of all measurements, whatever the precision of training."""


@dataclass(frozen=True)
class RowErrors:
    """Errors of one lifter on the test split.

    Args:
        frames: Frames of 2D that a plain predicted frame depends on.
        smooth: Standard deviation of the Gaussian of the smoothed predictions, frames.
        plain: Metric -> error of what the lifter predicts, every frame lifted once, as `LiftModule`
            logs it.
        smoothed: The same of the smoothed predictions.
        blended: The same of windows that overlap by half, without smoothing; empty for lifters that
            predict one frame of each window.
        points: Errors on corrupted 2D, plain and smoothed.
        last: As `plain`, but of the weights at the end of the training.
    """

    frames: int
    smooth: float
    plain: Mapping[str, float]
    smoothed: Mapping[str, float]
    blended: Mapping[str, float] = dataclasses.field(default_factory=dict)
    points: Sequence[Point] = ()
    last: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def outputs(self) -> list[Output]:
        """Outputs that the lifter has."""
        return [output for output in OUTPUTS if self.of(output)]

    def of(self, output: Output) -> Mapping[str, float]:
        """Metric -> error of an output; empty if the lifter does not have it."""
        found: Mapping[str, float] = getattr(self, output)
        return found

    def corrupted(self, *, smoothed: bool) -> dict[tuple[str, float], Point]:
        """Corruption and level -> errors, without or with smoothing."""
        return {(p.corruption, p.level): p for p in self.points if bool(p.smooth) == smoothed}


def measure_row(
    best: Path,
    last: Path | None,
    source: MotionSource,
    detections: str,
    smooth: float,
    *,
    corrupted: bool = True,
) -> RowErrors:
    """Measure the weights of a row.

    Args:
        best: Weights of its best validation.
        last: Weights at the end of its training; None if there are none.
        source: Data source of the motion.
        detections: 2D input: exact or noisy.
        smooth: Standard deviation of the Gaussian of the smoothed predictions, frames.
        corrupted: Whether to measure them on corrupted 2D, too.
    """
    plain = measure_errors(best, source, detections)
    smoothed = measure_errors(best, source, detections, smooth)
    module, points, blended = _load_lifter(best), list[Point](), dict[str, float]()
    if module.net.output == "every":
        blended = measure_errors(best, source, detections, overlap="blend")
    if corrupted:
        points = measure_robustness(module, source, detections=detections, smooth=(0.0, smooth))
    of_last = measure_errors(last, source, detections) if last else {}
    frames = module.net.receptive_field
    return RowErrors(frames, smooth, plain, smoothed, blended, points, of_last)


def average_errors(errors: Sequence[RowErrors]) -> RowErrors:
    """Errors of a row that was trained with several seeds: the mean of each error over them.

    Args:
        errors: Errors with each seed, that of seed 0 first; it alone gives the errors on corrupted
            2D.
    """
    first, *_ = errors

    def mean(numbers: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {key: sum(found[key] for found in numbers) / len(numbers) for key in numbers[0]}

    return dataclasses.replace(
        first,
        plain=mean([found.plain for found in errors]),
        smoothed=mean([found.smoothed for found in errors]),
        blended=mean([found.blended for found in errors]),
        last=mean([found.last for found in errors]),
    )


def measure_errors(
    checkpoint: Path,
    source: MotionSource,
    detections: str,
    smooth: float = 0.0,
    *,
    overlap: Literal["once", "blend"] = "once",
) -> dict[str, float]:
    """Test a lifter on all frames of the test split, whatever frames its training validated on.

    Args:
        checkpoint: Its weights.
        source: Data source of the motion.
        detections: 2D input, see `LiftDataModule`.
        smooth: Standard deviation of the Gaussian over time, frames; 0 for none.
        overlap: See `LiftModule`.

    Returns:
        Metric -> value, as `LiftModule` logs them.
    """
    trainer = pl.Trainer(
        precision=PRECISION,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=checkpoint.parent,
    )
    data = LiftDataModule(source, detections)
    trainer.test(_load_lifter(checkpoint, smooth, overlap), datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _load_lifter(
    checkpoint: Path, smooth: float = 0.0, overlap: Literal["once", "blend"] = "once"
) -> LiftModule:
    """A lifter that is evaluated on all frames."""
    module: LiftModule = load_module(checkpoint, (LiftModule,))
    module.frames, module.overlap, module.smooth = "all", overlap, smooth
    return module


def write_errors(folder: Path, errors: RowErrors) -> None:
    """Write the errors of a row into its run folder."""
    text = json.dumps(dataclasses.asdict(errors), indent=1)
    write_atomically(folder / ERRORS_FILE, lambda file: file.write(text.encode()))


def read_errors(folder: Path, smooth: float) -> RowErrors | None:
    """Read the errors of a row; None if they were not measured with this smoothing.

    Args:
        folder: Run folder of the row.
        smooth: Standard deviation of the Gaussian, frames.
    """
    path = folder / ERRORS_FILE
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    points = [Point(**point) for point in content.pop("points")]
    errors = RowErrors(**content, points=points)
    return errors if errors.smooth == smooth else None
