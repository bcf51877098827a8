"""The checkpoint callback: checkpoints to resume from, and the best weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pipeline.errors import DataError, NonFiniteError, ProcessLostError
from pipeline.files import torch_files
from pipeline.training.checkpoints import WEIGHTS_ONLY
from pipeline.training.console import print_line
from pipeline.training.metrics_file import MetricsFile, finite_or_none, read_metrics
from pipeline.training.protocol import chosen_by
from pipeline.training.run_folder import (
    CALLBACK_STATE_KEY,
    Run,
    mark_as_damaged,
    step_in_name,
)


class CheckpointCallback(Callback):
    """Saves checkpoints to resume from, of which it keeps the two newest, and the best weights.

    A checkpoint is saved at the end of an epoch, and after a batch that ends an optimizer step and
    is not followed by a validation; from there Lightning resumes exactly. Its callback state has
    also the metrics of that step that are not yet in metrics.csv, and the numbers of samples.

    Args:
        run: Run that the checkpoints belong to.
        every: Optimizer steps between two checkpoints.
        monitor: Name of the metric that selects the best weights, and "min" or "max"; None to save
            no best weights.
        weights: Weights that are tested and passed on: `best`, those of best.ckpt, or `last`, those
            of last.ckpt, which is then saved, too.
    """

    def __init__(
        self,
        run: Run,
        every: int,
        monitor: tuple[str, str] | None,
        weights: Literal["best", "last"] = "best",
    ) -> None:
        self.run, self.every, self.monitor, self.weights = run, every, monitor, weights
        self._chosen = ""
        self.best: float | None = None
        self.saved_step = 0
        self.pending_metrics: dict[str, float] = {}
        self.samples: dict[str, int] = {}

    @property
    def state_key(self) -> str:
        """Key of `state_dict` in checkpoints."""
        return CALLBACK_STATE_KEY

    def state_dict(self) -> dict[str, Any]:
        """State of this callback, stored in checkpoints."""
        return {
            "best": self.best,
            "pending": self.pending_metrics,
            "step": self.saved_step,
            "run": self.run.state["digest"],
            "samples": self.samples,
        }

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store how the weights of this checkpoint were chosen, for protocol lines."""
        checkpoint["chosen"] = self._chosen

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.best, self.pending_metrics = state_dict["best"], state_dict["pending"]
        self.saved_step = state_dict["step"]
        self.samples = state_dict.get("samples", {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that all ranks resume the same run; log the pending metrics of the checkpoint.

        Raises:
            ProcessLostError: If the ranks resume from different steps.
            DataError: If the number of samples has changed since the run began.
        """
        step = torch.tensor(trainer.global_step, device=pl_module.device)
        steps = cast(Tensor, pl_module.all_gather(step)).flatten().tolist()
        if len(set(steps)) > 1:
            raise ProcessLostError(
                f"the processes would resume from different steps ({', '.join(map(str, steps))}); "
                "run the same command again, under torchrun with an --rdzv-id of its own"
            )
        self._check_sample_counts(trainer)
        if self.best is not None and self._intact_checkpoint("best.ckpt") is None:
            print_line(
                "heatlift: warning: the best weights so far are damaged or missing; "
                "the best of the later validations are used"
            )
            self.best = None
        if self.pending_metrics and isinstance(trainer.logger, MetricsFile):
            last_step = self.saved_step - 1
            rows = read_metrics(trainer.logger.path)
            written = {name for row_step, name, _ in rows if row_step == last_step}
            missing = {
                name: value for name, value in self.pending_metrics.items() if name not in written
            }
            if missing:
                trainer.logger.log_metrics(missing, last_step)
        self.pending_metrics = {}

    def _check_sample_counts(self, trainer: pl.Trainer) -> None:
        """Raise DataError if a split has another number of samples than when the run began."""
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
        """Whether a run can resume exactly from a checkpoint that is saved after this batch.

        It can if the batch ends an optimizer step and no validation or end of the epoch follows.
        """
        batches = batch_idx + 1
        validation_interval = trainer.val_check_batch  # None only before training begins
        return not (
            batches % trainer.accumulate_grad_batches
            or batches >= trainer.num_training_batches
            or batches % validation_interval == 0  # type: ignore[operator]
        )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save a checkpoint if one is due and this is an optimizer-step boundary."""
        due = trainer.global_step - self.saved_step >= self.every
        if due and self.can_save(trainer, batch_idx):
            self.save(trainer, is_last=_is_over(trainer))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save a checkpoint if one is due; always after the last epoch."""
        is_last = trainer.current_epoch + 1 == trainer.max_epochs or _is_over(trainer)
        if is_last or trainer.global_step - self.saved_step >= self.every:
            self.save(trainer, is_last=is_last)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the weights if they are the best so far.

        Raises:
            NonFiniteError: If the metric that decides is not finite.
            DataError: If it is not defined, and the best weights are to be tested.
        """
        if trainer.sanity_checking or self.monitor is None or trainer.state.fn != "fit":
            return
        name, mode = self.monitor
        if name not in trainer.callback_metrics:
            if self.weights == "last":
                return
            raise DataError(
                f"{name} is not defined on the validation split, so no weights are the best; give "
                "other data, or --weights last"
            )
        value = finite_or_none(trainer.callback_metrics[name])
        if value is None:
            raise NonFiniteError(
                f"{name} is not finite at step {trainer.global_step}; best.ckpt has not changed"
            )
        if self.best is None or (value < self.best if mode == "min" else value > self.best):
            self.best = value
            self._chosen = chosen_by(name, trainer.datamodule.source)  # type: ignore[attr-defined]
            # Not weights_only=True: that would skip callbacks, which insert averaged weights.
            trainer.save_checkpoint(
                self.run.checkpoints / "best.ckpt", storage_options=WEIGHTS_ONLY
            )

    def save(self, trainer: pl.Trainer, *, is_last: bool = False) -> None:
        """Save a checkpoint of this step, unless there is one, and keep the two newest.

        Args:
            trainer: Trainer of the run.
            is_last: Whether the training ends with this step.
        """
        previous_step = self.saved_step
        if previous_step == trainer.global_step:
            return
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by its constructor
        due = trainer.global_step % every == 0
        logged = {name: finite_or_none(value) for name, value in trainer.logged_metrics.items()}
        self.pending_metrics = {
            k: v for k, v in logged.items() if due and v is not None and k.startswith("train/")
        }
        self.saved_step = trainer.global_step
        self._chosen = "last" if is_last else f"step {trainer.global_step}"
        try:
            trainer.save_checkpoint(self.run.checkpoints / f"step-{self.saved_step:09d}.ckpt")
        except BaseException:  # also StoppedBySignal, a SystemExit
            self.saved_step = previous_step
            raise
        self.pending_metrics = {}
        if is_last and self.weights == "last":
            trainer.save_checkpoint(
                self.run.checkpoints / "last.ckpt", storage_options=WEIGHTS_ONLY
            )
        if trainer.is_global_zero:
            for old in self._step_checkpoints()[:-2]:
                old.unlink(missing_ok=True)

    def selected_checkpoint(self) -> Path | None:
        """Checkpoint for the test and later stages: that of `weights`, else the newest; or None."""
        checkpoints = self._step_checkpoints()
        chosen = self._intact_checkpoint(f"{self.weights}.ckpt")
        return chosen or (checkpoints[-1] if checkpoints else None)

    def _step_checkpoints(self) -> list[Path]:
        """Checkpoints up to the last saved step, in order; later ones may be invalid."""
        by_step = {step_in_name(path): path for path in self.run.checkpoints.glob("step-*.ckpt")}
        return [by_step[step] for step in sorted(by_step) if 0 <= step <= self.saved_step]

    def _intact_checkpoint(self, name: str) -> Path | None:
        """Path of best or last weights; None if there are none, or damaged ones, then renamed."""
        path = self.run.checkpoints / name
        if not path.exists():
            return None
        try:
            torch_files.read_checkpoint(path)
        except DataError as error:
            print_line(f"heatlift: warning: {error}")
            mark_as_damaged(path)
            return None
        return path


def _is_over(trainer: pl.Trainer) -> bool:
    """Whether a limit on steps or time, or a callback, ends the training at this step."""
    return trainer.global_step == trainer.max_steps or trainer.should_stop
