"""Evaluation protocol: every setting that changes the metrics of a test, in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

NOT_IN_PROTOCOL = {
    "model.net": "the network that is measured; its checkpoint has it",
    "model.optimizer": "training only",
    "model.schedule": "training only",
    "model.loss": "training only",
    "model.pretrained": "the line names the weights that are measured",
    "data.batch_size": "training only",
    "data.workers": "the order of work, not its result",
}
"""Arguments of the module and the data module of stages that change no metric of given weights, and
why. `Stage.not_in_protocol` has those of a stage; every other argument is in `protocol_parts`."""


def trainer_parts(trainer: pl.Trainer, split: str) -> dict[str, str]:
    """Phrases about options of the Trainer that change metrics.

    Args:
        trainer: Trainer of the evaluation.
        split: Split that is evaluated, val or test.
    """
    limit = trainer.limit_val_batches if split == "val" else trainer.limit_test_batches
    part = f"only {limit} of its batches" if limit not in (None, 1.0) or limit is True else ""
    if isinstance(limit, int) and limit >= 1:
        part = f"only its first {limit} batches"
    return {
        f"trainer.limit_{split}_batches": part,
        "trainer.precision": f"precision {trainer.precision}",
    }


def join_parts(parts: Mapping[str, str]) -> str:
    """The protocol line: all phrases that are not empty."""
    return "; ".join(part for part in parts.values() if part)


def describe_checkpoint(checkpoint: Mapping[str, Any]) -> str:
    """Which weights a checkpoint holds: how they were chosen, and after which epoch."""
    chosen = checkpoint.get("chosen") or f"step {checkpoint.get('global_step', 0)}"
    how, separator, warning = chosen.partition("; ")
    begun = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {})
    epoch = begun.get("current", {}).get("started", 0)
    return f"{how} (epoch {epoch}){separator}{warning}"


def chosen_by(monitor: str, source: Any) -> str:
    """How the best weights of a run are chosen, with a warning if the test split decides.

    Args:
        monitor: Metric of the validation that decides.
        source: Data source; its attribute `val_is_test` is whether val is the test split.
    """
    warning = "; val is the test split" if getattr(source, "val_is_test", False) else ""
    return f"best {monitor}{warning}"
