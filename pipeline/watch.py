"""What watches a run: seeds per batch, the NaN guard, signals, saving, and lines of progress."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pipeline import chance
from pipeline.errors import NumbersError
from pipeline.run import MetricsFile, Run, plain_number, read_metrics


class Seeds(Callback):
    """Derives torch's random state from (seed, epoch, batch, process) before every batch.

    So a resumed run draws the numbers that an unbroken one draws.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the batch."""
        torch.manual_seed(
            chance.seed_of(
                self.seed, "batch", trainer.current_epoch, batch_idx, trainer.global_rank
            )
        )


class Guard(Callback):
    """Stops training before a loss or gradient that is not finite can reach the weights."""

    def __init__(self) -> None:
        self.index: list[int] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember which samples these are."""
        named = isinstance(batch, Mapping) and "index" in batch
        self.index = torch.as_tensor(batch["index"]).flatten().tolist() if named else []

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Look at the loss."""
        if not torch.isfinite(loss):
            self._stop(trainer, f"the loss is {loss.item()}")

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Look at the gradients, unless a scaler does."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        gradients = [
            p.grad
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if gradients and not torch.stack(torch._foreach_norm(gradients)).sum().isfinite():
            self._stop(trainer, "a gradient is not finite")

    def _stop(self, trainer: pl.Trainer, what: str) -> None:
        shown = ", ".join(map(str, self.index[:8])) + (" …" if len(self.index) > 8 else "")
        raise NumbersError(
            f"{what} at step {trainer.global_step}, samples {shown or 'unnamed'}; the weights are "
            "as they were before this step and no checkpoint was touched; lower the learning rate "
            "or look at those samples"
        )


class Stopped(SystemExit):
    """A signal ended the command. Not an `Exception`, so that nothing takes it for a failure.

    Args:
        number: Of the signal.
        message: For people.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(128 + number)
        self.exit_code, self.message = 128 + number, message


class Signals(Callback):
    """SIGTERM and SIGINT end a run with exit code 143 or 130.

    Before and after training they end it at once; a second one always does. In training the handler
    only sets a flag, and the run stops at the next batch boundary, all processes at the same one,
    with its state saved. A validation has `patience` seconds to come to its end, where the state
    can be saved.

    Args:
        patience: Seconds.
    """

    def __init__(self, patience: float = 5.0) -> None:
        self.patience = patience
        self.keeper: Keeper | None = None
        self.received = 0
        self._training = False
        self._end = 0.0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What the signals call."""
        again, self.received = self.received, number
        self._end = time.monotonic() + self.patience
        if again or not self._training:
            self._stop()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep Lightning's handlers out: they exit with 0 or 1, and can hang several processes."""
        connector = trainer._signal_connector
        connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a stop is put off to the next batch boundary."""
        self._training = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """No longer."""
        self._training = False

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop here if any process was told to."""
        if self.keeper is None or not self.keeper.validation_follows(trainer, batch_idx):
            self._stop_if_told(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop in a validation that takes too long to wait for; each process for itself."""
        if self.received and time.monotonic() > self._end:
            self._stop()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop here if any process was told to."""
        self._stop_if_told(trainer)

    def _stop_if_told(self, trainer: pl.Trainer) -> None:
        told = bool(self.received)
        if trainer.world_size > 1:
            told = trainer.strategy.reduce_boolean_decision(told, all=False)
        if not told:
            return
        if self.keeper:
            self.keeper.save(trainer)
        self._stop()

    def _stop(self) -> None:
        number = self.received or signal.SIGTERM
        saved = self.keeper.saved_at if self.keeper else 0
        where = (
            f"saved at step {saved}; the same command goes on from there"
            if saved
            else "nothing to save"
        )
        raise Stopped(number, f"stopped by {signal.Signals(number).name}; {where}")


class Keeper(Callback):
    """Saves: the two newest states to resume from, and the best weights.

    A state is saved after a batch that no validation follows, and at the end of an epoch: from
    there Lightning goes on exactly. It also keeps the numbers of that step that the metrics file
    does not have yet.

    Args:
        run: Where to.
        every: Optimiser steps between two states.
        monitor: Name of the metric that decides which weights are best, and whether it should be
            `min` or `max`; none keeps the last.
    """

    def __init__(self, run: Run, every: int, monitor: tuple[str, str] | None) -> None:
        self.run, self.every, self.monitor = run, every, monitor
        self.best: float | None = None
        self.saved_at = 0
        self.pending: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know."""
        run = self.run.state["digest"]
        return {"best": self.best, "pending": self.pending, "step": self.saved_at, "run": run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.best, self.pending = state_dict["best"], state_dict["pending"]
        self.saved_at = state_dict["step"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what the broken run had not written."""
        if self.pending and isinstance(trainer.logger, MetricsFile):
            step = self.saved_at - 1
            there = {name for at, name, _ in read_metrics(trainer.logger.path) if at == step}
            lost = {name: value for name, value in self.pending.items() if name not in there}
            if lost:
                trainer.logger.log_metrics(lost, step)
        self.pending = {}

    @staticmethod
    def validation_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
        """Whether this batch is followed by a validation or the end of the epoch."""
        done = batch_idx + 1
        every = trainer.val_check_batch  # none only before training begins
        return done >= trainer.num_training_batches or done % every == 0  # type: ignore[operator]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save a state now and then."""
        due = trainer.global_step - self.saved_at >= self.every
        if due and not self.validation_follows(trainer, batch_idx):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save a state if one is due; the last epoch's always."""
        last = trainer.current_epoch + 1 == trainer.max_epochs
        last |= trainer.global_step == trainer.max_steps
        if last or trainer.global_step - self.saved_at >= self.every:
            self.save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights if they are the best so far."""
        if trainer.sanity_checking or self.monitor is None or trainer.state.fn != "fit":
            return
        name, mode = self.monitor
        value = plain_number(trainer.callback_metrics[name])
        if value is None:
            raise NumbersError(
                f"{name} is not finite at step {trainer.global_step}; "
                "the best weights are as before"
            )
        if self.best is None or (value < self.best if mode == "min" else value > self.best):
            self.best = value
            trainer.save_checkpoint(self.run.checkpoints / "best.ckpt", weights_only=True)

    def save(self, trainer: pl.Trainer) -> None:
        """Save a state to resume from and keep the two newest; nothing if this one is there."""
        if self.saved_at == trainer.global_step:
            return
        self.saved_at = trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by its constructor
        due = trainer.global_step % every == 0
        logged = {name: plain_number(value) for name, value in trainer.logged_metrics.items()}
        self.pending = {
            k: v for k, v in logged.items() if due and v is not None and k.startswith("train/")
        }
        trainer.save_checkpoint(self.run.checkpoints / f"step-{trainer.global_step:09d}.ckpt")
        self.pending = {}
        if trainer.is_global_zero:
            for old in sorted(self.run.checkpoints.glob("step-*.ckpt"))[:-2]:
                old.unlink(missing_ok=True)

    def chosen(self) -> Path | None:
        """The checkpoint that later stages take: the best, else the last; none if there is none."""
        best = self.run.checkpoints / "best.ckpt"
        states = sorted(self.run.checkpoints.glob("step-*.ckpt"))
        return best if best.exists() else (states[-1] if states else None)


class Progress(Callback):
    """A line now and then where no progress bar can be drawn: how far, how fast, how long still.

    Args:
        seconds: Between two lines.
    """

    def __init__(self, seconds: float = 15.0) -> None:
        self.seconds = seconds
        self._begin = self._last = 0.0
        self._steps = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._begin = self._last = time.monotonic()
        self._steps = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Print a line if one is due."""
        now = time.monotonic()
        due = now - self._last >= self.seconds or trainer.global_step - self._steps == 20
        if not due or not trainer.is_global_zero:
            return
        self._last = now
        epochs = trainer.max_epochs or 1
        total = epochs * int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        if trainer.max_steps > 0:
            total = min(total, trainer.max_steps) if epochs > 0 else trainer.max_steps
        rate = (trainer.global_step - self._steps) / max(now - self._begin, 1e-9)
        left = (total - trainer.global_step) / max(rate, 1e-9)
        loss = trainer.callback_metrics.get("train/loss")
        number = "" if loss is None else f", loss {float(loss):.4g}"
        sys.stdout.write(
            f"  step {trainer.global_step} of {total}, "
            f"epoch {trainer.current_epoch + 1} of {epochs}{number}, "
            f"{rate:.1f} steps/s, about {duration(left)} left\n"
        )
        sys.stdout.flush()


def duration(seconds: float) -> str:
    """A time for people: `8 s`, `3 min`, `2 h 10 min`.

    >>> duration(8.2), duration(170), duration(7800)
    ('8 s', '3 min', '2 h 10 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@rank_zero_only
def say(line: str) -> None:
    """A line on the terminal, from the first process alone."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
