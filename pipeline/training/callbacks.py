"""Callbacks of every run: seeds per batch, the NaN guard, predictions, progress."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pipeline import rng
from pipeline.errors import NumbersError
from pipeline.files import writing
from pipeline.training.console import format_duration, print_line


class SeedEveryBatch(Callback):
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
        seed = rng.derive_seed(
            self.seed, "batch", trainer.current_epoch, batch_idx, trainer.global_rank
        )
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  what code of others may draw from
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type != "cpu":
            torch.get_device_module(pl_module.device).manual_seed(seed)


class NonFiniteGuard(Callback):
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
            writing.remove_leftovers(self.folder)
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
        sequences = getattr(trainer.datamodule.evaluation_sets["test"], "sequences", None)  # type: ignore[attr-defined]
        if sequences is not None and len(index) == 1:
            arrays["name"] = np.array(sequences[index[0]].sequence.name)
        path = self.folder / f"{index[0]:07d}.npz"
        writing.write_atomically(path, lambda file: np.savez(file, **arrays))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say where they are."""
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            count = len(list(self.folder.glob("*.npz")))
            print_line(f"  found      {self.folder}: {count} files")


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
            f"{rate:.1f} steps/s, about {format_duration(left)} left\n"
        )
        sys.stdout.flush()
