"""SIGTERM and SIGINT: stop at a step that can be saved."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from pipeline.training.saving import CheckpointCallback


class StoppedBySignal(SystemExit):
    """A signal ended the command. Not an `Exception`, so that nothing takes it for a failure.

    Args:
        number: Of the signal.
        message: For people.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(128 + number)
        self.exit_code, self.message = 128 + number, message


class StopSignals(Callback):
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
        self.checkpoint_callback: CheckpointCallback | None = None
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
        if self.checkpoint_callback is None or self.checkpoint_callback.can_save(
            trainer, batch_idx
        ):
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
        if self.checkpoint_callback:
            self.checkpoint_callback.save(trainer)
        self._stop()

    def _stop(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        number = self.received or signal.SIGTERM
        saved = self.checkpoint_callback.saved_at if self.checkpoint_callback else 0
        where = (
            f"saved at step {saved}; the same command goes on from there"
            if saved
            else "nothing to save"
        )
        raise StoppedBySignal(number, f"stopped by {signal.Signals(number).name}; {where}")
