"""Errors of a row of the benchmark, measured without and with smoothing on the same weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl

from pipeline.experiments.robustness import Point, measure_robustness
from pipeline.files.writing import write_atomically
from pipeline.lift.data import LiftDataModule
from pipeline.lift.module import LiftModule
from pipeline.sources import MotionSource
from pipeline.training.checkpoints import load_module

ERRORS_FILE = "benchmark.json"
"""File in the run folder of a row with its `RowErrors`."""

PRECISION: Literal["32-true"] = "32-true"
"""Precision of all measurements, whatever the precision of training."""


@dataclass(frozen=True)
class RowErrors:
    """Errors of one lifter on the test split, every frame lifted once.

    Args:
        frames: Frames of 2D that a predicted frame depends on, without smoothing.
        smooth: Standard deviation of the Gaussian of the smoothed predictions, frames.
        unsmoothed: Metric -> error of what the lifter predicts, as `LiftModule` logs it.
        smoothed: The same of the smoothed predictions.
        points: Errors on corrupted 2D, without smoothing and with it.
        last: As `unsmoothed`, but of the weights at the end of the training.
    """

    frames: int
    smooth: float
    unsmoothed: Mapping[str, float]
    smoothed: Mapping[str, float]
    points: Sequence[Point] = ()
    last: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def of(self, *, smoothed: bool) -> Mapping[str, float]:
        """Metric -> error, without or with smoothing."""
        return self.smoothed if smoothed else self.unsmoothed

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
    unsmoothed = measure_errors(best, source, detections, 0.0)
    smoothed = measure_errors(best, source, detections, smooth)
    module, points = _load_lifter(best, 0.0), list[Point]()
    if corrupted:
        points = measure_robustness(module, source, detections=detections, smooth=(0.0, smooth))
    of_last = measure_errors(last, source, detections, 0.0) if last else {}
    return RowErrors(module.net.receptive_field, smooth, unsmoothed, smoothed, points, of_last)


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
        unsmoothed=mean([found.unsmoothed for found in errors]),
        smoothed=mean([found.smoothed for found in errors]),
        last=mean([found.last for found in errors]),
    )


def measure_errors(
    checkpoint: Path, source: MotionSource, detections: str, smooth: float
) -> dict[str, float]:
    """Test a lifter on all frames of the test split, whatever frames its training validated on.

    Args:
        checkpoint: Its weights.
        source: Data source of the motion.
        detections: 2D input, see `LiftDataModule`.
        smooth: Standard deviation of the Gaussian over time, frames; 0 for none.

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
    trainer.test(_load_lifter(checkpoint, smooth), datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _load_lifter(checkpoint: Path, smooth: float) -> LiftModule:
    """A lifter that is evaluated on all frames, with this smoothing."""
    module: LiftModule = load_module(checkpoint, (LiftModule,))
    module.frames, module.overlap, module.smooth = "all", "once", smooth
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
