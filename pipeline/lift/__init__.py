"""ROOM 3: 2D clips to 3D clips."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "CombinedDeepLearner": "combined",
    "Cascade": "combined",
    "LiftDataModule": "data",
    "LiftModule": "module",
    "Lifter": "lifter",
    "Martinez": "martinez",
    "MixSTE": "mixste",
    "PoseFormer": "poseformer",
    "VideoPose3D": "videopose3d",
}
"""Public name -> the file of this room that defines it."""

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name's file when the name is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
