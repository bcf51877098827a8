"""Lines that a run prints: data, weights and device first, metrics and paths last."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import nn

from pipeline.dashboard.callback import update_index
from pipeline.dashboard.show import log_artifact
from pipeline.errors import NonFiniteError
from pipeline.training.console import format_duration, print_line
from pipeline.training.metrics_file import MetricsFile
from pipeline.training.run_folder import Run
from pipeline.training.stage import Stage


def print_start(
    title: str, trainer: pl.Trainer, data: str, network: str, weights: str, length: str = ""
) -> None:
    """Print the first lines of a run.

    Args:
        title: Command and folder of the run.
        trainer: Trainer of the run.
        data: Description of the data.
        network: Description of the network.
        weights: Description of the weights at the start.
        length: Length of the training; "" if nothing is trained.
    """
    print_line(title)
    print_line(f"  data       {data}")
    print_line(f"  network    {network}")
    print_line(f"  weights    {weights}")
    print_line(f"  device     {describe_device(trainer)}")
    if length:
        print_line(f"  length     {length}")


def describe_network(module: Any) -> str:
    """Describe the network of a stage in one line: its class, what wraps it, and its size."""
    names, net = [], module.net
    while isinstance(net, nn.Module):
        names.append(type(net).__name__)
        net = getattr(net, "net", None)
    size = sum(parameter.numel() for parameter in module.net.parameters())
    return f"{' in '.join(reversed(names))}, {size / 1e6:.2f} M parameters"


def describe_weights(run: Run | None, config: Any, settings: Mapping[str, Any]) -> str:
    """Describe the weights at the start of a run in one line.

    Args:
        run: The run of a fit; None for an evaluation.
        config: The parsed config of the subcommand.
        settings: Settings of the run; see `run_settings`.
    """
    if run and run.resume:
        return f"resumed from {run.resume.name}"
    if config.ckpt_path:
        return str(config.ckpt_path)
    pretrained = config.model.get("pretrained")
    if pretrained:
        return f"{pretrained} ({settings['model']['pretrained'][:12]})"
    return "fresh" if run else "random (--untrained)"


def describe_device(trainer: pl.Trainer) -> str:
    """Describe device, processes, precision and torch version of a run in one line."""
    if trainer.strategy.root_device.type == "cuda":
        device = f"{trainer.num_devices} x {torch.cuda.get_device_name()}"
    else:
        device = f"{trainer.strategy.root_device.type}, {torch.get_num_threads()} threads"
    processes = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
    return f"{device}{processes}; precision {trainer.precision}; torch {torch.__version__}"


def finite_metrics(split: str, metrics: Mapping[str, Any], consequence: str) -> dict[str, float]:
    """Convert the metrics of a split to plain numbers.

    A metric that is not defined is not logged; one that is not finite is an error.

    Args:
        split: val or test.
        metrics: Logged metrics.
        consequence: What follows from an error, for its message.

    Raises:
        NonFiniteError: If a metric is not finite.
    """
    numbers = {
        name: float(value) for name, value in metrics.items() if name.startswith(f"{split}/")
    }
    not_finite = [name for name, value in numbers.items() if not math.isfinite(value)]
    if not_finite:
        raise NonFiniteError(f"{', '.join(not_finite)} is not finite; {consequence}")
    return numbers


def finish_run(
    run: Run,
    trainer: pl.Trainer,
    checkpoint: Path,
    numbers: dict[str, float],
    seconds: float,
) -> None:
    """Mark a run as finished, and print its test metrics and paths; on rank 0 only.

    Args:
        run: The run.
        trainer: Trainer of the run.
        checkpoint: Checkpoint that was tested.
        numbers: Metrics of the test.
        seconds: Duration of the run, seconds.
    """
    print_metrics("test", numbers)
    run.finish(
        checkpoint=str(checkpoint.relative_to(run.folder)),
        numbers=numbers,
        protocol=cast(Stage, trainer.lightning_module).protocol("test"),
        metrics=cast(MetricsFile, trainer.logger).flush()["sha256"],
        seconds=round(seconds, 1),
    )
    log_artifact(trainer, checkpoint, "checkpoint")
    update_index(trainer)
    print_line(f"  done in {format_duration(seconds)}: {checkpoint}")
    print_result_paths(run.folder)


def print_metrics(split: str, metrics: Mapping[str, Any]) -> None:
    """Print the metrics of a split in one line; those of parts of it are in metrics.csv alone."""
    parts = "action_mean|loss|subset|mean_pose"
    values = {
        name.removeprefix(f"{split}/"): float(value)
        for name, value in metrics.items()
        if name.startswith(f"{split}/") and not re.search(parts, name)
    }
    line = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    print_line(f"  {split:<10} {line}")


def print_result_paths(folder: Path) -> None:
    """Print the paths of the metrics and of the page of a run."""
    for label, names in {"numbers": ("metrics.csv", "tables"), "page": ("index.html",)}.items():
        paths = [str(folder / name) for name in names if (folder / name).exists()]
        if paths:
            print_line(f"  {label:<10} {', '.join(paths)}")
