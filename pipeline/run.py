"""A run: its folder and state, seeds per batch, signals, the NaN guard, metrics that survive a resume."""

from __future__ import annotations

from pipeline.stage import BatchKey, BatchSet, Order, Stage, loader

__all__ = ["BatchKey", "BatchSet", "Order", "Stage", "loader"]
