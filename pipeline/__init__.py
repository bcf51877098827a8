"""Heatlift: from images and video to 3D human motion; every stage is trained here.

    images ── heatmap/ ──> heatmaps ──> detections/ ──> cached 2D clips ── lift/ ──> 3D clips
    (photos, video,        2D joints    (the cache)     joints + score       ▲
     rendered people)                                                        │ weights
    motion capture 3D ── pretrain/ ──> random cameras ──> masked, noisy 2D ──┘

Importing this package loads nothing heavy; `from pipeline.lift import MixSTE` loads what it needs.
Import it before torch: it lets waiting threads sleep early, see `SPIN_COUNT`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

SPIN_COUNT = "10000"
"""Rounds that a waiting OpenMP thread spins before it sleeps and leaves its core to other programs.
GNU OpenMP, of which torch's packages have a copy, reads it when torch is imported. It is set where
the user has set no variable of OpenMP. The numbers that torch computes are the same."""

if not any(name.startswith(("OMP_", "GOMP_", "KMP_")) for name in os.environ):
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a package whose public names are imported when first used.

    Args:
        package: `__name__` of the package.
        modules: Public name -> module of the package that defines the name.
    """

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return load


__all__ = ["Heatlift", "Motion"]

__getattr__ = lazy_names(__name__, {"Heatlift": "predict.heatlift", "Motion": "export.motion"})

# Until version 0.3 `pipeline.published` is the old name of `pipeline.weights`.
published = ModuleType("pipeline.published", "Old name of `pipeline.weights`.")
published.__getattr__ = lambda name: getattr(importlib.import_module("pipeline.weights"), name)  # type: ignore[method-assign]
sys.modules[published.__name__] = published
