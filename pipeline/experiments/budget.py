"""Budgets of CPU time: measured, and converted to a number of optimizer steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback

from pipeline.errors import UsageError
from pipeline.training.metrics_file import MetricsFile

PLANNED_SHARE = 0.96
"""Share of a budget that is planned, because the measured cost of a step has an error."""


class CpuTime(Callback):
    """Callback that counts the CPU seconds of this process in training, without validation.

    They are logged as `train/cpu_s` every `log_every_n_steps` steps; a resumed run continues to
    count.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.seconds = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and log the number of batches per epoch."""
        self._start = time.process_time()
        if isinstance(trainer.logger, MetricsFile) and not trainer.global_step:
            batches = len(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
            trainer.logger.log_metrics({"train/batches_per_pass": batches}, 0)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Add the time of the batch, and log the sum at every logging step."""
        self._count()
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_logging_step = trainer.global_step and trainer.global_step % every == 0
        if is_logging_step and isinstance(trainer.logger, MetricsFile):
            trainer.logger.log_metrics({"train/cpu_s": self.seconds}, trainer.global_step - 1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        if not trainer.sanity_checking:
            self._count()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock again."""
        self._start = time.process_time()

    def _count(self) -> None:
        now = time.process_time()
        self.seconds += now - self._start
        self._start = now


@dataclass(frozen=True)
class Plan:
    """Length of a training, fixed before it starts, because the schedule needs it.

    Args:
        epochs: Number of epochs.
        batches: Optimizer steps per epoch.
        validate_every: Epochs from one validation to the next; the last epoch ends with one.
    """

    epochs: int
    batches: int
    validate_every: int


def plan_steps(seconds: float, step: float, start: float, batches_per_pass: int) -> Plan:
    """Plan the longest training within a budget.

    Args:
        seconds: Budget, CPU seconds.
        step: CPU seconds of one optimizer step.
        start: CPU seconds that each epoch takes besides its steps.
        batches_per_pass: Largest number of steps per epoch.

    Raises:
        UsageError: If the budget is too small for four epochs of one step.

    >>> plan_steps(100.0, 0.5, 1.0, 30)
    Plan(epochs=7, batches=26, validate_every=1)
    """
    for least in range(4, 100_000):
        every = max(1, least // 6)
        epochs = math.ceil(least / every) * every
        batches = math.floor((seconds / epochs - start) / step)
        if batches < 1:
            break
        if batches <= batches_per_pass:
            return Plan(epochs, batches, every)
    raise UsageError(
        f"{seconds:g} s are too few for a training with {step:.2g} s per step; give more --seconds"
    )


def read_calibration(metrics: Iterable[tuple[int, str, float]]) -> tuple[float, float, int]:
    """Read the costs of a training from the metrics of a short run of two epochs.

    Args:
        metrics: Step, name and value of each logged metric.

    Returns:
        CPU seconds of a step, CPU seconds that an epoch takes besides its steps, and steps of a
        whole epoch.

    Raises:
        UsageError: If there are too few steps.
    """
    clock = {step: value for step, name, value in metrics if name == "train/cpu_s"}
    batches = next(v for _, name, v in metrics if name == "train/batches_per_pass")
    steps = sorted(clock)
    if len(steps) < 8:
        raise UsageError("the data have fewer than four batches per epoch; results needs more data")
    costs = np.diff([clock[step] for step in steps])
    half = len(steps) // 2
    later = costs[half:]
    step = float(later[len(later) // 4 :].mean())
    return step, max(0.0, float(costs[half - 1]) - step), int(batches)


def cpu_seconds_used(metrics: Iterable[tuple[int, str, float]]) -> float:
    """CPU seconds that a run spent on training."""
    return max((value for _, name, value in metrics if name == "train/cpu_s"), default=math.nan)
