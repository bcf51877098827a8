"""Cores of a training on the CPU: for DataLoader workers, and those that other programs use."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from pipeline.training.console import print_line

WAITING_SHARE = 0.25
"""Share of the threads' time spent waiting for a core from which the cores count as shared."""

LEAST_SECONDS = 10.0
"""Seconds of training between two measurements."""

HINT = "heatlift: other programs use the processor; `OMP_NUM_THREADS=1` would be faster now"


def processor_times() -> tuple[float, float]:
    """Seconds that the threads of this process ran on a core, and waited for one (Linux).

    Returns:
        Both since the threads began; zeros where the system does not count them.
    """
    ran = waited = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError):  # a thread that has just ended
            times = path.read_text().split()
            ran, waited = ran + int(times[0]), waited + int(times[1])
    return ran / 1e9, waited / 1e9


def training_threads(workers: int) -> int:
    """Threads of torch for a training on the CPU: each DataLoader worker has a core of its own.

    A worker draws or decodes images most of the time. On a core that it shares with a thread of
    torch, all threads wait for that one. A number in `OMP_NUM_THREADS` stays as it is.

    Args:
        workers: DataLoader workers.
    """
    threads = torch.get_num_threads()
    return threads if "OMP_NUM_THREADS" in os.environ else max(1, threads - workers)


def cores_are_shared(ran: float, waited: float, threads: int) -> bool:
    """Whether other programs slow down a training that computes with several threads.

    At the end of each operation all threads wait for the slowest one. So if each of them waits for
    a core for a share of its time, the operation waits longer than that, and one thread alone,
    which waits for nobody, is faster.

    Args:
        ran: Seconds that the threads ran on a core.
        waited: Seconds that they could run and waited for a core.
        threads: Threads that compute one operation.
    """
    return threads > 1 and ran > 0 and waited > WAITING_SHARE * (ran + waited)


class SharedCores(Callback):
    """Leaves cores to the DataLoader workers, and prints once if other programs use the others."""

    def __init__(self) -> None:
        self._threads: int | None = None
        self._times = (0.0, 0.0)
        self._measured_at = 0.0
        self._done = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the number of threads of a training on a CPU; see `training_threads`."""
        if trainer.strategy.root_device.type == "cpu":
            self._threads = torch.get_num_threads()
            torch.set_num_threads(training_threads(trainer.datamodule.workers))  # type: ignore[attr-defined]

    def on_fit_end(self, *_: object) -> None:
        """Compute with as many threads as before: a test has no workers."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)

    def on_exception(self, *_: object) -> None:
        """Compute with as many threads as before."""
        self.on_fit_end()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure, where it matters: rank 0, on a CPU, several threads."""
        self._done = not trainer.is_global_zero or pl_module.device.type != "cpu"
        self._done |= torch.get_num_threads() == 1
        self._times, self._measured_at = processor_times(), time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Measure every `LEAST_SECONDS`."""
        now = time.monotonic()
        if self._done or now - self._measured_at < LEAST_SECONDS:
            return
        times = processor_times()
        ran, waited = times[0] - self._times[0], times[1] - self._times[1]
        self._times, self._measured_at = times, now
        if cores_are_shared(ran, waited, torch.get_num_threads()):
            self._done = True
            print_line(HINT)
