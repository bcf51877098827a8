"""What saving, re-seeding and watching add to a training step (--pairs N, --steps N, --case NAME).

Each case is the command line of the demo's stage. Blocks of steps alternate with and without the
callbacks that make a run resumable (seeds per batch, guard against NaN, signals, saving), in turn
A B, B A, …, in one process and one training. States are saved in some of the blocks, and their time
counts as often as it would at the default of one state in --save_every steps. The ratio is that of
two neighbouring blocks; the median over the pairs counts. Processor time is of all threads of the
process, wall time also sees the disk. The time inside the callbacks is printed too: on a machine
that does other things it is the steadier figure.
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

WANTED = 1.02
"""Largest ratio that is good enough."""

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
"""Wall and processor seconds."""


def now() -> Times:
    """Both clocks."""
    return time.perf_counter(), time.process_time()


def since(begun: Times) -> Times:
    """Seconds on both clocks."""
    wall, cpu = now()
    return wall - begun[0], cpu - begun[1]


def timed(act: Callable[..., Any], into: list[Times]) -> Callable[..., Any]:
    """The same, with its times appended to a list."""

    def run(*rest: Any) -> Any:
        begun = now()
        answer = act(*rest)
        into.append(since(begun))
        return answer

    return run


class MeasuredEnd(BaseException):
    """All blocks are measured; ends the training."""


@dataclass
class Clock(pl.Callback):
    """Times blocks of steps and takes our callbacks in and out between them.

    Args:
        steps: Per block.
        pairs: Of blocks.
    """

    steps: int
    pairs: int
    ours: list[pl.Callback] = field(default_factory=list)
    others: list[pl.Callback] = field(default_factory=list)
    blocks: list[tuple[bool, Times, Times]] = field(default_factory=list)
    saves: list[Times] = field(default_factory=list)
    inside: list[Times] = field(default_factory=list)
    counted: int = 0
    begun: Times = (0.0, 0.0)
    done: int = -WARM_UP

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find our callbacks and time what they do."""
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
        """At the first step of a block: stop the clock, take in or out, start it."""
        block, step = divmod(self.done, self.steps)
        self.done += 1
        if self.done <= 0 or step:
            return
        if block:
            spent = [
                sum(clock) for clock in zip((0.0, 0.0), *self.saves[self.counted :], strict=True)
            ]
            self.blocks.append((has_ours(block - 1), since(self.begun), (spent[0], spent[1])))
        else:
            self.inside.clear()
            self.saves.clear()
        self.counted = len(self.saves)
        if block == 2 * self.pairs:
            raise MeasuredEnd
        with_them = [*self.others, *self.ours] if has_ours(block) else self.others
        trainer.callbacks = with_them  # type: ignore[attr-defined]
        self.begun = now()


def has_ours(block: int) -> bool:
    """A B, B A, A B, …: whether this block runs with our callbacks."""
    return (block // 2 + block) % 2 == 0


def measure(stage: str, words: tuple[str, ...], clock: Clock) -> None:
    """Run a stage's command line with the clock in it, in a folder that is thrown away."""
    plain = stage_cli.StageCLI.instantiate_trainer

    def instantiate(self: stage_cli.StageCLI, **options: Any) -> pl.Trainer:
        trainer = plain(self, **options)
        trainer.callbacks.insert(0, clock)  # type: ignore[attr-defined]
        return trainer

    stage_cli.StageCLI.instantiate_trainer = instantiate  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        line = ["fit", "-c", f"{stage}/demo", "--runs", folder, "--wandb", "off", *words]
        line += ["--trainer.max_epochs", "1000", "--trainer.limit_val_batches", "0"]
        try:
            code = launch.run_stage(stage, line)
        except MeasuredEnd:
            return
        finally:
            stage_cli.StageCLI.instantiate_trainer = plain  # type: ignore[method-assign]
    sys.exit(code or "the training ended before all blocks were measured")


def report(name: str, clock: Clock, save_every: int) -> float:
    """Print the figures of a case; its ratio in processor time."""
    steps = clock.steps * clock.pairs
    for which, what in enumerate(("wall", "CPU")):
        save = statistics.median(times[which] for times in clock.saves)
        each = save / save_every
        ratios, plain = [], []
        for pair in zip(clock.blocks[::2], clock.blocks[1::2], strict=True):
            block = {has: times[which] - spent[which] for has, times, spent in pair}
            ratios.append((block[True] + each * clock.steps) / block[False])
            plain.append(block[False] / clock.steps)
        saved = sum(times[which] for times in clock.saves)
        inside = (sum(times[which] for times in clock.inside) - saved) / steps + each
        step = statistics.median(plain)
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{name:9s} {what:4s} step {1e3 * step:7.2f} ms, one save {1e3 * save:5.1f} ms; "
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
    given = parser.parse_args()
    torch.set_num_threads(1)
    missed = False
    for name in given.case or CASES:
        clock = Clock(given.steps, given.pairs)
        measure(*CASES[name], clock)
        ratio = report(name, clock, given.save_every)
        missed |= ratio > WANTED
        print(f"{name}: {ratio - 1:+.2%} of processor time{', MISSED' if ratio > WANTED else ''}")
    sys.exit(missed)


if __name__ == "__main__":
    main()
