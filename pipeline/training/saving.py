"""The checkpoint callback: checkpoints to resume from, and the best weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ProgressBar
from torch import Tensor

from pipeline.errors import DataError, NonFiniteError, ProcessLostError, UsageError
from pipeline.files import torch_files
from pipeline.training.checkpoints import WEIGHTS_ONLY, weights_digest
from pipeline.training.console import print_line
from pipeline.training.metrics_file import MetricsFile, finite_or_none
from pipeline.training.metrics_rows import read_metrics
from pipeline.training.protocol import chosen_by
from pipeline.training.run_folder import (
    CALLBACK_STATE_KEY,
    Run,
    mark_as_damaged,
    step_in_name,
)
from pipeline.training.stage import StageData


def count_samples(data: StageData, before: Mapping[str, int], folder: Path) -> dict[str, int]:
    """Number of samples of each split.

    Args:
        data: Data module of the run.
        before: Numbers when the run began; empty if it begins now.
        folder: Run folder, for the message.

    Raises:
        DataError: If a split has another number of samples than when the run began.
    """
    samples = {name: len(part) for name, part in data.evaluation_sets.items()}
    samples["train"] = len(data.train_set)
    for name, count in before.items():
        if samples.get(name, count) != count:
            raise DataError(
                f"{data.describe()}: has {samples[name]} samples in {name}, and had {count} "
                f"when {folder} began; give another --name for other data"
            )
    return samples


def check_same_step(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Check that all processes resume from the same step.

    Raises:
        ProcessLostError: If they do not.
    """
    step = torch.tensor(trainer.global_step, device=module.device)
    steps = cast(Tensor, module.all_gather(step)).flatten().tolist()
    if len(set(steps)) > 1:
        raise ProcessLostError(
            f"the processes would resume from different steps ({', '.join(map(str, steps))}); "
            "run the same command again, under torchrun with an --rdzv-id of its own"
        )


def log_missing_metrics(file: MetricsFile, metrics: Mapping[str, float], step: int) -> None:
    """Log those metrics of a step that are not in metrics.csv."""
    written = {name for row_step, name, _ in read_metrics(file.path) if row_step == step}
    missing = {name: value for name, value in metrics.items() if name not in written}
    if missing:
        file.log_metrics(missing, step)


def metrics_to_log(trainer: pl.Trainer) -> dict[str, float]:
    """Training metrics of this step, which Lightning logs after the hooks of its batch."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by its constructor
    if not every or trainer.global_step % every:
        return {}
    logged = {name: finite_or_none(value) for name, value in trainer.logged_metrics.items()}
    return {k: v for k, v in logged.items() if v is not None and k.startswith("train/")}


def keep_rows(run: Run, file: Any, flushed: Mapping[str, Any], step: int) -> None:
    """Keep the rows of metrics.csv that a state knows of; run.json counts the lost ones.

    Args:
        run: The resumed run.
        file: Its first logger.
        flushed: What `MetricsFile.flush` returned when the state was saved.
        step: Step of the state.
    """
    if isinstance(file, MetricsFile) and (lost := file.keep(flushed, step)):
        run.write(lost_rows=run.state.get("lost_rows", 0) + lost)


_DAMAGED = (
    "heatlift: warning: the best weights so far are damaged or missing; the best of the later "
    "validations are used"
)


class CheckpointCallback(Checkpoint):
    """Saves checkpoints to resume from, of which it keeps the two newest, and the best weights.

    A checkpoint is saved at the end of an epoch, and after a batch that ends an optimizer step and
    is not followed by a validation; from there Lightning resumes exactly. The last checkpoint is
    saved when training has ended, with the weights that callbacks of the user leave. Its callback
    state has also the rows that metrics.csv had, the metrics of that step that are not yet in it,
    the numbers of samples, and the digest of the weights that were validated last.

    Lightning calls a `Checkpoint` after all other callbacks, also after its EarlyStopping and its
    Timer, so a state has what they have just counted.

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
        self.judged: str | None = None
        self.training_ended = False
        self.validating_again = False
        self.flushed: dict[str, Any] | None = None

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
            "judged": self.judged,
            "ended": self.training_ended,
            "metrics": self.flushed,
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
        self.judged = state_dict.get("judged")
        self.training_ended = state_dict.get("ended", False)
        self.flushed = state_dict.get("metrics")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """In a resumed run, keep the rows of metrics.csv that its state knows of."""
        # Where the time is over, Lightning's Timer would skip the training and the hooks of its
        # end. Instead one more step is taken; then the Timer ends it, with a validation.
        trainer.should_stop = False
        if trainer.is_global_zero and self.flushed is not None:
            keep_rows(self.run, trainer.logger, self.flushed, self.saved_step)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that all ranks resume the same run; log the pending metrics of the checkpoint.

        Raises:
            ProcessLostError: If the ranks resume from different steps.
            DataError: If the number of samples has changed since the run began.
        """
        check_same_step(trainer, pl_module)
        if acting := _act_at_epochs(trainer):
            print_line(f"  saving     only at the end of epochs: {acting} acts when one begins")
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.samples = count_samples(data, self.samples, self.run.folder)
        if self.best is not None and _intact_checkpoint(self.run.checkpoints / "best.ckpt") is None:
            print_line(_DAMAGED)
            self.best = None
        if self.pending_metrics and isinstance(trainer.logger, MetricsFile):
            log_missing_metrics(trainer.logger, self.pending_metrics, self.saved_step - 1)
        self.pending_metrics = {}
        trainer.should_stop |= self.training_ended  # where a callback of the user ended it

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save a checkpoint if one is due and this is an optimizer-step boundary."""
        if trainer.global_step == trainer.max_steps:  # no validation need follow
            self.judged = weights_digest(pl_module)
        due = trainer.global_step - self.saved_step >= self.every
        if due and can_save(trainer, batch_idx):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save a checkpoint if one is due; the last one waits for the end of training."""
        self.training_ended = _is_over(trainer) or trainer.current_epoch + 1 == trainer.max_epochs
        due = trainer.global_step - self.saved_step >= self.every
        if due and not self.training_ended:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last checkpoint, after callbacks of the user have set their final weights."""
        if self.training_ended or _is_over(trainer):
            self.training_ended = True
            self.save(trainer, is_last=True)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        *_: Any,
    ) -> None:
        """Remember which weights are validated, at the first batch."""
        if batch_idx == 0 and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.judged = weights_digest(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the weights if they are the best so far.

        Raises:
            NonFiniteError: If the metric that decides is not finite.
            DataError: If it is not defined, and the best weights are to be tested.
        """
        in_fit = trainer.state.fn == "fit" or self.validating_again
        if trainer.sanity_checking or self.monitor is None or not in_fit:
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
        self.run.check_folder()
        if is_last or self.saved_step != trainer.global_step:
            self._save_step(trainer, is_last=is_last)
        if is_last and self.weights == "last":
            self._chosen = "last"
            trainer.save_checkpoint(
                self.run.checkpoints / "last.ckpt", storage_options=WEIGHTS_ONLY
            )

    def _save_step(self, trainer: pl.Trainer, *, is_last: bool) -> None:
        """Save a checkpoint to resume from, and remove those before the two newest."""
        previous_step = self.saved_step
        self.pending_metrics = metrics_to_log(trainer)
        if trainer.is_global_zero and isinstance(trainer.logger, MetricsFile):
            self.flushed = trainer.logger.flush()
        self.saved_step = trainer.global_step
        self._chosen = "last" if is_last else f"step {trainer.global_step}"
        try:
            trainer.save_checkpoint(self.run.checkpoints / f"step-{self.saved_step:09d}.ckpt")
        except BaseException:  # also StoppedBySignal, a SystemExit
            self.saved_step = previous_step
            raise
        self.pending_metrics = {}
        if trainer.is_global_zero:
            for old in step_checkpoints(self.run.checkpoints, self.saved_step)[:-2]:
                old.unlink(missing_ok=True)

    def selected_checkpoint(self) -> Path:
        """Checkpoint for the test and later stages: that of `weights`, else the newest.

        Raises:
            UsageError: If there is none.
        """
        if chosen := _intact_checkpoint(self.run.checkpoints / f"{self.weights}.ckpt"):
            return chosen
        if checkpoints := step_checkpoints(self.run.checkpoints, self.saved_step):
            return checkpoints[-1]
        raise UsageError(
            "not a single step was trained; check --trainer.max_epochs, --trainer.max_steps and "
            "--trainer.limit_train_batches"
        )


def step_checkpoints(folder: Path, last: int) -> list[Path]:
    """Checkpoints in a folder up to the last saved step, in order; later ones may be invalid."""
    by_step = {step_in_name(path): path for path in folder.glob("step-*.ckpt")}
    return [by_step[step] for step in sorted(by_step) if 0 <= step <= last]


def _act_at_epochs(trainer: pl.Trainer) -> str:
    """Callbacks of the user that act at the beginning of an epoch, besides those that only show.

    Lightning does not call them in an epoch that is resumed in its middle.
    """
    shown = (ProgressBar, LearningRateMonitor)
    return ", ".join(
        type(callback).__name__
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if not type(callback).__module__.startswith("pipeline.")
        and not isinstance(callback, shown)
        and type(callback).on_train_epoch_start is not pl.Callback.on_train_epoch_start
    )


def can_save(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a run can resume exactly from a checkpoint that is saved after this batch.

    It can if the batch ends an optimizer step, no validation, end of the epoch or end of training
    follows, and no callback of the user acts at the beginning of an epoch.
    """
    batches = batch_idx + 1
    # Lightning counts over all epochs where validations do not follow epochs.
    over_all = trainer.check_val_every_n_epoch is None
    counted = trainer.fit_loop.total_batch_idx + 1 if over_all else batches
    is_stopping = trainer.should_stop and trainer.current_epoch >= (trainer.min_epochs or 0)
    validation_interval = trainer.val_check_batch  # None only before training begins
    return not (
        batches % trainer.accumulate_grad_batches
        or trainer.global_step == trainer.max_steps
        or (is_stopping and trainer.global_step >= (trainer.min_steps or 0))
        or batches >= trainer.num_training_batches
        or counted % validation_interval == 0  # type: ignore[operator]
        or _act_at_epochs(trainer)
    )


def validate_changed_weights(callback: CheckpointCallback, trainer: pl.Trainer) -> None:
    """Validate the final weights if they changed after the last validation and optimizer step.

    Callbacks that average weights set the average when training has ended. The average becomes
    best.ckpt if it is better than the best validated weights.
    """
    module = trainer.lightning_module
    changed = callback.judged not in (None, weights_digest(module))
    if callback.monitor is None or not trainer.strategy.broadcast(changed):
        return
    name, best = callback.monitor[0], callback.best
    callback.validating_again = True
    trainer.validate(module, datamodule=trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
    callback.validating_again = False
    if name not in trainer.callback_metrics:  # limit_val_batches is 0
        return
    value = float(trainer.callback_metrics[name])
    before = "no validation before" if best is None else f"best before {best:.4g}"
    verdict = (
        "best.ckpt has them" if callback.best != best else "best.ckpt keeps the weights before"
    )
    print_line(
        "  weights    changed after the last validation; validated once more: "
        f"{name} {value:.4g}, {before}; {verdict}"
    )


def _intact_checkpoint(path: Path) -> Path | None:
    """Path of best or last weights; None if there are none, or damaged ones, then renamed."""
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
    if trainer.global_step == trainer.max_steps:
        return True
    enough = trainer.current_epoch + 1 >= (trainer.min_epochs or 0)
    return trainer.should_stop and enough and trainer.global_step >= (trainer.min_steps or 0)
