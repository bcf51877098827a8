"""The checkpoint callback: states to resume from, and the best weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pipeline.errors import DataError, NumbersError, ProcessLostError
from pipeline.files import torch_files
from pipeline.training import checkpoints
from pipeline.training.console import print_line
from pipeline.training.metrics_file import MetricsFile, finite_or_none, read_metrics
from pipeline.training.run_folder import Run, rename_to_bad, step_in_name


class CheckpointCallback(Callback):
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
            print_line(
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
        value = finite_or_none(trainer.callback_metrics[name])
        if value is None:
            raise NumbersError(
                f"{name} is not finite at step {trainer.global_step}; "
                "the best weights are as before"
            )
        if self.best is None or (value < self.best if mode == "min" else value > self.best):
            self.best = value
            # Whole, so that callbacks can put in the averaged weights that were validated.
            trainer.save_checkpoint(
                self.run.checkpoints / "best.ckpt", storage_options=checkpoints.WEIGHTS_ALONE
            )

    def save(self, trainer: pl.Trainer) -> None:
        """Save a state to resume from and keep the two newest; nothing if this one is there."""
        before = self.saved_at
        if before == trainer.global_step:
            return
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by its constructor
        due = trainer.global_step % every == 0
        logged = {name: finite_or_none(value) for name, value in trainer.logged_metrics.items()}
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
        numbered = {step_in_name(path): path for path in self.run.checkpoints.glob("step-*.ckpt")}
        return [numbered[step] for step in sorted(numbered) if 0 <= step <= self.saved_at]

    def _best(self) -> Path | None:
        """The best weights, if they are whole; what is damaged is set aside."""
        path = self.run.checkpoints / "best.ckpt"
        if not path.exists():
            return None
        try:
            torch_files.read_checkpoint(path)
        except DataError as error:
            print_line(f"heatlift: warning: {error}")
            rename_to_bad(path)
            return None
        return path
