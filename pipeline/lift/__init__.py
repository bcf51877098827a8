"""Room 3, 2D clips -> 3D clips: its public names, loaded when first asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.lift.centred import Centred as Centred
    from pipeline.lift.combined import Cascade as Cascade
    from pipeline.lift.combined import CombinedDeepLearner as CombinedDeepLearner
    from pipeline.lift.data import LiftDataModule as LiftDataModule
    from pipeline.lift.lifter import Lifter as Lifter
    from pipeline.lift.martinez import Martinez as Martinez
    from pipeline.lift.mixste import MixSTE as MixSTE
    from pipeline.lift.module import LiftModule as LiftModule
    from pipeline.lift.poseformer import PoseFormer as PoseFormer
    from pipeline.lift.videopose3d import VideoPose3D as VideoPose3D

_HOMES = {
    "Cascade": "combined",
    "Centred": "centred",
    "CombinedDeepLearner": "combined",
    "LiftDataModule": "data",
    "LiftModule": "module",
    "Lifter": "lifter",
    "Martinez": "martinez",
    "MixSTE": "mixste",
    "PoseFormer": "poseformer",
    "VideoPose3D": "videopose3d",
}

__all__ = [
    "Cascade",
    "Centred",
    "CombinedDeepLearner",
    "LiftDataModule",
    "LiftModule",
    "Lifter",
    "Martinez",
    "MixSTE",
    "PoseFormer",
    "VideoPose3D",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
