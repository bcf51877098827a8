"""Trainers for tests: one process on the CPU that writes no files and prints nothing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Checkpoint


def quiet_trainer(folder: Path, **changes: Any) -> pl.Trainer:
    """Make a Trainer whose root is `folder`."""
    own = changes.get("callbacks") or []
    saves = any(isinstance(one, Checkpoint) for one in (own if isinstance(own, list) else [own]))
    settings: dict[str, Any] = {"logger": False, "enable_checkpointing": saves}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"accelerator": "cpu", "devices": 1, "default_root_dir": folder}
    return pl.Trainer(use_distributed_sampler=False, **settings | changes)


@pytest.fixture
def trainer(tmp_path):
    """Makes Trainers in the test's own folder."""

    def make(**changes) -> pl.Trainer:
        return quiet_trainer(tmp_path, **changes)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message=".*sync_dist=True")
        yield make
