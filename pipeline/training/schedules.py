"""Learning-rate schedules by optimizer step."""

from __future__ import annotations

import math


class Schedule:
    """Learning-rate factor over the course of a training; this base class keeps it constant."""

    def factor(self, progress: float, epoch: float) -> float:
        """Factor on the optimiser's learning rate.

        Args:
            progress: Share of all optimiser steps that are done, in [0, 1].
            epoch: Epochs done, with a fraction.
        """
        return 1.0


class WarmupCosine(Schedule):
    """A linear rise, then half a cosine down.

    Args:
        warmup: Share of all steps that the rise takes.
        floor: Factor at the end.
    """

    def __init__(self, warmup: float = 0.05, floor: float = 0.01) -> None:
        self.warmup, self.floor = warmup, floor

    def factor(self, progress: float, epoch: float) -> float:
        """See `Schedule.factor`."""
        if progress < self.warmup:
            return max(progress / self.warmup, 1e-3)
        done = min((progress - self.warmup) / (1.0 - self.warmup), 1.0)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done))


class StepDecay(Schedule):
    """Times `decay` at each milestone, in epochs: the 2D stages' x0.1 at 170 and 200."""

    def __init__(self, milestones: tuple[int, ...] = (170, 200), decay: float = 0.1) -> None:
        self.milestones, self.decay = milestones, decay

    def factor(self, progress: float, epoch: float) -> float:
        """See `Schedule.factor`."""
        return self.decay ** sum(epoch >= milestone for milestone in self.milestones)


class EpochDecay(Schedule):
    """Times `decay` after each epoch, as published lifters do."""

    def __init__(self, decay: float = 0.99) -> None:
        self.decay = decay

    def factor(self, progress: float, epoch: float) -> float:
        """See `Schedule.factor`."""
        return self.decay ** math.floor(epoch)
