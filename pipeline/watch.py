"""What watches a run: seeds per batch, the NaN guard, signals, saving, predictions, progress."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pipeline import chance, checkpoint
from pipeline.errors import DataError, NumbersError, ProcessLostError
from pipeline.run import MetricsFile, Run, plain_number, read_metrics, set_aside, step_of


class Seeds(Callback):
    """Derives all random state from (seed, epoch, batch, process) before every batch.

    So a resumed run draws the numbers that an unbroken one draws, in code of one's own, too.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed Python, NumPy and torch, this on the processor and on the run's device alone.

        `torch.manual_seed` writes down the whole stack for every kind of device that is not there:
        half a millisecond.
        """
        seed = chance.seed_of(
            self.seed, "batch", trainer.current_epoch, batch_idx, trainer.global_rank
        )
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  what code of others may draw from
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type != "cpu":
            torch.get_device_module(pl_module.device).manual_seed(seed)


class Guard(Callback):
    """Stops training before a loss or gradient that is not finite can reach the weights."""

    def __init__(self) -> None:
        self.index: list[int] = []
        self.of_step: list[int] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember which samples these are, and those of the batches before of the same step."""
        named = isinstance(batch, Mapping) and "index" in batch
        self.index = torch.as_tensor(batch["index"]).flatten().tolist() if named else []
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.of_step = []
        self.of_step += self.index

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Look at the loss."""
        if not torch.isfinite(loss):
            self._stop(trainer, f"the loss is {loss.item()}", self.index)

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
            given: list[Any] = [self.of_step]
            if trainer.world_size > 1:  # the gradient is that of all processes
                given = [None] * trainer.world_size
                torch.distributed.all_gather_object(given, self.of_step)
            self._stop(trainer, "a gradient is not finite", *given)

    @staticmethod
    def _stop(trainer: pl.Trainer, what: str, *samples: list[int]) -> None:
        shown = [
            ", ".join(map(str, part[:16])) + (" …" if len(part) > 16 else "") for part in samples
        ]
        raise NumbersError(
            f"{what} at step {trainer.global_step}, samples "
            f"{'; of the next process '.join(shown) or 'unnamed'}; the weights are "
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

    Before and after training they end it at once; a second one always does, unless it follows
    within a second: Ctrl-C reaches a process of several twice, from the terminal and from the
    process that watches over it. In training the handler only sets a flag, and the run stops at the
    next batch boundary where it can be saved, all processes at the same one. A validation has
    `patience` seconds to come to its end, where the state can be saved. A run that has not stopped
    after `limit` seconds, because it waits for a batch or for another process, ends with what was
    saved before. A run that is finished is left to write its last pages.

    Args:
        patience: Seconds.
        limit: Seconds.
    """

    def __init__(self, patience: float = 5.0, limit: float = 8.0) -> None:
        self.patience, self.limit = patience, limit
        self.keeper: Keeper | None = None
        self.received = 0
        self.finished = False
        self._training = False
        self._since = 0.0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What the signals call, and the clock when the limit is over."""
        if self.finished:
            return
        if number == signal.SIGALRM:
            self._stop()
        now = time.monotonic()
        again = bool(self.received)
        if again and now - self._since < 1.0:
            return
        self.received, self._since = number, now
        if again or not self._training:
            self._stop()
        signal.setitimer(signal.ITIMER_REAL, self.limit)

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
        if self.received:
            self._stop()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop here if any process was told to."""
        if self.keeper is None or self.keeper.can_save(trainer, batch_idx):
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
        if self.received and time.monotonic() - self._since > self.patience:
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
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        if self.keeper:
            self.keeper.save(trainer)
        self._stop()

    def _stop(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
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

    A state is saved after a batch that ends an accumulation of gradients and that no validation
    follows, and at the end of an epoch: from there Lightning goes on exactly. It also keeps the
    numbers of that step that the metrics file does not have yet, and how many samples there were.

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
        self.samples: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know."""
        run = self.run.state["digest"]
        return {
            "best": self.best,
            "pending": self.pending,
            "step": self.saved_at,
            "run": run,
            "samples": self.samples,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.best, self.pending = state_dict["best"], state_dict["pending"]
        self.saved_at = state_dict["step"]
        self.samples = state_dict.get("samples", {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See that this is the same run everywhere, and write what the broken one had not written.

        Raises:
            ProcessLostError: If the processes go on from different states.
            DataError: If the data have another number of samples than before.
        """
        here = torch.tensor(trainer.global_step, device=pl_module.device)
        steps = cast(Tensor, pl_module.all_gather(here)).flatten().tolist()
        if len(set(steps)) > 1:
            raise ProcessLostError(
                f"the processes would go on from different steps ({', '.join(map(str, steps))}); "
                "run the same command again, under torchrun with an --rdzv-id of its own"
            )
        self._refuse_other_data(trainer)
        if self.best is not None and self._best() is None:
            say(
                "heatlift: warning: the best weights so far are lost; later validations choose anew"
            )
            self.best = None
        if self.pending and isinstance(trainer.logger, MetricsFile):
            step = self.saved_at - 1
            there = {name for at, name, _ in read_metrics(trainer.logger.path) if at == step}
            lost = {name: value for name, value in self.pending.items() if name not in there}
            if lost:
                trainer.logger.log_metrics(lost, step)
        self.pending = {}

    def _refuse_other_data(self, trainer: pl.Trainer) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        samples = {name: len(part) for name, part in data.evaluation_sets.items()}
        samples["train"] = len(data.train_set)
        for name, count in self.samples.items():
            if samples.get(name, count) != count:
                raise DataError(
                    f"{data.describe()}: has {samples[name]} samples in {name}, and had {count} "
                    f"when {self.run.folder} began; give another --name for other data"
                )
        self.samples = samples

    @staticmethod
    def can_save(trainer: pl.Trainer, batch_idx: int) -> bool:
        """Whether a run can go on exactly from behind this batch.

        No gradient is kept for the next batch, no validation and no end of the epoch follows.
        """
        done = batch_idx + 1
        every = trainer.val_check_batch  # none only before training begins
        return not (
            done % trainer.accumulate_grad_batches
            or done >= trainer.num_training_batches
            or done % every == 0  # type: ignore[operator]
        )

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
        if due and self.can_save(trainer, batch_idx):
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
            # Whole, so that callbacks can put in the averaged weights that were validated.
            trainer.save_checkpoint(
                self.run.checkpoints / "best.ckpt", storage_options=checkpoint.WEIGHTS_ALONE
            )

    def save(self, trainer: pl.Trainer) -> None:
        """Save a state to resume from and keep the two newest; nothing if this one is there."""
        before = self.saved_at
        if before == trainer.global_step:
            return
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by its constructor
        due = trainer.global_step % every == 0
        logged = {name: plain_number(value) for name, value in trainer.logged_metrics.items()}
        self.pending = {
            k: v for k, v in logged.items() if due and v is not None and k.startswith("train/")
        }
        self.saved_at = trainer.global_step
        try:
            trainer.save_checkpoint(self.run.checkpoints / f"step-{self.saved_at:09d}.ckpt")
        except BaseException:  # the end of patience comes as one
            self.saved_at = before
            raise
        self.pending = {}
        if trainer.is_global_zero:
            for old in self._states()[:-2]:
                old.unlink(missing_ok=True)

    def chosen(self) -> Path | None:
        """The checkpoint that later stages take: the best, else the last; none if there is none."""
        states = self._states()
        return self._best() or (states[-1] if states else None)

    def _states(self) -> list[Path]:
        """States up to this step, in order; of later ones nothing is known."""
        numbered = {step_of(path): path for path in self.run.checkpoints.glob("step-*.ckpt")}
        return [numbered[step] for step in sorted(numbered) if 0 <= step <= self.saved_at]

    def _best(self) -> Path | None:
        """The best weights, if they are whole; what is damaged is set aside."""
        path = self.run.checkpoints / "best.ckpt"
        if not path.exists():
            return None
        try:
            checkpoint.read(path)
        except DataError as error:
            say(f"heatlift: warning: {error}")
            set_aside(path)
            return None
        return path


class Predictions(Callback):
    """`predictions/NUMBER.npz`: what `predict` finds in a batch, NUMBER that of its first sample.

    Each has the arrays that the stage's `predict_step` gives, one that gives a single array as
    `joints3d`, and `index`: which samples of the test split, batch axis first. Lifted videos have
    their sequence's `name`. What an earlier prediction left there is removed first.

    Args:
        folder: Where `predictions/` belongs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "predictions"

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Empty the folder."""
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            checkpoint.sweep(self.folder)
            for old in self.folder.glob("*.npz"):
                old.unlink()
        trainer.strategy.barrier()

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write what was found."""
        found = outputs if isinstance(outputs, Mapping) else {"joints3d": outputs}
        arrays = {name: value.numpy(force=True) for name, value in found.items()}
        index = arrays["index"] = torch.as_tensor(batch["index"]).numpy(force=True).reshape(-1)
        tracks = getattr(trainer.datamodule.evaluation_sets["test"], "tracks", None)  # type: ignore[attr-defined]
        if tracks is not None and len(index) == 1:
            arrays["name"] = np.array(tracks[index[0]].sequence.name)
        path = self.folder / f"{index[0]:07d}.npz"
        checkpoint.write_whole(path, lambda file: np.savez(file, **arrays))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say where they are."""
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            count = len(list(self.folder.glob("*.npz")))
            say(f"  found      {self.folder}: {count} files")


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
