"""What Trainer, callbacks and logging add to a bare training loop (--blocks, --steps, --case).

Each case is a training of a shipped config. Blocks of steps of the training alternate with blocks
of a bare loop over the same batches: batch, loss, backward, clipping, optimizer, schedule. Both
begin with the same weights and draw the same random numbers, and after every pair of blocks their
weights are compared bit by bit. Processor time of all threads of the process; the ratio is that of
two neighbouring blocks, the result is the median over the pairs, with quartiles. Validation and
the saving of states are left out; `benchmarks/resume.py` measures the latter.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from pipeline import rng
from pipeline.cli import launch, stage_cli
from pipeline.training.stage import Stage, make_optimizer

CASES = {
    "lift/demo": (0.04, ("--data.detections", "exact", "--model.pretrained", "none")),
    "lift/mixste_small": (0.02, ("--data.detections", "exact", "--model.pretrained", "none")),
    "heatmap/demo": (0.03, ("--data.workers", "0")),
}
"""Config -> the largest accepted share of time that is added, and more options."""

WARM_UP = 3
"""Pairs of blocks that are not counted."""


class MeasuredEnd(BaseException):
    """All blocks are measured; ends the training."""


class BareLoop:
    """A loop that trains a copy of a module on the batches of the run, without Lightning.

    Args:
        module: Module before its first step.
        seed: Seed of the run, for the random numbers of each batch.
    """

    def __init__(self, module: Stage, seed: int) -> None:
        trainer: Any = module.trainer
        module.trainer = None
        self.module = copy.deepcopy(module)
        module.trainer = trainer
        self.module.log_in_training = lambda *_: None  # type: ignore[method-assign]
        self.seed, self.clip = seed, trainer.gradient_clip_val
        self.precision = trainer.precision_plugin
        self.optimizer = make_optimizer(self.module)
        progress, schedule = module.progress, module.schedule
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: schedule.factor(progress.after(step), step / progress.steps_per_epoch),
        )
        self.loader = trainer.datamodule.train_dataloader()
        self.shares: list[float] = []
        """Progress of the training before each step, for networks that adapt to it."""
        self.batches = self._batches()

    def _batches(self) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
        """Epoch, number in it and content of all batches."""
        epoch = 0
        while True:
            self.loader.sampler.set_epoch(epoch)
            for number, batch in enumerate(self.loader):
                yield epoch, number, batch
            epoch += 1

    def train(self, steps: int) -> None:
        """Make so many steps."""
        # in the order of the Trainer, because the sum of the squares depends on it
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for _ in range(steps):
            epoch, number, batch = next(self.batches)
            torch.default_generator.manual_seed(
                rng.derive_seed(self.seed, "batch", epoch, number, 0)
            )
            if hasattr(self.module.net, "set_progress"):
                self.module.net.set_progress(self.shares.pop(0))
            self.optimizer.zero_grad()
            with self.precision.forward_context():
                loss = self.module.training_step(batch, number)
            loss.backward()
            if self.clip:
                nn.utils.clip_grad_norm_(parameters, self.clip)
            self.optimizer.step()
            self.scheduler.step()


class Clock(pl.Callback):
    """Times blocks of steps of the training, each followed by the same steps of the bare loop.

    Args:
        steps: Steps in a block.
        blocks: Number of measured pairs of blocks.
        seed: Seed of the run.
    """

    def __init__(self, steps: int, blocks: int, seed: int) -> None:
        self.steps, self.blocks, self.seed = steps, blocks, seed
        self.times: list[tuple[float, float]] = []
        """Processor seconds of each pair: training, bare loop."""
        self.started = 0.0
        self.bare: BareLoop | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """At the first step of a block: let the bare loop catch up, and compare the weights."""
        assert isinstance(pl_module, Stage)
        if self.bare is None:
            self.bare = BareLoop(pl_module, self.seed)
        step = trainer.global_step
        if step and step % self.steps == 0:
            middle = time.process_time()
            self.bare.train(self.steps)
            self.times.append((middle - self.started, time.process_time() - middle))
            mine, theirs = (part.state_dict() for part in (pl_module, self.bare.module))
            if different := [name for name in mine if not torch.equal(mine[name], theirs[name])]:
                sys.exit(f"after {step} steps the bare loop has another {different[0]}")
            if len(self.times) == self.blocks + WARM_UP:
                raise MeasuredEnd
        self.bare.shares.append(pl_module.progress.of_network())
        if step % self.steps == 0:
            self.started = time.process_time()


def measure(case: str, clock: Clock) -> None:
    """Train a config with the clock as the first callback, in a temporary folder."""
    original = stage_cli.StageCLI.instantiate_trainer

    def instantiate(self: stage_cli.StageCLI, **trainer_options: Any) -> pl.Trainer:
        trainer = original(self, **trainer_options)
        trainer.callbacks.insert(0, clock)  # type: ignore[attr-defined]
        return trainer

    stage = case.partition("/")[0]
    stage_cli.StageCLI.instantiate_trainer = instantiate  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["fit", "-c", case, "--runs", folder, "--wandb", "off", *CASES[case][1]]
        arguments += ["--trainer.max_epochs", "1000", "--trainer.limit_val_batches", "0"]
        arguments += ["--trainer.accelerator", "cpu", "--seed_everything", str(clock.seed)]
        try:
            code = launch.run_stage(stage, [*arguments, "--save_every", "1000000"])
        except MeasuredEnd:
            return
        finally:
            stage_cli.StageCLI.instantiate_trainer = original  # type: ignore[method-assign]
    sys.exit(code or "the training ended before all blocks were measured")


def main() -> None:
    """Measure the cases; exit with 1 if more is added than accepted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--case", choices=CASES, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    missed = False
    for case in arguments.case or CASES:
        clock = Clock(arguments.steps, arguments.blocks, seed=0)
        measure(case, clock)
        times = clock.times[WARM_UP:]
        low, middle, high = statistics.quantiles([run / bare for run, bare in times], n=4)
        step = statistics.median(bare for _, bare in times) / arguments.steps
        goal = CASES[case][0]
        missed |= middle - 1 > goal
        print(
            f"{case}: {1e3 * step:.2f} ms a step of the bare loop; Trainer, callbacks and logging "
            f"add {middle - 1:.1%} (quartiles {low - 1:.1%} to {high - 1:.1%}; goal {goal:.0%}); "
            f"weights equal after {len(clock.times) * arguments.steps} steps"
        )
    sys.exit(missed)


if __name__ == "__main__":
    main()
