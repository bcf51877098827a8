"""Budgets of CPU time: measured, and turned into a number of steps."""

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

CAREFUL = 0.96
"""Part of a budget that is planned for: what a step costs is known to a few per cent."""


class CpuTime(Callback):
    """Counts the CPU seconds of this process that training takes, validation left out.

    They are logged as `train/cpu_s` as often as the trainer logs, and go on in a resumed run.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.seconds = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._since = time.process_time()
        if isinstance(trainer.logger, MetricsFile) and not trainer.global_step:
            batches = len(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
            trainer.logger.log_metrics({"train/batches_per_pass": batches}, 0)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count, and now and then say so."""
        self._count()
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = trainer.global_step and trainer.global_step % every == 0
        if due and isinstance(trainer.logger, MetricsFile):
            trainer.logger.log_metrics({"train/cpu_s": self.seconds}, trainer.global_step - 1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        if not trainer.sanity_checking:
            self._count()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start it again."""
        self._since = time.process_time()

    def _count(self) -> None:
        now = time.process_time()
        self.seconds += now - self._since
        self._since = now


@dataclass(frozen=True)
class Plan:
    """How many steps a budget buys, so that the schedule knows its length before it begins.

    Args:
        epochs: Passes.
        batches: Optimiser steps in each.
        validate_every: Passes from one validation to the next; the last pass has one.
    """

    epochs: int
    batches: int
    validate_every: int


def plan_steps(seconds: float, step: float, start: float, batches_per_pass: int) -> Plan:
    """What a budget buys.

    Args:
        seconds: The budget.
        step: CPU seconds of one optimiser step.
        start: CPU seconds that each pass takes beside its steps.
        batches_per_pass: Most steps that a pass can have.

    Raises:
        UsageError: If it does not buy one step in each of four passes.

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
    raise UsageError(f"{seconds:g} s buy no training at {step:.2g} s per step; give more --seconds")


def read_calibration(metrics: Iterable[tuple[int, str, float]]) -> tuple[float, float, int]:
    """What a short run of two passes tells.

    Returns:
        CPU seconds of a step, CPU seconds that a pass takes beside its steps, and steps of a whole
        pass.

    Raises:
        UsageError: If there are too few steps to tell.
    """
    clock = {step: value for step, name, value in metrics if name == "train/cpu_s"}
    batches = next(v for _, name, v in metrics if name == "train/batches_per_pass")
    steps = sorted(clock)
    if len(steps) < 8:
        raise UsageError("the data give fewer than four batches in a pass; results needs more data")
    costs = np.diff([clock[step] for step in steps])
    half = len(steps) // 2
    later = costs[half:]
    step = float(later[len(later) // 4 :].mean())
    return step, max(0.0, float(costs[half - 1]) - step), int(batches)


def cpu_seconds_used(metrics: Iterable[tuple[int, str, float]]) -> float:
    """CPU seconds that a run spent on training."""
    return max((value for _, name, value in metrics if name == "train/cpu_s"), default=math.nan)
