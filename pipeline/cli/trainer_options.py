"""Options of the Trainer that Heatlift chooses: processes, strategy, loggers, callbacks."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy

from pipeline.dashboard.wandb_logger import make_wandb_loggers
from pipeline.errors import UsageError
from pipeline.training.callbacks import NonFiniteGuard, ProgressLines, SeedEveryBatch
from pipeline.training.metrics_file import MetricsFile
from pipeline.training.run_folder import Run, step_in_name
from pipeline.training.shared_cores import SharedCores


def check_options(config: Any, *, fitting: bool) -> None:
    """Check the options that Heatlift restricts.

    Args:
        config: The parsed config of a subcommand.
        fitting: Whether the subcommand is fit.

    Raises:
        UsageError: If an option has a value that is not allowed.
    """
    for key in ("logger", "enable_checkpointing"):
        if config.trainer[key]:
            raise UsageError(f"--trainer.{key}: cannot be set; Heatlift uses its own")
    if fitting and config.trainer.precision == "16-true":
        raise UsageError(
            "--trainer.precision 16-true: is for tests; steps of the optimizer are too small for "
            "weights in float16, use 16-mixed or bf16-mixed"
        )
    if config.save_every < 1:
        raise UsageError(f"save_every is {config.save_every}; give at least 1")


def as_list(value: Any) -> list[Any]:
    """Convert the value of an option (None, one object or a list) to a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def process_count(trainer: Any) -> int:
    """Count the processes that the Trainer options request on this machine."""
    accelerator = str(trainer.accelerator)
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    devices = 1 if accelerator == "cpu" and trainer.devices == "auto" else trainer.devices
    if accelerator == "cpu":
        return CPUAccelerator.parse_devices(devices)
    if accelerator in ("gpu", "cuda") and torch.cuda.is_available():
        return len(CUDAAccelerator.parse_devices(-1 if devices == "auto" else devices) or [0])
    return 1


def make_ddp_strategy(trainer: Any, patience: float) -> DDPStrategy:
    """Make the DDP strategy, with a time limit for waiting for other processes.

    Args:
        trainer: Options of the Trainer.
        patience: Time limit, seconds.
    """
    on_cpu = trainer.accelerator == "cpu" or not torch.cuda.is_available()
    return DDPStrategy(
        timeout=datetime.timedelta(seconds=patience),
        process_group_backend="gloo" if on_cpu else None,
    )


def make_loggers(
    config: Any, folder: Path, run: Run | None, *, stage: str, settings: Mapping[str, Any]
) -> list[Logger]:
    """Make the loggers of a run: `metrics.csv` and W&B.

    Args:
        config: The parsed config of the subcommand.
        folder: Folder of the run or of the evaluation.
        run: The run of a fit; None for an evaluation.
        stage: Name of the stage.
        settings: Settings of the run, for W&B.
    """
    resumed = run.resume if run else None
    last_kept_step = step_in_name(resumed) - 1 if resumed else -1
    group = config.group or os.environ.get("HEATLIFT_GROUP") or "chain"
    return [
        MetricsFile(folder / "metrics.csv", last_kept_step),
        *make_wandb_loggers(
            folder,
            stage=stage,
            name=folder.name,
            group=group,
            config=settings,
            wandb_mode=config.wandb,
        ),
    ]


def basic_callbacks(seed: int, *, bar: bool) -> list[pl.Callback]:
    """Callbacks of every Trainer: seeding, checks of numbers and of shared cores, progress lines.

    Args:
        seed: Seed of the run.
        bar: Whether Lightning shows a progress bar, which replaces the progress lines.
    """
    callbacks: list[pl.Callback] = [SeedEveryBatch(seed), NonFiniteGuard(), SharedCores()]
    return callbacks if bar else [*callbacks, ProgressLines()]
