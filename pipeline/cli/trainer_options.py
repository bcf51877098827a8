"""Options of the Trainer that Heatlift chooses: processes, strategy, loggers."""

from __future__ import annotations

import datetime
from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.strategies import DDPStrategy

from pipeline.errors import UsageError


def check_options(config: Any) -> None:
    """Check the options that Heatlift limits.

    Args:
        config: The parsed config of a subcommand.

    Raises:
        UsageError: If one cannot be had.
    """
    for key in ("logger", "enable_checkpointing"):
        if config.trainer[key]:
            raise UsageError(f"--trainer.{key}: cannot be chosen; Heatlift brings its own")
    if config.save_every < 1:
        raise UsageError(f"save_every is {config.save_every}; give at least 1")


def as_list(given: Any) -> list[Any]:
    """The values of an option that takes none, one or a list."""
    return given if isinstance(given, list) else [] if given is None else [given]


def process_count(trainer: Any) -> int:
    """How many processes the trainer's options ask of this machine."""
    accelerator = str(trainer.accelerator)
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    devices = 1 if accelerator == "cpu" and trainer.devices == "auto" else trainer.devices
    if accelerator == "cpu":
        return CPUAccelerator.parse_devices(devices)
    if accelerator in ("gpu", "cuda") and torch.cuda.is_available():
        return len(CUDAAccelerator.parse_devices(-1 if devices == "auto" else devices) or [0])
    return 1


def ddp_strategy(trainer: Any, patience: float) -> DDPStrategy:
    """One process per device, with a limit to waiting for the others.

    Args:
        trainer: Its options.
        patience: Seconds.
    """
    on_cpu = trainer.accelerator == "cpu" or not torch.cuda.is_available()
    return DDPStrategy(
        timeout=datetime.timedelta(seconds=patience),
        process_group_backend="gloo" if on_cpu else None,
    )
