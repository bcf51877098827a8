"""`heatlift newest`, and what the word `newest` stands for in a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.cli.configs import find_config, plain_values, read_source, same_source
from pipeline.errors import UsageError
from pipeline.training.console import print_line
from pipeline.training.run_folder import newest_finished_run
from pipeline.training.stage import Stage


def newest(
    stage: Literal["heatmap", "pretrain", "lift"],
    data: str = "data/synthetic",
    root: str | None = None,
    runs: str = "runs",
) -> None:
    """Print the checkpoint of the newest finished run of a stage on some data.

    Args:
        stage: Stage of the run.
        data: Config that names the data.
        root: Folder of the data, if not the one in the config.
        runs: Folder of all runs.

    Raises:
        UsageError: If there is none, or the config names no data.
    """
    source = read_source(find_config(data))
    if not source:
        raise UsageError(f"{data}: names no data.source; give the config of a data set")
    if root is not None:
        source = with_root(source, root)
    found = newest_finished_run(
        Path(runs), stage, lambda settings: same_source(settings["data"]["source"], source)
    )
    if found is None:
        raise UsageError(f"{Path(runs) / stage}: no finished run on {data}; run `make {stage}`")
    print_line(str(found))


def with_root(source: Mapping[str, Any], root: str) -> dict[str, Any]:
    """The config of a data source in another folder."""
    return {**source, "init_args": {**source.get("init_args", {}), "root": root}}


def newest_detector(runs: Path, source: Mapping[str, Any]) -> str:
    """Checkpoint of the newest finished 2D stage on some data.

    Raises:
        UsageError: If there is none.
    """
    found = newest_finished_run(
        runs, "heatmap", lambda settings: same_source(settings["data"]["source"], source)
    )
    if found is None:
        raise UsageError(
            f"{runs / 'heatmap'}: no finished 2D stage on this data; run `make heatmap` first, "
            "or set DETECTIONS=exact or noisy, or DETECTOR= to a checkpoint"
        )
    return str(found)


def newest_weights(runs: Path, stage: type[Stage], config: Any) -> str:
    """Checkpoint of the newest finished run that a stage can start from.

    Args:
        runs: Folder of all runs.
        stage: The stage that starts; the first of its `weights_from` is looked for.
        config: Its parsed config: the run must have the same network and data.

    Raises:
        UsageError: If there is none.
    """
    net = plain_values(config.model)["net"]
    source = plain_values(config.data).get("source", {})
    wanted = stage.weights_from[0]

    def fits(settings: Mapping[str, Any]) -> bool:
        return bool(settings["model"]["net"] == net) and same_source(
            settings["data"]["source"], source
        )

    found = newest_finished_run(runs, wanted, fits)
    if found is None:
        raise UsageError(
            f"{runs / wanted}: no finished {wanted} run of this network on this data; "
            f"run `make {wanted}` first, or set PRETRAINED=none to start from scratch"
        )
    return str(found)
