"""The DataLoader of every stage: whole batches in an order that depends on the seed alone."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from multiprocessing import connection
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from pipeline import rng
from pipeline.errors import HeatliftError, ProcessLostError, UsageError

BatchKey = tuple[int, NDArray[np.int64]]
"""Epoch, and the indices of the samples in one batch."""


WORKER_TIMEOUT = 120.0
"""Seconds that a loader process may take for a batch."""


WORKER_CHECK = 5.0
"""Seconds between two looks whether the loader processes are alive."""


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


class SeededSampler(Sampler[BatchKey]):
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
        order = rng.generator(self.seed, "order", self.epoch).permutation(self.count)
        for start, end in list(zip(starts, [*starts[1:], self.count], strict=True))[skip:]:
            yield self.epoch, order[start:end][rank::world]


class _Looking(_MultiProcessingDataLoaderIter):
    """Looks at its processes while it waits for them.

    torch looks when the timeout is over, and otherwise trusts the signal of a child's death, which
    can come while another is handled; such a death would cost all of `WORKER_TIMEOUT`. And a process that
    dies amid handing over a batch breaks a connection shortly before its death can be seen.
    """

    def _try_get_data(self, timeout: float = WORKER_CHECK) -> tuple[bool, Any]:
        end = time.monotonic() + timeout
        while True:
            left = max(end - time.monotonic(), 0.0)
            try:
                got, data = super()._try_get_data(min(left, WORKER_CHECK))
            except (EOFError, OSError) as error:
                if connection.wait([worker.sentinel for worker in self._workers], WORKER_CHECK):
                    raise RuntimeError("a DataLoader worker exited") from error
                raise
            if got or left <= WORKER_CHECK:
                return got, data

    def _shutdown_workers(self) -> None:
        with contextlib.suppress(RuntimeError):  # a death while all are to end is no news
            super()._shutdown_workers()


class ResumableLoader(DataLoader[dict[str, Any]]):
    """A DataLoader that knows how many batches of this pass it gave; a resumed run goes on there.

    Lightning stores `state_dict` in the checkpoint. The pass begins at the first batch asked for,
    not when the iterator is made, because Lightning makes it before it tells the sampler which
    epoch this is.
    """

    given = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        order = self.sampler
        if isinstance(order, SeededSampler):
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
        if isinstance(self.sampler, SeededSampler):
            self.sampler.skip = state["given"] if state["given"] < len(self.sampler) else 0


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to loader processes too, to whom they work for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_loader(
    dataset: BatchSet, batch_size: int, *, shuffle: bool, seed: int = 0, workers: int = 0
) -> ResumableLoader:
    """A loader whose order, and with it every batch, depends on (seed, epoch) alone.

    Args:
        dataset: Makes whole batches from (epoch, indices).
        batch_size: Samples per batch and process.
        shuffle: True to train, False to evaluate.
        seed: Of the run.
        workers: Loader processes; the batches are the same for any number.
    """
    return ResumableLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=None,
        sampler=SeededSampler(len(dataset), batch_size, shuffle=shuffle, seed=seed),
        num_workers=workers,
        persistent_workers=workers > 0 and shuffle,
        timeout=WORKER_TIMEOUT if workers else 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_interrupts,
    )
