"""The dashboard callback: declares metrics, logs speed, keeps index.html up to date."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from pipeline.dashboard import page
from pipeline.dashboard.catalog import METRICS
from pipeline.dashboard.panels import log_heatmap_panels, log_pck_panel
from pipeline.dashboard.predictions import log_prediction_panels
from pipeline.dashboard.show import wandb_loggers
from pipeline.skeleton import Skeleton

_log = logging.getLogger(__name__)


class Dashboard(Callback):
    """Declares metrics, logs speed and learning rate, keeps index.html up to date.

    A failure to write index.html or a panel is logged as a warning; training goes on.
    """

    def __init__(self) -> None:
        self._samples = 0
        self._since = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Define the metrics in W&B."""
        for logger in wandb_loggers(trainer):
            logger.declare(METRICS)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start measuring time; evaluation is not counted."""
        self._samples, self._since = 0, time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log `train/lr` and `train/samples_per_s` every `log_every_n_steps` steps."""
        self._samples += _batch_size(batch) * trainer.world_size
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or trainer.global_step % every or not trainer.global_step:
            return
        now = time.perf_counter()
        numbers = {"train/samples_per_s": self._samples / max(now - self._since, 1e-9)}
        if trainer.optimizers:
            numbers["train/lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        self._samples, self._since = 0, now
        for logger in trainer.loggers:  # Lightning counts the steps of `self.log` from 0
            logger.log_metrics(numbers, step=trainer.global_step - 1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the module's examples and update index.html."""
        self._samples, self._since = 0, time.perf_counter()
        if trainer.sanity_checking:
            return
        self._show_examples(trainer, pl_module, "val")
        update_index(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the module's examples."""
        self._show_examples(trainer, pl_module, "test")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Show the predictions of `predict`, if any, and update index.html."""
        if stage == "predict":
            log_prediction_panels(trainer, Path(trainer.default_root_dir) / "predictions")
        update_index(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Update index.html after an error."""
        update_index(trainer)

    @staticmethod
    def _show_examples(trainer: pl.Trainer, module: pl.LightningModule, split: str) -> None:
        examples, skeleton = getattr(module, "examples", None), getattr(module, "skeleton", None)
        if examples and isinstance(skeleton, Skeleton):
            log_heatmap_panels(trainer, examples, skeleton, split=split)
            log_pck_panel(trainer, module.report, skeleton, split)


def update_index(trainer: pl.Trainer) -> None:
    """Rewrite the run folder's `index.html`; a failure is logged and the run goes on."""
    if not trainer.is_global_zero:
        return
    try:
        for logger in trainer.loggers:
            logger.save()
        write_index(Path(trainer.default_root_dir))
    except Exception as error:  # a failing page must not stop a run
        _log.warning("index.html: %s: %s; the run goes on", type(error).__name__, error)


def write_index(folder: Path) -> Path:
    """Write the run folder's `index.html`; see `page.write_index`."""
    return page.write_index(folder, METRICS)


def write_chain_index(folders: Sequence[Path], out: Path, **texts: Any) -> Path:
    """Write one page about the runs of a chain; see `page.write_chain_index`."""
    return page.write_chain_index(folders, out, METRICS, **texts)


def _batch_size(batch: Any) -> int:
    """Number of samples in a batch: the first axis of its first array."""
    values = batch.values() if isinstance(batch, Mapping) else batch
    for value in values if isinstance(values, Iterable) else ():
        if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim:
            return len(value)
    return 0
