"""ROOM 2: motion capture to corrupted 2D to 3D: the weights that room 3 starts from."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {"PretrainDataModule": "data", "PretrainModule": "module"}
"""Public name -> the file of this room that defines it."""

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name's file when the name is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
