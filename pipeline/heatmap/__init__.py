"""Room 1, pictures -> heatmaps -> 2D joints: its public names, loaded when first asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.heatmap.data import HeatmapDataModule as HeatmapDataModule
    from pipeline.heatmap.hrnet import HRNet as HRNet
    from pipeline.heatmap.module import HeatmapModule as HeatmapModule
    from pipeline.heatmap.simple_baseline import SimpleBaseline as SimpleBaseline

_HOMES = {
    "HRNet": "hrnet",
    "SimpleBaseline": "simple_baseline",
    "HeatmapModule": "module",
    "HeatmapDataModule": "data",
}

__all__ = ["HRNet", "HeatmapDataModule", "HeatmapModule", "SimpleBaseline"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
