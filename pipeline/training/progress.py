"""Progress of a training: the share that is done, by its limits in epochs, steps and time."""

from __future__ import annotations

import math
from typing import cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Timer

from pipeline.errors import UsageError


class Progress:
    """Share of a training that is done, whatever limits its length.

    The training ends at the first of its limits: `max_epochs`, `max_steps`, `max_time`.

    Args:
        trainer: Trainer of the run.
        batches: Training batches per epoch and process.

    Attributes:
        steps_per_epoch: Optimizer steps per epoch.
        steps: Optimizer steps of the whole run; None if only time limits it.
        timer: Lightning's timer; None if the time is not limited.
        time_share: Share of the time that is over, the same in all processes.

    Raises:
        UsageError: If the training has no limit.
    """

    def __init__(self, trainer: pl.Trainer, batches: int) -> None:
        # Not trainer.estimated_stepping_batches: reading it loses the state of the DataLoader
        # (lightning issue 20550).
        self.trainer, self.batches = trainer, batches
        self.steps_per_epoch = max(1, math.ceil(batches / trainer.accumulate_grad_batches))
        epochs = trainer.max_epochs if trainer.max_epochs is not None else -1
        limits = [self.steps_per_epoch * epochs] if epochs >= 0 else []
        limits += [trainer.max_steps] if trainer.max_steps >= 0 else []
        self.steps = max(1, min(limits)) if limits else None
        timers = [part for part in trainer.callbacks if isinstance(part, Timer)]  # type: ignore[attr-defined]
        self.timer = next((part for part in timers if part.time_remaining() is not None), None)
        self.time_share = 0.0
        self._by_epochs = bool(limits) and self.timer is None and limits[0] == self.steps
        self._by_epochs &= epochs > 0
        if self.steps is None and self.timer is None:
            raise UsageError(
                "the training has no end, and the learning rate depends on its length; give "
                "--trainer.max_epochs, --trainer.max_steps or --trainer.max_time"
            )

    def __deepcopy__(self, memo: object) -> Progress:
        """The progress itself: copies of a module, such as averages, are of the same training."""
        return self

    def warning(self) -> str:
        """Warning about a setting that an epoch is too short for; "" if there is none."""
        accumulated = self.trainer.accumulate_grad_batches
        if accumulated <= self.batches:
            return ""
        return (
            f"heatlift: warning: accumulate_grad_batches is {accumulated}, but an epoch has "
            f"{self.batches} batches: each optimizer step takes only these"
        )

    def update_time(self) -> None:
        """Read the clock; to be called in all processes before the same batch."""
        if self.timer is None:
            return
        elapsed = self.timer.time_elapsed()
        share = elapsed / max(elapsed + cast(float, self.timer.time_remaining()), 1e-9)
        self.time_share = min(1.0, self.trainer.strategy.broadcast(share))

    def after(self, step: int) -> float:
        """Share of the run that is done after so many optimizer steps, 0 to 1."""
        by_steps = min(1.0, step / self.steps) if self.steps else 0.0
        return max(by_steps, self.time_share)

    def of_network(self) -> float:
        """Share of the run that is done, for a network that adapts to it, 0 to 1.

        In a run whose length is a number of epochs it is the share at the start of the epoch, as
        published code has it; else it is the share at this step.
        """
        if self._by_epochs:
            return self.trainer.current_epoch / cast(int, self.trainer.max_epochs)
        return self.after(self.trainer.global_step)

    def seconds_left(self, rate: float) -> float:
        """Estimated seconds until the end, from the speed in optimizer steps per second."""
        limits = []
        if self.steps is not None:
            limits.append((self.steps - self.trainer.global_step) / max(rate, 1e-9))
        if self.timer is not None:
            limits.append(cast(float, self.timer.time_remaining()))
        return max(0.0, min(limits))


def start_progress(trainer: pl.Trainer, batches: int) -> Progress:
    """Make the progress of a training that begins.

    Args:
        trainer: Trainer of the run.
        batches: Batches of the DataLoader of this process, before `limit_train_batches`.

    Raises:
        UsageError: If the training has no limit.
    """
    limit = trainer.limit_train_batches
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return Progress(trainer, batches)
