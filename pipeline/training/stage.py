"""Base classes of the stages: the LightningModule and the LightningDataModule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UsageError, printable
from pipeline.sources import Source, Split
from pipeline.training.checkpoints import attached_trainer, require_checked_content
from pipeline.training.loader import BatchSet, ResumableLoader, make_loader
from pipeline.training.progress import Progress, start_progress
from pipeline.training.protocol import (
    NOT_IN_PROTOCOL,
    describe_checkpoint,
    join_parts,
    trainer_parts,
)
from pipeline.training.schedules import Schedule
from pipeline.training.transfer import WeightsReport, check_joint_set, transfer_weights

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
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; give at least 1")
        if workers < 0:
            raise UsageError(f"workers is {workers}; give at least 0")
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

    def data_sources(self) -> list[Source]:
        """All data sources that are read."""
        return [self.source]

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


class _PrintingModule(pl.LightningModule):
    """A LightningModule that prints control characters as escapes; see `printable`."""

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print lines on rank 0, above the progress bar."""
        super().print(*(printable(text, keep="\n") for text in args), **kwargs)


class Stage(_PrintingModule):
    """Base of the LightningModules of all stages.

    A subclass sets the class attributes below and implements three hooks for the metrics of a
    validation or test: `begin` before the first batch, `score` with every batch, and `conclude`
    after the last batch, which logs and prints the metrics.

    A checkpoint gets a dictionary `heatlift`, with `origin`, the report of transferred weights.

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
        not_in_protocol: Arguments that change no metric of given weights, and why.
        weights: Which weights the module has, for the protocol line.
        progress: Share of the training that is done, while a fit runs.
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
    not_in_protocol: ClassVar[Mapping[str, str]] = NOT_IN_PROTOCOL
    progress: Progress

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
        self.weights = "random"

    def begin(self, split: Split) -> None:
        """Prepare the metrics of a validation or test."""

    def score(self, split: Split, batch: Mapping[str, Tensor]) -> None:
        """Add a batch to the metrics."""
        raise NotImplementedError

    def conclude(self, split: Split) -> None:
        """Log and print the metrics."""

    def protocol_parts(self, split: Split) -> dict[str, str]:
        """Settings that change the metrics of a split, and what the protocol line has for each.

        A setting is named as on the command line. Its phrase may be empty where it changes nothing.
        """
        return {"data.source": f"{split} split of {self.data_module.source.describe()}"}

    def protocol(self, split: Split) -> str:
        """Evaluation protocol of the metrics of a split, one line."""
        weights = {"weights": f"weights: {self.weights}"}
        return join_parts(self.protocol_parts(split) | trainer_parts(self.trainer, split) | weights)

    def prediction_facts(self, index: NDArray[np.int64]) -> dict[str, Any]:
        """What a file of predictions has besides the predictions, as arrays, texts and numbers.

        Args:
            index: Indices of its samples in the test split, (B,).
        """
        return {}

    def transferred_prefixes(self, source_stage: str, *, fitting: bool) -> tuple[str, ...]:
        """Name prefixes of the weights that are transferred from `pretrained`.

        Args:
            source_stage: Stage of the source checkpoint.
            fitting: Whether the weights are trained further; false if they are only tested.
        """
        return ("net.",)

    @staticmethod
    def check_source(content: Mapping[str, Any], path: object) -> None:
        """Check the content of the checkpoint at a path before its weights are used."""

    def report_weights(self, report: WeightsReport) -> None:
        """Print which weights of `pretrained` were transferred."""
        self.print(f"{self.stage}: {report.text()}")

    def setup(self, stage: str) -> None:
        """Transfer the weights of `pretrained`; a checkpoint of this stage is loaded afterwards.

        Raises:
            DataError, UsageError: See `load_pretrained`.
        """
        if self.pretrained:
            self.report_weights(load_pretrained(self, fitting=stage == "fit"))

    def on_validation_epoch_start(self) -> None:
        """Call `begin` for the validation split."""
        self.begin("val")

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Call `score` for a batch of the validation split."""
        self.score("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Call `conclude` for the validation split; outside a fit, print the protocol first."""
        if self.trainer.state.fn == "validate":
            self.print(self.protocol("val"))
        self.conclude("val")

    def on_test_epoch_start(self) -> None:
        """Call `begin` for the test split."""
        self.begin("test")

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Call `score` for a batch of the test split."""
        self.score("test", batch)

    def on_test_epoch_end(self) -> None:
        """Print the protocol and call `conclude` for the test split."""
        self.print(self.protocol("test"))
        self.conclude("test")

    def on_train_end(self) -> None:
        """Note that the module has the weights of the last step, whatever it began with."""
        self.weights = f"step {self.trainer.global_step}"

    @property
    def data_module(self) -> Any:
        """Data module of the trainer."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def configure_optimizers(self) -> Any:
        """Make the optimizer and the learning-rate scheduler, updated every optimizer step.

        Raises:
            UsageError: If the training has no limit, or the optimizer rejects its arguments.
        """
        optimizer = make_optimizer(self)
        loader = self.data_module.train_dataloader()
        self.progress = progress = start_progress(self.trainer, len(loader))
        if warning := progress.warning():
            self.print(warning)
        schedule = self.schedule

        def factor(step: int) -> float:
            return schedule.factor(progress.after(step), step / progress.steps_per_epoch)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        each_step = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": each_step}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Update the progress of a training whose time is limited."""
        self.progress.update_time()

    def log_in_training(self, name: str, value: Tensor) -> None:
        """Log a number in a training step, if anybody reads it in this step.

        Loggers read it every `log_every_n_steps` steps, callbacks at the end of an epoch, a
        progress bar always. `self.log` takes as long as a layer of a small lifter.

        Args:
            name: Name of the number.
            value: The number, a scalar.
        """
        trainer: Any = self.trainer
        has_bar, every = trainer.progress_bar_callback is not None, trainer.log_every_n_steps
        is_due = bool(every) and (trainer.global_step + 1) % every == 0
        if is_due or has_bar or trainer.is_last_batch or trainer.fast_dev_run:
            self.log(name, value, prog_bar=has_bar)

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
        trainer = attached_trainer(self)
        if trainer is not None:
            require_checked_content(trainer, checkpoint)
        fitting = trainer is not None and trainer.state.fn == "fit"
        if fitting and entry["processes"] != self.trainer.world_size:
            raise UsageError(
                f"the run to resume had {entry['processes']} processes and this has "
                f"{self.trainer.world_size}: the batches would differ; "
                "give a new --name, or as many devices as before"
            )
        self.origin = entry.get("origin", {})
        self.weights = describe_checkpoint(checkpoint)


def load_pretrained(module: Stage, *, fitting: bool) -> WeightsReport:
    """Transfer the weights of `pretrained` to a module, once; return the report of them.

    Args:
        module: Module whose `pretrained` is set.
        fitting: Whether the weights are trained further; false if they are only tested.

    Raises:
        DataError: If the file is damaged or its weights do not fit.
        UsageError: If no training follows and the file lacks weights of `net`.
    """

    def check(content: Mapping[str, Any], path: object) -> None:
        module.check_source(content, path)
        check_joint_set(content, module, path)

    report = transfer_weights(
        module,
        str(module.pretrained),
        stages=module.weights_from,
        prefixes=lambda source: module.transferred_prefixes(source, fitting=fitting),
        check=check,
        whole=not fitting,
    )
    module.pretrained = None  # setup of a later test must not transfer again
    module.origin = {"pretrained": report.plain()}
    module.weights = f"{report.source}, digest {report.digest[:12]}"
    return report


def make_optimizer(module: Stage) -> torch.optim.Optimizer:
    """Make the optimizer of a module, for its parameters that are trained.

    Raises:
        UsageError: If the optimizer rejects its arguments, or nothing is trained.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        return module.optimizer(parameters)
    except (ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        raise UsageError(f"--model.optimizer: {text}; correct its arguments") from error
