"""Trainers for tests: on the CPU, without logger, checkpoints, progress bar and summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl


def quiet_trainer(folder: Path, **changes: Any) -> pl.Trainer:
    """Make a Trainer that prints nothing and whose root is `folder`."""
    settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"accelerator": "cpu", "default_root_dir": folder}
    return pl.Trainer(use_distributed_sampler=False, **settings | changes)
