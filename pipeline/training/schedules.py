"""Learning-rate schedules by optimizer step."""

from __future__ import annotations

import math


class Schedule:
    """Learning-rate factor as a function of progress; this base class keeps it at 1."""

    def factor(self, progress: float, epoch: float) -> float:
        """Factor on the learning rate of the optimizer.

        Args:
            progress: Completed share of all optimizer steps, in [0, 1].
            epoch: Completed epochs, with a fraction.
        """
        return 1.0


class WarmupCosine(Schedule):
    """Linear warm-up, then cosine decay.

    Args:
        warmup: Share of all optimizer steps in the warm-up, from 0 to 1.
        floor: Learning-rate factor at the end.

    Raises:
        ValueError: If `warmup` is not from 0 to below 1, or `floor` not from 0 to 1.
    """

    def __init__(self, warmup: float = 0.05, floor: float = 0.01) -> None:
        if not (0 <= warmup < 1 and 0 <= floor <= 1):
            raise ValueError(f"warmup is {warmup} and floor {floor}; give shares from 0 to 1")
        self.warmup, self.floor = warmup, floor

    def factor(self, progress: float, epoch: float) -> float:
        """See `Schedule.factor`."""
        if progress < self.warmup:
            return max(progress / self.warmup, 1e-3)
        done = min((progress - self.warmup) / (1.0 - self.warmup), 1.0)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done))


class StepDecay(Schedule):
    """Multiplies the learning rate by `decay` at each milestone; usual for the 2D stages.

    Args:
        milestones: Epochs at which the learning rate decays.
        decay: Factor at each milestone.
    """

    def __init__(self, milestones: tuple[int, ...] = (170, 200), decay: float = 0.1) -> None:
        self.milestones, self.decay = milestones, decay

    def factor(self, progress: float, epoch: float) -> float:
        """See `Schedule.factor`."""
        return self.decay ** sum(epoch >= milestone for milestone in self.milestones)


class EpochDecay(Schedule):
    """Multiplies the learning rate by `decay` after each epoch, as published lifters do.

    Args:
        decay: Factor per epoch.
    """

    def __init__(self, decay: float = 0.99) -> None:
        self.decay = decay

    def factor(self, progress: float, epoch: float) -> float:
        """See `Schedule.factor`."""
        return self.decay ** math.floor(epoch)
