"""What saving, re-seeding and watching add to a training step (--pairs N, --steps N, --case NAME).

Each case is the command line of the demo's stage. Blocks of steps alternate with and without the
callbacks that make a run resumable (seeds per batch, guard against NaN, signals, saving), in turn
A B, B A, …, in one process and one training. A block with them saves one state; its time counts as
often as it would at the default of one state in --save_every steps. The ratio is that of two
neighbouring blocks; the median over the pairs counts. Processor time is of all threads of the
process, wall time also sees the disk.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch

from pipeline import cli, watch

WANTED = 1.02
"""Largest ratio that is good enough."""

OURS = (watch.Seeds, watch.Guard, watch.Signals, watch.Keeper)
CASES = {
    "lifter": ("lift", ("--data.detections", "exact", "--model.pretrained", "none")),
    "detector": ("heatmap", ("--trainer.precision", "32-true")),
}
WARM_UP = 12
Times = tuple[float, float]
"""Wall and processor seconds."""


def now() -> Times:
    """Both clocks."""
    return time.perf_counter(), time.process_time()


def since(begun: Times) -> Times:
    """Seconds on both clocks."""
    wall, cpu = now()
    return wall - begun[0], cpu - begun[1]


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
    blocks: list[tuple[bool, Times]] = field(default_factory=list)
    saves: list[Times] = field(default_factory=list)
    begun: Times = (0.0, 0.0)
    done: int = -WARM_UP

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find our callbacks; save one state per block, and time it."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        self.ours = [callback for callback in callbacks if isinstance(callback, OURS)]
        self.others = [callback for callback in callbacks if callback not in self.ours]
        for callback in self.ours:
            if isinstance(callback, watch.Keeper):
                callback.every = self.steps
                self._time(callback)

    def _time(self, keeper: watch.Keeper) -> None:
        plain = keeper.save

        def save(trainer: pl.Trainer) -> None:
            begun = now()
            plain(trainer)
            self.saves.append(since(begun))

        keeper.save = save  # type: ignore[method-assign]

    def on_train_batch_start(self, trainer: pl.Trainer, *rest: Any) -> None:
        """At the first step of a block: stop the clock, take in or out, start it."""
        block, step = divmod(self.done, self.steps)
        self.done += 1
        if self.done <= 0 or step:
            return
        if block:
            self.blocks.append((block_has_ours(block - 1), since(self.begun)))
        if block == 2 * self.pairs:
            raise MeasuredEnd
        with_them = [*self.others, *self.ours] if block_has_ours(block) else self.others
        trainer.callbacks = with_them  # type: ignore[attr-defined]
        self.begun = now()


def block_has_ours(block: int) -> bool:
    """A B, B A, A B, …: whether this block runs with our callbacks."""
    return (block // 2 + block) % 2 == 0


def measure(stage: str, words: tuple[str, ...], clock: Clock) -> None:
    """Run a stage's command line with the clock in it, in a folder that is thrown away."""
    plain = cli.StageCLI.instantiate_trainer

    def instantiate(self: cli.StageCLI, **options: Any) -> pl.Trainer:
        trainer = plain(self, **options)
        trainer.callbacks.insert(0, clock)  # type: ignore[attr-defined]
        return trainer

    cli.StageCLI.instantiate_trainer = instantiate  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        line = ["fit", "-c", f"{stage}/demo", "--runs", folder, "--wandb", "off", *words]
        line += ["--trainer.max_epochs", "1000", "--trainer.limit_val_batches", "0"]
        try:
            code = cli.run(stage, line)
        except MeasuredEnd:
            return
        finally:
            cli.StageCLI.instantiate_trainer = plain  # type: ignore[method-assign]
    sys.exit(code or "the training ended before all blocks were measured")


def report(name: str, clock: Clock, save_every: int) -> float:
    """Print the figures of a case; its ratio in processor time."""
    save = [statistics.median(times) for times in zip(*clock.saves, strict=True)]
    medians = []
    for which, what in enumerate(("wall", "CPU")):
        ratios, plain = [], []
        saves = iter(clock.saves)
        for one, other in zip(clock.blocks[::2], clock.blocks[1::2], strict=True):
            block = {has: times[which] for has, times in (one, other)}
            spent = next(saves)[which]
            watched = block[True] - spent + spent * clock.steps / save_every
            ratios.append(watched / block[False])
            plain.append(block[False] / clock.steps)
        low, middle, high = statistics.quantiles(ratios, n=4)
        medians.append(middle)
        print(
            f"{name:9s} {what:4s} step {1e3 * statistics.median(plain):8.2f} ms, "
            f"one save {1e3 * save[which]:6.1f} ms; with / without: median {middle:.4f}, "
            f"quartiles {low:.4f} to {high:.4f}, range {min(ratios):.4f} to {max(ratios):.4f}"
        )
    return medians[1]


def main() -> None:
    """Measure the cases; exit with 1 if one adds too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
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
