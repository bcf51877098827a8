"""Base classes of the stages: the LightningModule and the LightningDataModule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.sources import Source, Split
from pipeline.training.loader import BatchSet, ResumableLoader, make_loader
from pipeline.training.schedules import Schedule
from pipeline.training.transfer import WeightsReport, transfer_weights

FORMAT = 1
"""Version of the entries that `Stage` adds to a checkpoint."""

SPLITS: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}
"""Lightning's stage -> splits that it reads."""


class StageData(pl.LightningDataModule):
    """Base of the LightningDataModules: makes DataLoaders from the datasets of a subclass.

    A subclass implements `training_set` and `evaluation_set`.

    Args:
        batch_size: Training samples per batch and process.
        workers: DataLoader workers while training.
        seed: Seed of shuffling, augmentation and noise.

    Raises:
        UsageError: If `batch_size` is below 1 or `workers` below 0.
    """

    train_set: BatchSet
    source: Source

    evaluation_batch: int = 1
    """Samples per batch in validation and test."""

    evaluation_workers: int = 0
    """DataLoader workers in validation and test."""

    def __init__(self, *, batch_size: int, workers: int, seed: int) -> None:
        super().__init__()
        if batch_size < 1 or workers < 0:
            raise UsageError(
                f"batch_size is {batch_size} and workers is {workers}; give at least 1 and 0"
            )
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.evaluation_sets: dict[str, BatchSet] = {}

    def training_set(self) -> BatchSet:
        """Make the dataset of the training split."""
        raise NotImplementedError

    def evaluation_set(self, split: Split) -> BatchSet:
        """Make the dataset of the validation or the test split."""
        raise NotImplementedError

    def describe(self) -> str:
        """Describe the data in one line."""
        return self.source.describe()

    def setup(self, stage: str) -> None:
        """Read the splits of Lightning's stage; see `SPLITS`.

        Raises:
            DataError: If files are missing or damaged, or a split is empty.
        """
        for split in SPLITS[stage]:
            if split == "train":
                self.train_set = self.training_set()
            else:
                self.evaluation_sets[split] = self.evaluation_set(split)

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches of the training split."""
        return make_loader(
            self.train_set, self.batch_size, shuffle=True, seed=self.seed, workers=self.workers
        )

    def val_dataloader(self) -> ResumableLoader:
        """Batches of the validation split, in order."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> ResumableLoader:
        """Batches of the test split, in order."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> ResumableLoader:
        """Batches of the test split, in order."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: Split) -> ResumableLoader:
        return make_loader(
            self.evaluation_sets[split],
            self.evaluation_batch,
            shuffle=False,
            seed=self.seed,
            workers=self.evaluation_workers,
        )


class Stage(pl.LightningModule):
    """Base of the LightningModules of all stages.

    A subclass sets the class attributes below and implements three hooks for the metrics of a
    validation or test: `begin` before the first batch, `score` with every batch, and `conclude`
    after the last batch, which logs and prints the metrics.

    A checkpoint gets a dictionary `heatlift`: the stage, a format version, the number of processes,
    and `origin`, the report of transferred weights.

    Args:
        optimizer: Optimizer class and its arguments.
        schedule: Learning-rate factor per optimizer step; None for a constant learning rate.
        pretrained: Checkpoint whose weights a new fit starts from.

    Attributes:
        stage: Name of the stage on the command line and in checkpoints.
        data_class: LightningDataModule of the stage.
        monitor: Logged metric that selects the best weights.
        mode: Whether the best value of `monitor` is the smallest (`min`) or the largest (`max`).
        example_config: A shipped config that the help shows.
        test_settings: Arguments that a test may change, because they affect metrics but no weights.
        weights_from: Stages whose checkpoints `pretrained` accepts.
        newest_from: Stage whose newest finished run `--model.pretrained newest` stands for, if any.
        linked_arguments: Arguments of the data module that the module gets with the same value.
    """

    stage: ClassVar[str]
    data_class: ClassVar[type[StageData]]
    monitor: ClassVar[str] = "val/mpjpe_mm"
    mode: ClassVar[Literal["min", "max"]] = "min"
    example_config: ClassVar[str]
    test_settings: ClassVar[tuple[str, ...]] = ()
    weights_from: ClassVar[tuple[str, ...]] = ()
    newest_from: ClassVar[str | None] = None
    linked_arguments: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        optimizer: OptimizerCallable,
        schedule: Schedule | None = None,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.schedule = schedule or Schedule()
        self.pretrained = pretrained
        self.origin: dict[str, Any] = {}

    def begin(self, split: Split) -> None:
        """Prepare the metrics of a validation or test."""

    def score(self, split: Split, batch: Mapping[str, Tensor]) -> None:
        """Add a batch to the metrics."""
        raise NotImplementedError

    def conclude(self, split: Split) -> None:
        """Log and print the metrics."""

    def transferred_prefixes(self, source_stage: str, *, fitting: bool) -> tuple[str, ...]:
        """Name prefixes of the weights that are transferred from `pretrained`.

        Args:
            source_stage: Stage of the source checkpoint.
            fitting: Whether the weights are trained further; false if they are only tested.
        """
        return ("net.",)

    @staticmethod
    def check_source(content: Mapping[str, Any], path: object) -> None:
        """Check a checkpoint before its weights are transferred or loaded.

        Args:
            content: Content of the checkpoint.
            path: Path of the checkpoint, for error messages.
        """

    def report_weights(self, report: WeightsReport) -> None:
        """Print which weights of `pretrained` were transferred."""
        self.print(f"{self.stage}: {report.text()}")

    def setup(self, stage: str) -> None:
        """Transfer the weights of `pretrained`; a checkpoint of this stage is loaded afterwards.

        Raises:
            DataError: If the file is damaged or its weights do not fit.
            UsageError: If no training follows and the file lacks weights of `net`.
        """
        if not self.pretrained:
            return
        fitting = stage == "fit"
        report = transfer_weights(
            self,
            self.pretrained,
            stages=self.weights_from,
            prefixes=lambda source: self.transferred_prefixes(source, fitting=fitting),
            check=self.check_source,
            whole=not fitting,
        )
        self.pretrained = None  # setup of a later test must not transfer again
        self.origin = {"pretrained": report.plain()}
        self.report_weights(report)

    def on_validation_epoch_start(self) -> None:
        """Call `begin` for the validation split."""
        self.begin("val")

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Call `score` for a batch of the validation split."""
        self.score("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Call `conclude` for the validation split."""
        self.conclude("val")

    def on_test_epoch_start(self) -> None:
        """Call `begin` for the test split."""
        self.begin("test")

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Call `score` for a batch of the test split."""
        self.score("test", batch)

    def on_test_epoch_end(self) -> None:
        """Call `conclude` for the test split."""
        self.conclude("test")

    @property
    def data_module(self) -> Any:
        """Data module of the trainer."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def configure_optimizers(self) -> Any:
        """Make the optimizer and the learning-rate scheduler, updated every optimizer step."""
        optimizer = self.optimizer(
            parameter for parameter in self.parameters() if parameter.requires_grad
        )
        steps_per_epoch = self._steps_per_epoch()
        max_steps = self.trainer.max_steps
        max_epochs = self.trainer.max_epochs
        total = max_steps
        if max_epochs is not None and max_epochs > 0:
            total = steps_per_epoch * max_epochs
            if max_steps > 0:
                total = min(total, max_steps)
        total = max(1, total)
        schedule = self.schedule

        def factor(step: int) -> float:
            return schedule.factor(step / total, step / steps_per_epoch)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _steps_per_epoch(self) -> int:
        # Not trainer.estimated_stepping_batches: reading it loses the state of the DataLoader
        # (lightning issue 20550).
        batches = len(self.data_module.train_dataloader())
        limit = self.trainer.limit_train_batches
        if limit is not None:
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return max(1, math.ceil(batches / self.trainer.accumulate_grad_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the dictionary `heatlift` to a checkpoint."""
        checkpoint["heatlift"] = {
            "stage": self.stage,
            "format": FORMAT,
            "processes": self.trainer.world_size,
            "origin": self.origin,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the stage of a checkpoint and, in a fit, the number of processes.

        Raises:
            UsageError: If they differ from those of this module and trainer.
        """
        entry = checkpoint.get("heatlift", {})
        if entry.get("stage") != self.stage:
            raise UsageError(
                f"a checkpoint of stage {entry.get('stage')} is not one of {self.stage}"
            )
        fitting = self._trainer is not None and self._trainer.state.fn == "fit"
        if fitting and entry["processes"] != self.trainer.world_size:
            raise UsageError(
                f"the run to resume had {entry['processes']} processes and this has "
                f"{self.trainer.world_size}: the batches would differ; "
                "give a new --name, or as many devices as before"
            )
        self.origin = entry.get("origin", {})
