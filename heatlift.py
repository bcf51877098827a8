"""Heatlift: videos, images or 2D files in, the 3D motion of the people in them out.

`from heatlift import Heatlift, Motion` gives the same classes as the package `pipeline`. They are
loaded when they are first used, so importing this module loads nothing heavy.
"""

import importlib.metadata as _metadata
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

import pipeline as _pipeline

if _TYPE_CHECKING:
    from pipeline.export.motion import Motion
    from pipeline.predict.heatlift import Heatlift

    __version__: str

__all__ = ["Heatlift", "Motion", "__version__"]


def __getattr__(name: str) -> _Any:
    if name == "__version__":
        return _metadata.version("heatlift")
    if name in __all__:
        return getattr(_pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
