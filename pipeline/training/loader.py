"""The DataLoader of all stages: whole batches in an order that depends only on seed and epoch."""

from __future__ import annotations

import atexit
import contextlib
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from multiprocessing import connection
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from pipeline import rng
from pipeline.errors import HeatliftError, ProcessLostError, UsageError
from pipeline.training import processes
from pipeline.training.private_names import LoaderWithIterator, WorkerIterator

BatchKey = tuple[int, NDArray[np.int64]]
"""Epoch, and sample indices of one batch."""

WORKER_TIMEOUT = 120.0
"""Seconds that a DataLoader worker may take for a batch."""

WORKER_CHECK_INTERVAL = 5.0
"""Seconds between two checks that the DataLoader workers are alive."""


class BatchSet(Protocol):
    """A dataset that makes whole batches at once."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """Make the batch of a key: a pure function of the key and the seed of the dataset.

        Values are NumPy arrays with the batch axis first; the DataLoader converts them to tensors.
        `index`, (B,), has the sample indices.
        """
        ...


class SeededSampler(Sampler[BatchKey]):
    """Yields the batch keys of an epoch: a pure function of (seed, epoch).

    Training batches are parts of one permutation of all samples. With W processes, batch s has
    samples s*B*W … (s+1)*B*W of it, and each process gets every W-th of these. Each sample occurs
    exactly once per epoch. A last batch that is too small to give each process two samples is
    merged with the batch before. In evaluation, each process gets every W-th sample in order,
    without padding, so that a metric of several processes equals the metric of one.

    Args:
        count: Number of samples.
        batch_size: Samples per batch and process.
        shuffle: True for training, false for evaluation.
        seed: Seed of the run.

    Raises:
        UsageError: If there are fewer samples than processes.
    """

    def __init__(self, count: int, batch_size: int, *, shuffle: bool, seed: int = 0) -> None:
        self.count, self.batch_size, self.shuffle, self.seed = count, batch_size, shuffle, seed
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._starts())

    def _rank_and_world(self) -> tuple[int, int]:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _starts(self) -> NDArray[np.int64]:
        """Where each batch begins in the order of samples."""
        rank, world = self._rank_and_world()
        if self.count < world:
            purpose = "training" if self.shuffle else "evaluation"
            raise UsageError(
                f"{self.count} {purpose} samples are too few for {world} processes; "
                f"give --trainer.devices {max(self.count, 1)}"
            )
        if not self.shuffle:
            return np.arange(0, len(range(rank, self.count, world)), self.batch_size)
        starts = np.arange(0, self.count, self.batch_size * world)
        if len(starts) > 1 and self.count - starts[-1] < 2 * world:
            starts = starts[:-1]
        return starts

    def __iter__(self) -> Iterator[BatchKey]:
        rank, world = self._rank_and_world()
        starts = self._starts()
        skip, self.skip = self.skip, 0
        if not self.shuffle:
            samples = np.arange(rank, self.count, world)
            for start in starts[skip:]:  # the same random numbers in every evaluation
                yield 0, samples[start : start + self.batch_size]
            return
        order = rng.make_generator(self.seed, "order", self.epoch).permutation(self.count)
        for start, end in list(zip(starts, [*starts[1:], self.count], strict=True))[skip:]:
            yield self.epoch, order[start:end][rank::world]


_WORKERS: weakref.WeakSet[Any] = weakref.WeakSet()
"""DataLoader workers of this process."""


@atexit.register  # torch has imported multiprocessing: this runs before what that registered
def _kill_workers() -> None:
    """End the workers that are left: they ignore SIGTERM, by which multiprocessing ends them."""
    for worker in _WORKERS:
        with contextlib.suppress(ValueError):  # closed
            worker.kill()


@contextlib.contextmanager
def _workers_start() -> Iterator[None]:
    """Start workers without a moment in which a signal ends them, and without torch's SIGCHLD.

    Stop signals wait until the block ends; a worker keeps them blocked until it ignores them
    (`prepare_worker`). torch's handler of SIGCHLD raises an error about a dead worker wherever the
    main process stands, for example while it saves; the handler from before is put back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, processes.STOP_SIGNALS)
    handler = signal.getsignal(signal.SIGCHLD)
    if getattr(handler, "__module__", "").startswith("torch.utils.data"):  # of another DataLoader
        handler = signal.SIG_DFL
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _WatchingIterator(WorkerIterator):
    """Iterator of DataLoader workers that checks every few seconds that they are alive.

    The death of a worker is an error only where its batch is missing, and it is raised there and
    nowhere else. A worker that dies while it sends a batch breaks the connection before its death
    is visible.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        with _workers_start():
            super().__init__(loader)
        for worker in self.workers:
            worker.terminate = worker.kill
        _WORKERS.update(self.workers)

    def try_get_data(self, timeout: float) -> tuple[bool, Any]:
        end = time.monotonic() + timeout
        while True:
            time_left = max(end - time.monotonic(), 0.0)
            try:
                success, data = super().try_get_data(min(time_left, WORKER_CHECK_INTERVAL))
            except (EOFError, OSError) as error:
                if connection.wait(
                    [worker.sentinel for worker in self.workers], WORKER_CHECK_INTERVAL
                ):
                    raise RuntimeError("a DataLoader worker exited") from error
                raise
            if success or time_left <= WORKER_CHECK_INTERVAL:
                return success, data

    def shut_down_workers(self) -> None:
        with contextlib.suppress(RuntimeError):  # a worker died; all are to end anyway
            super().shut_down_workers()


class ResumableLoader(LoaderWithIterator):
    """A DataLoader that counts the batches of the current pass, so that a pass can be resumed.

    Lightning stores `state_dict` in the checkpoint. The sampler is read at the first batch, not
    when the iterator is made, because Lightning makes the iterator before it sets the epoch.
    """

    batch_count = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        sampler = self.sampler
        if isinstance(sampler, SeededSampler):
            self.batch_count = sampler.skip
        try:
            for batch in super().__iter__():
                self.batch_count += 1
                yield batch
        except HeatliftError as error:
            # A worker sends its traceback as the text of the exception.
            name = type(error).__name__
            raise type(error)(str(error).rsplit(f"{name}: ", 1)[-1].strip()) from error
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            raise ProcessLostError(self._worker_lost_message(str(error))) from error

    def make_iterator(self) -> Any:
        """The iterator of a pass; one of workers watches them."""
        return _WatchingIterator(self) if self.num_workers else super().make_iterator()

    def _worker_lost_message(self, error: str) -> str:
        """Error line for a worker that died or timed out, from the text of torch's error."""
        if "timed out" in error:
            problem = f"gave no batch for {self.timeout:.0f} s"
        else:
            problem = "was killed (out of memory?)"
        return (
            f"a DataLoader worker {problem}, at batch {self.batch_count} of this pass; lower "
            "--data.workers or --data.batch_size, or check the files of that batch with "
            "--data.workers 0"
        )

    def state_dict(self) -> dict[str, int]:
        """Number of batches of the current pass so far."""
        return {"given": self.batch_count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip the batches that an unfinished pass already gave; a finished pass starts again."""
        if isinstance(self.sampler, SeededSampler):
            self.sampler.skip = state["given"] if state["given"] < len(self.sampler) else 0


def prepare_worker(worker: int) -> None:
    """Leave all stop signals to the main process, and end with it at any time (Linux).

    A terminal, `timeout`, SLURM and systemd send a signal to all processes; the main process needs
    its workers until the optimizer step is finished, and ends them then.
    """
    for number in processes.STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, processes.STOP_SIGNALS)
    processes.exit_with(None)  # torch notices a parent that had ended before


def make_loader(
    dataset: BatchSet, batch_size: int, *, shuffle: bool, seed: int = 0, workers: int = 0
) -> ResumableLoader:
    """Make a DataLoader whose batches depend only on (seed, epoch).

    Args:
        dataset: Makes whole batches from (epoch, sample indices).
        batch_size: Samples per batch and process.
        shuffle: True for training, false for evaluation.
        seed: Seed of the run.
        workers: Number of DataLoader workers; batches do not depend on it.
    """
    return ResumableLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=None,
        sampler=SeededSampler(len(dataset), batch_size, shuffle=shuffle, seed=seed),
        num_workers=workers,
        persistent_workers=workers > 0 and shuffle,
        timeout=WORKER_TIMEOUT if workers else 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=prepare_worker,
    )
