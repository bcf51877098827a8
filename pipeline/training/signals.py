"""SIGTERM, SIGINT and the other stop signals: save a checkpoint and stop the run."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from pipeline.training.private_names import disable_signal_handlers
from pipeline.training.processes import REPEAT_SECONDS, StoppedBySignal
from pipeline.training.saving import CheckpointCallback, can_save


class StopSignals(Checkpoint):
    """Stops a run at a stop signal, with exit code 128 + its number, such as 143 for SIGTERM.

    Before and after training, the run stops at once. In training, the handler sets a flag, and all
    ranks stop at the next optimizer-step boundary where a checkpoint can be saved. A validation
    gets `patience` seconds to finish, because a checkpoint can be saved after it. A run that has
    not stopped after `limit` seconds, because it waits for a batch or for another rank, stops
    without another checkpoint. A second signal stops the run at once, unless it follows within a
    second: Ctrl-C reaches a rank twice, from the terminal and from the supervising process. A
    finished run ignores signals while it writes its last pages. It is a `Checkpoint` for Lightning,
    which therefore calls it after `CheckpointCallback` in every hook.

    Args:
        patience: Seconds that a validation gets to finish.
        limit: Seconds until the run stops in any case.
    """

    def __init__(self, patience: float = 5.0, limit: float = 8.0) -> None:
        self.patience, self.limit = patience, limit
        self.checkpoint_callback: CheckpointCallback | None = None
        self.received = 0
        self.finished = False
        self._training = False
        self._received_at = 0.0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler of all stop signals, and of SIGALRM when the limit is over."""
        if self.finished:
            return
        if number == signal.SIGALRM:
            self._stop()
        now = time.monotonic()
        is_second = bool(self.received)
        is_repeated = now - self._received_at < REPEAT_SECONDS or number == signal.SIGXCPU
        if is_second and is_repeated:
            return
        self.received, self._received_at = number, now
        if is_second or not self._training:
            self._stop()
        signal.setitimer(signal.ITIMER_REAL, self.limit)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Disable Lightning's handlers: they exit with 0 or 1, and can make ranks hang."""
        disable_signal_handlers(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From now on, stop only at optimizer-step boundaries."""
        self._training = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once from now on, and now if a signal was received."""
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
        """Stop at this optimizer-step boundary if any rank received a signal."""
        if self.checkpoint_callback is None or can_save(trainer, batch_idx):
            self._stop_if_received(trainer)

    def on_validation_batch_end(self, *_: Any) -> None:
        """Stop a validation that takes longer than `patience`; each rank by itself."""
        if self.received and time.monotonic() - self._received_at > self.patience:
            self._stop()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at the end of the epoch if any rank received a signal; the last one goes on."""
        if self.checkpoint_callback is None or not self.checkpoint_callback.training_ended:
            self._stop_if_received(trainer)

    def _stop_if_received(self, trainer: pl.Trainer) -> None:
        """Save a checkpoint and stop if any rank received a signal."""
        received = bool(self.received)
        if trainer.world_size > 1:
            received = trainer.strategy.reduce_boolean_decision(received, all=False)
        if not received:
            return
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        if self.checkpoint_callback:
            self.checkpoint_callback.save(trainer)
        self._stop()

    def _stop(self) -> None:
        """Raise StoppedBySignal."""
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        number = self.received or signal.SIGTERM
        step = self.checkpoint_callback.saved_step if self.checkpoint_callback else 0
        hint = f"saved at step {step}; run the same command again to resume"
        if not step:
            hint = "nothing to save"
        raise StoppedBySignal(number, f"stopped by {signal.Signals(number).name}; {hint}")
