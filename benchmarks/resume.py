"""Cost of the callbacks that make a run resumable (--pairs N, --steps N, --case NAME).

Each case is a training of the demo. Blocks of training steps alternate with and without these
callbacks (seeds per batch, guard against NaN, signals, saving), in the order A B, B A, …, in one
process and one training. States are saved in some of the blocks; their time is counted as often as
with the default of one state in --save_every steps. The ratio is that of two neighbouring blocks;
the result is the median over the pairs. CPU time is that of all threads of the process; wall time
includes the disk. The time inside the callbacks is printed too, because it varies less on a machine
with other load.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch

from pipeline.cli import launch, stage_cli
from pipeline.training import callbacks, saving, signals

GOAL = 1.02
"""Largest accepted ratio of the time with the callbacks to the time without them."""

OURS = (
    callbacks.SeedEveryBatch,
    callbacks.NonFiniteGuard,
    signals.StopSignals,
    saving.CheckpointCallback,
)
HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
CASES = {
    "lifter": ("lift", ("--data.detections", "exact", "--model.pretrained", "none")),
    "detector": ("heatmap", ("--trainer.precision", "32-true")),
}
WARM_UP = 12
PAIRS_PER_SAVE = 5
Times = tuple[float, float]
"""Wall and CPU seconds."""


def now() -> Times:
    """Current time on both clocks, seconds."""
    return time.perf_counter(), time.process_time()


def since(start: Times) -> Times:
    """Seconds since a time, on both clocks."""
    wall, cpu = now()
    return wall - start[0], cpu - start[1]


def timed(function: Callable[..., Any], times: list[Times]) -> Callable[..., Any]:
    """The same function, which also appends the times of each call to a list."""

    def run(*arguments: Any) -> Any:
        start = now()
        result = function(*arguments)
        times.append(since(start))
        return result

    return run


class MeasuredEnd(BaseException):
    """All blocks are measured; ends the training."""


@dataclass
class Clock(pl.Callback):
    """Times blocks of training steps, and adds or removes the measured callbacks between them.

    Args:
        steps: Number of training steps in a block.
        pairs: Number of pairs of blocks, one with and one without the callbacks.
        ours: The measured callbacks, found when training starts.
        others: All other callbacks of the Trainer.
        blocks: For each block, whether it had the callbacks, its time, and its time for saving.
        saves: Time of each saved state.
        inside: Time of each call of a hook of the measured callbacks.
        counted: Number of saves that belong to finished blocks.
        block_start: Time at which the current block started.
        done: Number of training steps done, negative during the warm-up.
    """

    steps: int
    pairs: int
    ours: list[pl.Callback] = field(default_factory=list)
    others: list[pl.Callback] = field(default_factory=list)
    blocks: list[tuple[bool, Times, Times]] = field(default_factory=list)
    saves: list[Times] = field(default_factory=list)
    inside: list[Times] = field(default_factory=list)
    counted: int = 0
    block_start: Times = (0.0, 0.0)
    done: int = -WARM_UP

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the measured callbacks and time their hooks."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        self.ours = [callback for callback in callbacks if isinstance(callback, OURS)]
        self.others = [callback for callback in callbacks if callback not in self.ours]
        for callback in self.ours:
            if isinstance(callback, saving.CheckpointCallback):
                callback.every = 2 * self.steps * PAIRS_PER_SAVE
                callback.save = timed(callback.save, self.saves)  # type: ignore[method-assign]
            for hook in HOOKS:
                if hook in vars(type(callback)):
                    setattr(callback, hook, timed(getattr(callback, hook), self.inside))

    def on_train_batch_start(self, trainer: pl.Trainer, *rest: Any) -> None:
        """At the first step of a block: record the last block and exchange the callbacks."""
        block, step = divmod(self.done, self.steps)
        self.done += 1
        if self.done <= 0 or step:
            return
        if block:
            saves = self.saves[self.counted :]
            saving_time = (sum(wall for wall, _ in saves), sum(cpu for _, cpu in saves))
            self.blocks.append((has_ours(block - 1), since(self.block_start), saving_time))
        else:
            self.inside.clear()
            self.saves.clear()
        self.counted = len(self.saves)
        if block == 2 * self.pairs:
            raise MeasuredEnd
        active = [*self.others, *self.ours] if has_ours(block) else self.others
        trainer.callbacks = active  # type: ignore[attr-defined]
        self.block_start = now()


def has_ours(block: int) -> bool:
    """Whether a block runs with the measured callbacks, in the order A B, B A, A B, …."""
    return (block // 2 + block) % 2 == 0


def measure(stage: str, options: tuple[str, ...], clock: Clock) -> None:
    """Train a stage with the clock among its callbacks, in a temporary folder."""
    original = stage_cli.StageCLI.instantiate_trainer

    def instantiate(self: stage_cli.StageCLI, **trainer_options: Any) -> pl.Trainer:
        trainer = original(self, **trainer_options)
        trainer.callbacks.insert(0, clock)  # type: ignore[attr-defined]
        return trainer

    stage_cli.StageCLI.instantiate_trainer = instantiate  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        arguments = ["fit", "-c", f"{stage}/demo", "--runs", folder, "--wandb", "off", *options]
        arguments += ["--trainer.max_epochs", "1000", "--trainer.limit_val_batches", "0"]
        try:
            code = launch.run_stage(stage, arguments)
        except MeasuredEnd:
            return
        finally:
            stage_cli.StageCLI.instantiate_trainer = original  # type: ignore[method-assign]
    sys.exit(code or "the training ended before all blocks were measured")


def report(name: str, clock: Clock, save_every: int) -> float:
    """Print the results of a case and return its ratio of CPU time."""
    steps = clock.steps * clock.pairs
    for clock_index, clock_name in enumerate(("wall", "CPU")):
        save = statistics.median(times[clock_index] for times in clock.saves)
        save_per_step = save / save_every
        ratios, plain_steps = [], []
        for pair in zip(clock.blocks[::2], clock.blocks[1::2], strict=True):
            block = {has: times[clock_index] - spent[clock_index] for has, times, spent in pair}
            ratios.append((block[True] + save_per_step * clock.steps) / block[False])
            plain_steps.append(block[False] / clock.steps)
        saved = sum(times[clock_index] for times in clock.saves)
        inside = (sum(times[clock_index] for times in clock.inside) - saved) / steps + save_per_step
        step = statistics.median(plain_steps)
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{name:9s} {clock_name:4s} step {1e3 * step:7.2f} ms, one save {1e3 * save:5.1f} ms; "
            f"with / without: median {middle:.4f}, quartiles {low:.4f} to {high:.4f}, "
            f"range {min(ratios):.3f} to {max(ratios):.3f}; "
            f"inside our callbacks {1e3 * inside:.2f} ms, {inside / step:.2%}"
        )
    return middle


def main() -> None:
    """Measure the cases; exit with 1 if one adds too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--save_every", type=int, default=200)
    parser.add_argument("--case", choices=CASES, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    missed = False
    for name in arguments.case or CASES:
        clock = Clock(arguments.steps, arguments.pairs)
        measure(*CASES[name], clock)
        ratio = report(name, clock, arguments.save_every)
        missed |= ratio > GOAL
        print(f"{name}: {ratio - 1:+.2%} of CPU time{', MISSED' if ratio > GOAL else ''}")
    sys.exit(missed)


if __name__ == "__main__":
    main()
