"""The stages: name on the command line -> module class and one help line."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pipeline.training.stage import Stage


class StageEntry(NamedTuple):
    """One stage of the command line.

    Args:
        module_class: `module:class` of its LightningModule, which defines everything else.
        help: One line for `--help`.
    """

    module_class: str
    help: str


STAGES = {
    "heatmap": StageEntry(
        "pipeline.heatmap.module:HeatmapModule", "train or test a 2D stage: images to 2D joints"
    ),
    "integral": StageEntry(
        "pipeline.integral.module:IntegralModule", "train or test a 2D stage with 3D heatmaps (SAN)"
    ),
    "pretrain": StageEntry(
        "pipeline.pretrain.module:PretrainModule",
        "pretrain a lifter: recover motion from masked, noisy 2D projections",
    ),
    "lift": StageEntry(
        "pipeline.lift.module:LiftModule", "train or test a lifter: 2D clips to 3D clips"
    ),
}


SUBCOMMANDS = {
    "fit": "train, validate and test",
    "validate": "evaluate a checkpoint on the validation split",
    "test": "evaluate a checkpoint on the test split",
    "predict": "write the predictions of a checkpoint on the test split",
}
"""Subcommands of a stage, with their help."""


def load_stage(name: str) -> type[Stage]:
    """Import the LightningModule class of a stage."""
    module, _, class_name = STAGES[name].module_class.partition(":")
    stage: type[Stage] = getattr(importlib.import_module(module), class_name)
    return stage
