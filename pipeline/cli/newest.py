"""`heatlift newest`, and the value `newest` of options: the newest finished run that fits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.cli.configs import find_config, plain_values, read_source, same_source
from pipeline.cli.stages import STAGES
from pipeline.detections.request import DetectionRequest
from pipeline.errors import UsageError
from pipeline.training.console import print_line
from pipeline.training.run_folder import newest_finished_run


class StageClass(Protocol):
    """What a `Stage` class tells about itself; the class is not imported here: it needs torch."""

    @property
    def stage(self) -> str:
        """Name of the stage."""
        ...

    @property
    def newest_from(self) -> str | None:
        """Stage whose newest run it can start from."""
        ...


def newest(
    stage: str,
    data: str = "data/synthetic",
    root: str | None = None,
    runs: str = "runs",
) -> None:
    """Print the checkpoint of the newest finished run of a stage on a data set.

    Args:
        stage: Stage of the run.
        data: Config of the data, a shipped one or a YAML file.
        root: Folder of the data; by default the one in the config.
        runs: Folder of all runs.

    Raises:
        UsageError: If there is no such stage or run, or the config has no data source.
    """
    if stage not in STAGES:
        raise UsageError(f"stage: {stage} is none of {', '.join(STAGES)}")
    source = read_source(find_config(data))
    if not source:
        raise UsageError(f"{data}: has no data.source; give the config of a data set")
    if root is not None:
        source = with_root(source, root)
    found = newest_finished_run(
        Path(runs), stage, lambda settings: same_source(settings["data"]["source"], source)
    )
    if found is None:
        raise UsageError(
            f"{Path(runs) / stage}: no finished run on {data}; train one first, as "
            f"in `heatlift {stage} fit -c CONFIG -c {data}`"
        )
    print_line(str(found))


def with_root(source: Mapping[str, Any], root: str) -> dict[str, Any]:
    """Config of a data source with another root folder."""
    return {**source, "init_args": {**source.get("init_args", {}), "root": root}}


def newest_detector(runs: Path, source: Mapping[str, Any]) -> str:
    """Checkpoint of the newest finished `heatmap` run on a data source.

    Raises:
        UsageError: If there is no such run.
    """
    found = newest_finished_run(
        runs, "heatmap", lambda settings: same_source(settings["data"]["source"], source)
    )
    if found is None:
        raise UsageError(
            f"{runs / 'heatmap'}: no finished 2D stage on this data; train one first "
            "(`heatlift heatmap fit`), or give --data.detections exact, noisy or a checkpoint "
            "(with make: DETECTIONS=, DETECTOR=)"
        )
    return str(found)


def newest_weights(runs: Path, stage: StageClass, config: Any) -> str:
    """Checkpoint of the newest finished run that a stage can start from.

    Args:
        runs: Folder of all runs.
        stage: Stage that starts; the run is of the stage in its `newest_from`.
        config: Parsed config of the stage; the run must have the same network and data.

    Raises:
        UsageError: If there is no such run.
    """
    net = plain_values(config.model)["net"]
    source = plain_values(config.data).get("source", {})
    source_stage = stage.newest_from
    if source_stage is None:
        raise UsageError(
            f"--model.pretrained newest: {stage.stage} has no stage before it; give a checkpoint"
        )

    def fits(settings: Mapping[str, Any]) -> bool:
        return bool(settings["model"]["net"] == net) and same_source(
            settings["data"]["source"], source
        )

    found = newest_finished_run(runs, source_stage, fits)
    if found is None:
        raise UsageError(
            f"{runs / source_stage}: no finished {source_stage} run of this network on this data; "
            f"train one first (`heatlift {source_stage} fit`), or give --model.pretrained none to "
            "start from random weights (with make: PRETRAINED=none)"
        )
    return str(found)


def newest_checkpoint(runs: Path, stage: str) -> str:
    """Checkpoint of the newest finished run of a stage, for an evaluation.

    Raises:
        UsageError: If there is no such run.
    """
    found = newest_finished_run(runs, stage, lambda settings: True)
    if found is None:
        raise UsageError(
            f"--ckpt_path newest: {runs / stage} has no finished run; train one, or give a "
            "checkpoint"
        )
    return str(found)


PLANNED_DETECTOR = "planned.ckpt"
"""Value of `--data.detections newest` in the check of a fit whose 2D stage is not trained yet."""


def resolve_newest(stage: StageClass, config: Any, planned: Collection[str] = ()) -> None:
    """Replace `newest` in a parsed config by the newest run that fits, and `none` by None.

    Args:
        stage: Stage that starts.
        config: Parsed config of the subcommand; it is changed.
        planned: Stages that are trained before it, and whose newest run does not exist yet.

    Raises:
        UsageError: If there is no such run.
    """
    runs = Path(config.runs)
    if config.model.get("pretrained") == "newest" and stage.newest_from in planned:
        config.model.pretrained = None
    if config.model.get("pretrained") == "none":
        config.model.pretrained = None
    if config.model.get("pretrained") == "newest":
        config.model.pretrained = newest_weights(runs, stage, config)
    detections = config.data.get("detections")
    if detections is not None and DetectionRequest.parse(detections).kind == "newest":
        source = plain_values(config.data).get("source", {})
        is_planned = "heatmap" in planned
        config.data.detections = PLANNED_DETECTOR if is_planned else newest_detector(runs, source)
