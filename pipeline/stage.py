"""What modules and data modules of all stages share: order of samples, schedules, checkpoints."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from multiprocessing import connection
from typing import Any, ClassVar, Protocol

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from pipeline import chance
from pipeline.errors import HeatliftError, ProcessLostError, UsageError

BatchKey = tuple[int, NDArray[np.int64]]
"""Epoch, and the indices of the samples in one batch."""

PATIENCE = 120.0
"""Seconds that a loader process may take for a batch."""

LOOK = 5.0
"""Seconds between two looks whether the loader processes are alive."""

FORMAT = 1
"""Version of what `Stage` adds to a checkpoint."""


class BatchSet(Protocol):
    """A dataset that makes whole batches, vectorised where it can."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """The batch of these samples in this epoch, a pure function of the key and the set's seed.

        Arrays come out as NumPy arrays with the batch axis first; the loader turns them into
        tensors. `index` (B,) names the samples in messages.
        """
        ...


class Order(Sampler[BatchKey]):
    """Which samples come in which batch: a pure function of (seed, epoch), whatever came before.

    Training batches are cut from one permutation of all samples: batch s of W processes takes
    samples s*B*W … (s+1)*B*W of it, every W-th to each process. Each sample comes exactly once per
    epoch; what is left at the end and too small to give every process two samples joins the batch
    before. Evaluation takes every W-th sample in order, without padding, so that a metric over N
    processes equals the metric over one.

    Args:
        count: Number of samples.
        batch_size: Samples per batch and process.
        shuffle: Whether this is training.
        seed: Of the run.

    Raises:
        UsageError: If there are fewer samples than processes.
    """

    def __init__(self, count: int, batch_size: int, *, shuffle: bool, seed: int = 0) -> None:
        self.count, self.batch_size, self.shuffle, self.seed = count, batch_size, shuffle, seed
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._starts())

    def _world(self) -> tuple[int, int]:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _starts(self) -> NDArray[np.int64]:
        rank, world = self._world()
        if self.count < world:
            raise UsageError(
                f"{self.count} {'training' if self.shuffle else 'evaluation'} samples are too few "
                f"for {world} processes; give --trainer.devices {max(self.count, 1)}"
            )
        if not self.shuffle:
            return np.arange(0, len(range(rank, self.count, world)), self.batch_size)
        starts = np.arange(0, self.count, self.batch_size * world)
        if len(starts) > 1 and self.count - starts[-1] < 2 * world:
            starts = starts[:-1]
        return starts

    def __iter__(self) -> Iterator[BatchKey]:
        rank, world = self._world()
        starts = self._starts()
        skip, self.skip = self.skip, 0
        if not self.shuffle:
            mine = np.arange(rank, self.count, world)
            for start in starts[skip:]:
                yield self.epoch, mine[start : start + self.batch_size]
            return
        order = chance.generator(self.seed, "order", self.epoch).permutation(self.count)
        for start, end in list(zip(starts, [*starts[1:], self.count], strict=True))[skip:]:
            yield self.epoch, order[start:end][rank::world]


class _Looking(_MultiProcessingDataLoaderIter):
    """Looks at its processes while it waits for them.

    torch looks when the timeout is over, and otherwise trusts the signal of a child's death, which
    can come while another is handled; such a death would cost all of `PATIENCE`. And a process that
    dies amid handing over a batch breaks a connection shortly before its death can be seen.
    """

    def _try_get_data(self, timeout: float = LOOK) -> tuple[bool, Any]:
        end = time.monotonic() + timeout
        while True:
            left = max(end - time.monotonic(), 0.0)
            try:
                got, data = super()._try_get_data(min(left, LOOK))
            except (EOFError, OSError) as error:
                if connection.wait([worker.sentinel for worker in self._workers], LOOK):
                    raise RuntimeError("a DataLoader worker exited") from error
                raise
            if got or left <= LOOK:
                return got, data

    def _shutdown_workers(self) -> None:
        with contextlib.suppress(RuntimeError):  # a death while all are to end is no news
            super()._shutdown_workers()


class Loader(DataLoader[dict[str, Any]]):
    """A DataLoader that knows how many batches of this pass it gave; a resumed run goes on there.

    Lightning stores `state_dict` in the checkpoint. The pass begins at the first batch asked for,
    not when the iterator is made, because Lightning makes it before it tells the sampler which
    epoch this is.
    """

    given = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        order = self.sampler
        if isinstance(order, Order):
            self.given = order.skip
        try:
            for batch in super().__iter__():
                self.given += 1
                yield batch
        except HeatliftError as error:
            # A worker sends the whole traceback as the text.
            name = type(error).__name__
            raise type(error)(str(error).rsplit(f"{name}: ", 1)[-1].strip()) from error
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            raise ProcessLostError(self._lost(str(error))) from error

    def _get_iterator(self) -> _BaseDataLoaderIter:
        return _Looking(self) if self.num_workers else super()._get_iterator()

    def _lost(self, what: str) -> str:
        how = (
            f"gave nothing for {self.timeout:.0f} s"
            if "timed out" in what
            else "was killed (out of memory?)"
        )
        return (
            f"a loader process {how}, at batch {self.given} of this pass; lower --data.workers or "
            "--data.batch_size, or look at the files of that batch with --data.workers 0"
        )

    def state_dict(self) -> dict[str, int]:
        """Batches given so far in this pass."""
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next pass behind the batches given before; a finished pass starts anew."""
        if isinstance(self.sampler, Order):
            self.sampler.skip = state["given"] if state["given"] < len(self.sampler) else 0


def quiet(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to loader processes too, to whom they work for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def loader(
    dataset: BatchSet, batch_size: int, *, shuffle: bool, seed: int = 0, workers: int = 0
) -> Loader:
    """A loader whose order, and with it every batch, depends on (seed, epoch) alone.

    Args:
        dataset: Makes whole batches from (epoch, indices).
        batch_size: Samples per batch and process.
        shuffle: True to train, False to evaluate.
        seed: Of the run.
        workers: Loader processes; the batches are the same for any number.
    """
    return Loader(
        dataset,  # type: ignore[arg-type]
        batch_size=None,
        sampler=Order(len(dataset), batch_size, shuffle=shuffle, seed=seed),
        num_workers=workers,
        persistent_workers=workers > 0 and shuffle,
        timeout=PATIENCE if workers else 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=quiet,
    )


class Schedule:
    """Learning-rate factor over the course of a training; this base class keeps it constant."""

    def factor(self, progress: float, epoch: float) -> float:
        """Factor on the optimiser's learning rate.

        Args:
            progress: Share of all optimiser steps that are done, in [0, 1].
            epoch: Epochs done, with a fraction.
        """
        return 1.0


class WarmupCosine(Schedule):
    """A linear rise, then half a cosine down.

    Args:
        warmup: Share of all steps that the rise takes.
        floor: Factor at the end.
    """

    def __init__(self, warmup: float = 0.05, floor: float = 0.01) -> None:
        self.warmup, self.floor = warmup, floor

    def factor(self, progress: float, epoch: float) -> float:
        """See `Schedule.factor`."""
        if progress < self.warmup:
            return max(progress / self.warmup, 1e-3)
        done = min((progress - self.warmup) / (1.0 - self.warmup), 1.0)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done))


class StepDecay(Schedule):
    """Times `decay` at each milestone, in epochs: the 2D stages' x0.1 at 170 and 200."""

    def __init__(self, milestones: tuple[int, ...] = (170, 200), decay: float = 0.1) -> None:
        self.milestones, self.decay = milestones, decay

    def factor(self, progress: float, epoch: float) -> float:
        """See `Schedule.factor`."""
        return self.decay ** sum(epoch >= milestone for milestone in self.milestones)


class EpochDecay(Schedule):
    """Times `decay` after each epoch, as published lifters do."""

    def __init__(self, decay: float = 0.99) -> None:
        self.decay = decay

    def factor(self, progress: float, epoch: float) -> float:
        """See `Schedule.factor`."""
        return self.decay ** math.floor(epoch)


class Stage(pl.LightningModule):
    """Base of the LightningModules: optimiser, schedule by steps, what a checkpoint says of itself.

    Args:
        optimizer: Makes the optimiser from the parameters.
        schedule: Learning-rate factor by step; none keeps the rate constant.

    A checkpoint gets a dictionary `heatlift`: the stage, a format version, the number of processes,
    and `origin`, whatever the module wants remembered of its making (the report of a hand-over of
    weights).
    """

    stage: ClassVar[str]

    def __init__(self, optimizer: OptimizerCallable, schedule: Schedule | None = None) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.schedule = schedule or Schedule()
        self.origin: dict[str, Any] = {}

    def configure_optimizers(self) -> Any:
        """The optimiser and a schedule stepped after every optimiser step."""
        optimizer = self.optimizer(
            parameter for parameter in self.parameters() if parameter.requires_grad
        )
        per_epoch = self._steps_per_epoch()
        limit = self.trainer.max_steps
        epochs = self.trainer.max_epochs
        whole = per_epoch * epochs if epochs is not None and epochs > 0 else limit
        total = max(1, min(whole, limit) if limit > 0 else whole)
        schedule = self.schedule

        def factor(step: int) -> float:
            return schedule.factor(step / total, step / per_epoch)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _steps_per_epoch(self) -> int:
        # Not trainer.estimated_stepping_batches: asking for it loses the loader's state (lightning
        # issue 20550).
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        batches = len(data.train_dataloader())
        share = self.trainer.limit_train_batches
        if share is not None:
            batches = min(batches, share) if isinstance(share, int) else int(batches * share)
        return max(1, math.ceil(batches / self.trainer.accumulate_grad_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write into the checkpoint which stage it is of."""
        checkpoint["heatlift"] = {
            "stage": self.stage,
            "format": FORMAT,
            "processes": self.trainer.world_size,
            "origin": self.origin,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another stage or, to train on, of another number of processes.

        Raises:
            UsageError: Naming both.
        """
        about = checkpoint.get("heatlift", {})
        if about.get("stage") != self.stage:
            raise UsageError(
                f"a checkpoint of stage {about.get('stage')} is not one of {self.stage}"
            )
        fitting = self._trainer is not None and self._trainer.state.fn == "fit"
        if fitting and about["processes"] != self.trainer.world_size:
            raise UsageError(
                f"the run to resume had {about['processes']} processes and this has "
                f"{self.trainer.world_size}: the batches would differ; "
                "give a new --name, or as many devices as before"
            )
        self.origin = about.get("origin", {})


class Source(Protocol):
    """Where data come from; see `pipeline.datasets`."""

    def describe(self) -> str:
        """One line for the first lines of a run."""
        ...


class StageData(pl.LightningDataModule):
    """Base of the LightningDataModules: sets of batches become loaders, ordered by the seed alone.

    Subclasses fill `train_set` and `evaluation_sets` (by split) in `setup`.

    Args:
        batch_size: Training samples per batch and process.
        workers: Loader processes while training.
        seed: Of order, augmentation and noise.
    """

    train_set: BatchSet

    def __init__(self, *, batch_size: int, workers: int, seed: int) -> None:
        super().__init__()
        if batch_size < 1 or workers < 0:
            raise UsageError(
                f"batch_size is {batch_size} and workers is {workers}; give at least 1 and 0"
            )
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.evaluation_sets: dict[str, BatchSet] = {}

    evaluation_batch: int = 1
    """Samples per batch in validation and test."""

    evaluation_workers: int = 0
    """Loader processes in validation and test."""

    source: Source

    def describe(self) -> str:
        """Where the data come from, in a line."""
        return self.source.describe()

    def train_dataloader(self) -> Loader:
        """Shuffled batches of the training split."""
        return loader(
            self.train_set, self.batch_size, shuffle=True, seed=self.seed, workers=self.workers
        )

    def _evaluation(self, split: str) -> Loader:
        return loader(
            self.evaluation_sets[split],
            self.evaluation_batch,
            shuffle=False,
            seed=self.seed,
            workers=self.evaluation_workers,
        )

    def val_dataloader(self) -> Loader:
        """Batches of the validation split, in order."""
        return self._evaluation("val")

    def test_dataloader(self) -> Loader:
        """Batches of the test split, in order."""
        return self._evaluation("test")

    def predict_dataloader(self) -> Loader:
        """Batches of the test split, in order."""
        return self._evaluation("test")
