"""Checks of a fit before anything is trained: config, network, data, weights, folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningCLI

from pipeline.cli.configs import plain_values, resolve_configs
from pipeline.cli.launch import import_own_files, quieten_libraries
from pipeline.cli.newest import PLANNED_DETECTOR
from pipeline.cli.run_inputs import content_settings, run_inputs
from pipeline.cli.run_settings import complete_config, run_name, run_settings
from pipeline.cli.stage_cli import StageCLI
from pipeline.cli.stages import load_stage
from pipeline.cli.trainer_options import describe_length, process_count
from pipeline.detections.cache import check_request
from pipeline.errors import DataError, StorageError
from pipeline.heatmap.image_stage import ImageStage
from pipeline.training.run_changes import UNFINISHED
from pipeline.training.run_folder import has_results, read_state, settings_digest
from pipeline.training.signals import StopSignals
from pipeline.training.stage import load_pretrained, make_optimizer


@dataclass(frozen=True)
class PlannedFit:
    """What a fit will do, known before it starts.

    Args:
        stage: Name of the stage.
        folder: Folder of its run.
        resumed: Whether it resumes an unfinished run.
        inputs: Where its weights and its 2D joints come from.
        length: Limits of its length.
    """

    stage: str
    folder: Path
    resumed: bool
    inputs: str
    length: str


def check_fit(stage: str, arguments: Sequence[str], planned: Collection[str] = ()) -> PlannedFit:
    """Check a fit as far as possible without training: config, network, data, weights, folder.

    The network and the Trainer are made, the data source lists its sequences or samples, and the
    checkpoints it needs are read. No folder is made.

    Args:
        stage: Name of the stage.
        arguments: Arguments after the name of the stage.
        planned: Stages that are trained before it, whose checkpoints do not exist yet.

    Raises:
        HeatliftError: If anything is wrong.
    """
    quieten_libraries()
    resolved = resolve_configs(import_own_files(arguments))
    return StageCheck(stage, resolved, arguments, planned).plan()


class _CheckedError(Exception):
    """Ends a `StageCheck` where the training would begin."""


class StageCheck(StageCLI):
    """Command line of a fit that ends before the run is opened.

    Args:
        stage: Name of the stage.
        arguments: Arguments after the name of the stage, with paths of configs.
        command_line: The same arguments as given.
        planned: Stages that are trained before it.
    """

    def __init__(
        self,
        stage: str,
        arguments: Sequence[str],
        command_line: Sequence[str],
        planned: Collection[str],
    ) -> None:
        self.planned = planned
        with contextlib.suppress(_CheckedError):
            super().__init__(load_stage(stage), arguments, command_line, StopSignals())

    def before_instantiate_classes(self) -> None:
        """Complete the config, and find the folder that the run will have."""
        config = self.config[self.subcommand]
        self.pretrained, self.detections = config.model.pretrained, config.data.get("detections")
        complete_config(config, self.stage, self.subcommand, self.planned)
        _check_roots(config)
        name = run_name(config, self.stage.stage)
        self.settings = run_settings(config, self._inputs(config))
        self.folder, self.resumed = _find_folder(
            Path(config.runs) / self.stage.stage,
            name,
            settings_digest(content_settings(self.settings)),
        )

    def _inputs(self, config: Any) -> dict[str, str]:
        """Files that the data are read from; a planned detector is none yet."""
        if config.data.get("detections") == PLANNED_DETECTOR:
            return {}
        return run_inputs(self.stage, config, str(self.subcommand))

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Make a Trainer that writes nothing; of several processes, each makes its own later."""
        options: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
        if process_count(self.config[self.subcommand].trainer) > 1:
            options |= {"devices": 1, "strategy": "auto"}
        return LightningCLI.instantiate_trainer(self, **options, enable_progress_bar=False)

    def after_instantiate_classes(self) -> None:
        """Check data, detections, weights, and the folder of all runs."""
        config = self.config[self.subcommand]
        self.datamodule.describe()
        listing = "samples" if issubclass(self.stage, ImageStage) else "sequences"
        for split in ("train", "val", "test"):
            getattr(self.datamodule.source, listing)(split)
        request = getattr(self.datamodule, "detections", None)
        if request is not None and request.text != PLANNED_DETECTOR:
            check_request(self.datamodule.source, request)
        make_optimizer(self.model)
        if self.model.pretrained:
            load_pretrained(self.model, fitting=True)
        _check_writable(Path(config.runs))

    def before_fit(self) -> None:
        """End here: nothing is trained."""
        raise _CheckedError

    def plan(self) -> PlannedFit:
        """What the fit will do."""
        config = self.config[self.subcommand]
        inputs = [f"weights {config.model.pretrained or 'fresh'}"]
        if self.pretrained == "newest" and self.stage.newest_from in self.planned:
            inputs = [f"weights of this {self.stage.newest_from}"]
        if self.detections is not None:
            text = config.data.detections
            inputs += ["2D of this 2D stage" if text == PLANNED_DETECTOR else f"2D {text}"]
        length = describe_length(config.trainer)
        return PlannedFit(self.stage.stage, self.folder, self.resumed, ", ".join(inputs), length)


def _find_folder(folder: Path, name: str, digest: str) -> tuple[Path, bool]:
    """Folder that `open_run` will take, and whether it resumes a run in it."""
    candidate, number = folder / name, 1
    while candidate.exists():
        state = read_state(candidate) or {}
        if (state.get("state"), state.get("digest")) == (UNFINISHED, digest):
            return candidate, True
        if not has_results(candidate):
            return candidate, False
        number += 1
        candidate = folder / f"{name}-{number}"
    return candidate, False


def _check_writable(runs: Path) -> None:
    """Check that files can be written below a folder, which may not exist yet.

    Raises:
        StorageError: If they cannot.
    """
    folder = runs.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StorageError(f"{folder}: cannot be written to; choose another --runs folder")


def _check_roots(config: Any) -> None:
    """Check that the folders of the data exist.

    Raises:
        DataError: If one does not.
    """
    for name, part in plain_values(config.data).items():
        root = (part.get("init_args") or {}).get("root") if isinstance(part, dict) else None
        if root is not None and not Path(str(root)).exists():
            raise DataError(
                f"{root}: no such folder; give the folder of the data with "
                f"--data.{name}.init_args.root (make: ROOT=)"
            )
