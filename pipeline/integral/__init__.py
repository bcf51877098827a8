"""Room 1b, pictures -> 3D heatmaps -> 3D joints: its public names, loaded when first asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.integral.data import IntegralDataModule as IntegralDataModule
    from pipeline.integral.module import IntegralModule as IntegralModule
    from pipeline.integral.san import SAN as SAN

_HOMES = {"IntegralDataModule": "data", "IntegralModule": "module", "SAN": "san"}

__all__ = ["SAN", "IntegralDataModule", "IntegralModule"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
