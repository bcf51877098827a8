"""Options of the Trainer that Heatlift chooses: processes, strategy, loggers, callbacks."""

from __future__ import annotations

import contextlib
import datetime
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.callbacks import Checkpoint, GradientAccumulationScheduler, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import nn

from pipeline.cli import explain
from pipeline.cli.run_options import DEFAULT_EPOCHS, DEFAULT_STEPS
from pipeline.dashboard.wandb_logger import WANDB_MODES, make_wandb_loggers
from pipeline.errors import UsageError
from pipeline.training.callbacks import (
    FixedBuckets,
    NonFiniteGuard,
    OpenProgressBar,
    ProgressLines,
    SeedEveryBatch,
)
from pipeline.training.metrics_file import MetricsFile
from pipeline.training.shared_cores import SharedCores

DEFAULT_SCHEDULE = "pipeline.training.WarmupCosine"
"""Schedule of the learning rate where the command line and configs give none."""


NOT_ALLOWED = {
    "logger": "the loggers are metrics.csv and W&B (--wandb)",
    "enable_checkpointing": "checkpoints are saved always (--save_every)",
    "default_root_dir": "the folder of all runs is --runs",
}
"""Options of the Trainer that Heatlift sets itself, and what there is instead."""


def check_options(config: Any, *, fitting: bool) -> None:
    """Check the options that Heatlift restricts.

    Args:
        config: The parsed config of a subcommand.
        fitting: Whether the subcommand is fit.

    Raises:
        UsageError: If an option has a value that is not allowed.
    """
    for key, instead in NOT_ALLOWED.items():
        if config.trainer[key] is not None:
            raise UsageError(f"--trainer.{key}: cannot be set; {instead}")
    if config.trainer.overfit_batches:
        raise UsageError(
            "--trainer.overfit_batches: cannot be used, it replaces the seeded order of samples; "
            "give --trainer.limit_train_batches"
        )
    if not isinstance(config.trainer.val_check_interval, int | float | None):
        raise UsageError(
            f"--trainer.val_check_interval {config.trainer.val_check_interval}: is a time, and a "
            "resumed run would validate at other steps; give batches or a share of an epoch"
        )
    _check_numbers(config)
    _check_files(config.trainer)
    if config.wandb not in WANDB_MODES:
        modes = ", ".join(WANDB_MODES)
        raise UsageError(f"--wandb {config.wandb}: no such mode; give one of {modes}")
    _check_launcher(config.trainer)
    _check_device(config.trainer)
    if fitting and config.trainer.precision == "16-true":
        raise UsageError(
            "--trainer.precision 16-true: is for tests; steps of the optimizer are too small for "
            "weights in float16, use 16-mixed or bf16-mixed"
        )
    if fitting:
        _check_fused(config)


def _check_fused(config: Any) -> None:
    """Check that gradients are not clipped for a fused optimizer in mixed precision.

    Raises:
        UsageError: If they are; Lightning does not do that.
    """
    arguments = (config.get("model.optimizer") or {}).get("init_args") or {}
    clips = config.trainer.gradient_clip_val and "mixed" in str(config.trainer.precision)
    if clips and arguments.get("fused"):
        raise UsageError(
            f"--trainer.gradient_clip_val {config.trainer.gradient_clip_val:g}: gradients of a "
            f"fused optimizer are not clipped in {config.trainer.precision}; give "
            "--model.optimizer.init_args.fused false"
        )


def _check_device(trainer: Any) -> None:
    """Check that device and strategy that are asked for are there, and fit the precision.

    Raises:
        UsageError: If not.
    """
    has_gpu = torch.cuda.is_available()
    if trainer.accelerator in ("gpu", "cuda") and not has_gpu:
        raise UsageError(
            f"--trainer.accelerator {trainer.accelerator}: torch finds no GPU here; leave it out "
            "or give cpu, and see `heatlift doctor`"
        )
    names = ("auto", *StrategyRegistry.available_strategies())
    if isinstance(trainer.strategy, str) and trainer.strategy not in names:
        raise UsageError(
            f"--trainer.strategy {trainer.strategy}: no such strategy; give auto or ddp"
        )
    on_cpu = trainer.accelerator == "cpu" or not has_gpu
    if on_cpu and str(trainer.precision) in ("16", "16-mixed"):
        raise UsageError(
            f"--trainer.precision {trainer.precision}: needs a GPU; on a CPU give bf16-mixed"
        )


LOWEST = {
    "save_every": 1,
    "patience": 0.001,
    "trainer.accumulate_grad_batches": 1,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.gradient_clip_val": 0,
    "trainer.limit_predict_batches": 0,
    "trainer.limit_test_batches": 0,
    "trainer.limit_train_batches": 0,
    "trainer.limit_val_batches": 0,
    "trainer.log_every_n_steps": 0,
    "trainer.max_epochs": -1,
    "trainer.max_steps": -1,
    "trainer.min_epochs": 0,
    "trainer.min_steps": 0,
    "trainer.num_nodes": 1,
    "trainer.num_sanity_val_steps": -1,
    "trainer.overfit_batches": 0,
    "trainer.reload_dataloaders_every_n_epochs": 0,
    "trainer.val_check_interval": 0.000001,
    "data.augment_every": 0,
    "data.step": 1,
    "data.joint_mask": 0,
    "data.frame_mask": 0,
    "data.noise": 0,
    "model.smooth": 0,
}
"""Option -> its smallest value. None is allowed where it is the default."""

HIGHEST = {"data.joint_mask": 1, "data.frame_mask": 1}
"""Option -> its largest value."""


def _check_numbers(config: Any) -> None:
    """Check the range of the options that are numbers.

    Raises:
        UsageError: If a number is too small or too large.
    """
    check_seed(config.seed_everything)
    for option, lowest in LOWEST.items():
        value = config.get(option)
        is_number = isinstance(value, int | float)
        if is_number and value < lowest:
            least = "more than 0" if 0 < lowest < 1 else f"at least {lowest}"
            raise UsageError(f"--{option} is {value}; give {least}")
        if is_number and value > HIGHEST.get(option, math.inf):
            raise UsageError(f"--{option} is {value}; give at most {HIGHEST[option]}")


def check_seed(seed: Any) -> None:
    """Check the seed of a run.

    Raises:
        UsageError: If it is no whole number from 0 to 2**32 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UsageError(f"--seed_everything is {seed}; give a whole number from 0 to 4294967295")


def _check_files(trainer: Any) -> None:
    """Check that profilers and callbacks write where they do by default, in the run folder.

    Raises:
        UsageError: If one has a folder or a path of its own.
    """
    parts = [("profiler", trainer.profiler)]
    parts += [("callbacks", part) for part in as_list(trainer.callbacks)]
    for name, part in parts:
        arguments = part.get("init_args") if isinstance(part, Mapping | Namespace) else None
        for key in ("dirpath", "save_dir", "output_dir"):
            if arguments and arguments.get(key):
                raise UsageError(
                    f"--trainer.{name}: {key} cannot be set; its files go to the folder of the run"
                )
        filename = arguments.get("filename") if arguments else None
        if filename and Path(str(filename)).name != str(filename):
            raise UsageError(f"--trainer.{name}: filename is a path; give a name alone")


def take_launched_processes(trainer: Any) -> None:
    """Set devices and machines to those that torchrun started, where no option gives them.

    Args:
        trainer: Options of the Trainer; they are changed.
    """
    world, local = _launched_processes()
    if local and trainer.devices == "auto":
        trainer.devices = local
        if trainer.num_nodes == 1:
            trainer.num_nodes = max(1, world // local)


def _launched_processes() -> tuple[int, int]:
    """Processes that torchrun started, in all and on this machine; zeros without torchrun."""
    counts = [os.environ.get(name, "") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")]
    if "TORCHELASTIC_RUN_ID" not in os.environ or not all(map(str.isdecimal, counts)):
        return 0, 0
    return int(counts[0]), int(counts[1])


def _check_launcher(trainer: Any) -> None:
    """Check that torchrun started as many processes as the Trainer is told to have.

    Raises:
        UsageError: If it started others.
    """
    world, local = _launched_processes()
    if not world:
        return
    devices = process_count(trainer)
    if (devices * trainer.num_nodes, devices) != (world, local):
        raise UsageError(
            f"torchrun started {world} processes, {local} on this machine, and --trainer.devices "
            f"{trainer.devices} with --trainer.num_nodes {trainer.num_nodes} are "
            f"{devices * trainer.num_nodes}; make them equal, or leave both options out"
        )


@contextlib.contextmanager
def report_wrong_values() -> Iterator[None]:
    """Turn errors of constructors into usage errors: their arguments are values of the config.

    An error in the user's own files is no wrong value, and stays as it is.

    Raises:
        UsageError: If a class rejects its arguments.
    """
    try:
        yield
    except (ValueError, TypeError, ZeroDivisionError, MisconfigurationException) as error:
        if explain.own_traceback(error):
            raise
        raise UsageError(f"{join_lines(error)}; correct this value of the config") from error
    except RuntimeError as error:
        is_device = "allocate" in str(error) or "CUDA" in str(error)  # memory or the device
        if is_device or explain.own_traceback(error):
            raise
        raise UsageError(f"{join_lines(error)}; correct the size in the config") from error


def join_lines(error: Exception) -> str:
    """Text of an exception on one line, without its end mark."""
    return " ".join(str(error).split())[:300].rstrip(".")


def limit_length(trainer: Any) -> None:
    """Set the length of a training whose command line and configs give none.

    Lightning would train 1,000 epochs, whatever an epoch is.

    Args:
        trainer: Options of the Trainer; they are changed.
    """
    if trainer.max_epochs is None and trainer.max_steps == -1 and trainer.max_time is None:
        trainer.max_epochs, trainer.max_steps = DEFAULT_EPOCHS, DEFAULT_STEPS


def describe_length(trainer: Any) -> str:
    """Describe the limits of a training in one line.

    >>> from types import SimpleNamespace
    >>> describe_length(SimpleNamespace(max_epochs=-1, max_steps=90, max_time=None))
    '90 steps'
    """
    limits = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(f"{trainer.max_epochs} epochs")
    if trainer.max_steps >= 0:
        limits.append(f"{trainer.max_steps} steps")
    if trainer.max_time is not None:
        limits.append(f"time {trainer.max_time}")
    text = " or ".join(limits) + (", whichever is first" if len(limits) > 1 else "")
    is_default = (trainer.max_epochs, trainer.max_steps) == (DEFAULT_EPOCHS, DEFAULT_STEPS)
    return f"{text} (default; set --trainer.max_epochs)" if is_default else text or "no limit"


def as_list(value: Any) -> list[Any]:
    """Convert the value of an option (None, one object or a list) to a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def process_count(trainer: Any) -> int:
    """Count the processes that the Trainer options request on this machine."""
    accelerator = str(trainer.accelerator)
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    devices = 1 if accelerator == "cpu" and trainer.devices == "auto" else trainer.devices
    with report_wrong_values():
        if accelerator == "cpu":
            return CPUAccelerator.parse_devices(devices)
        if accelerator in ("gpu", "cuda") and torch.cuda.is_available():
            return len(CUDAAccelerator.parse_devices(-1 if devices == "auto" else devices) or [0])
    return 1


def make_ddp_strategy(config: Any, model: nn.Module) -> DDPStrategy:
    """Make the DDP strategy, with a time limit for waiting for other processes.

    Args:
        config: The parsed config of a subcommand; `patience` is the limit in seconds.
        model: What is trained; parts of it may have no gradient in some steps.
    """
    unused = any(getattr(part, "has_unused_parameters", False) for part in model.modules())
    on_cpu = config.trainer.accelerator == "cpu" or not torch.cuda.is_available()
    return DDPStrategy(
        timeout=datetime.timedelta(seconds=config.patience),
        process_group_backend="gloo" if on_cpu else None,
        find_unused_parameters=unused,
    )


def make_loggers(
    config: Any, folder: Path, *, stage: str, settings: Mapping[str, Any]
) -> list[Logger]:
    """Make the loggers of a run: `metrics.csv` and W&B.

    Args:
        config: The parsed config of the subcommand.
        folder: Folder of the run or of the evaluation.
        stage: Name of the stage.
        settings: Settings of the run, for W&B.
    """
    group = config.group or os.environ.get("HEATLIFT_GROUP") or "chain"
    return [
        MetricsFile(folder / "metrics.csv"),
        *make_wandb_loggers(
            folder,
            stage=stage,
            name=folder.name,
            group=group,
            config=settings,
            wandb_mode=config.wandb,
        ),
    ]


def callbacks_of_the_user(value: Any) -> list[pl.Callback]:
    """Convert the option `callbacks` to a list.

    Args:
        value: None, one callback or a list.

    Raises:
        UsageError: If one of them saves checkpoints, as Lightning's ModelCheckpoint does, or
            changes the number of batches per optimizer step.
    """
    callbacks = as_list(value)
    for callback in callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            raise UsageError(
                "--trainer.callbacks: GradientAccumulationScheduler cannot be used; the learning "
                "rate follows a fixed number of batches per step, --trainer.accumulate_grad_batches"
            )
        if isinstance(callback, Checkpoint):
            raise UsageError(
                f"--trainer.callbacks: {type(callback).__name__} cannot be used; Heatlift saves "
                "its own checkpoints, see --save_every and --weights"
            )
    return callbacks


def basic_callbacks(seed: int, trainer: Any, *, bar: bool) -> list[pl.Callback]:
    """Callbacks of every Trainer: buckets, seeding, checks of numbers and cores, progress.

    Args:
        seed: Seed of the run.
        trainer: Options of the Trainer.
        bar: Whether Lightning shows a progress bar, which replaces the progress lines.
    """
    callbacks: list[pl.Callback] = [
        FixedBuckets(),
        SeedEveryBatch(seed),
        NonFiniteGuard(),
        SharedCores(),
    ]
    if not bar:
        return [*callbacks, ProgressLines()]
    has_epochs = trainer.max_epochs is not None and trainer.max_epochs >= 0
    has_bar = any(isinstance(callback, ProgressBar) for callback in as_list(trainer.callbacks))
    return callbacks if has_epochs or has_bar else [*callbacks, OpenProgressBar()]
