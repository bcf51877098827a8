"""Cores that other programs use: noticed while training, and reported once with what to do."""

from __future__ import annotations

import contextlib
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
    """Prints once if other programs use the cores that a training on the CPU computes with."""

    def __init__(self) -> None:
        self._times = (0.0, 0.0)
        self._measured_at = 0.0
        self._done = False

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
