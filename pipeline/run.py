"""A run: its folder and state, sample order, seeds per batch, signals, the NaN guard, metrics that survive a resume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch.distributed
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from pipeline import chance

BatchKey = tuple[int, NDArray[np.int64]]
"""Epoch, and the indices of the samples in one batch."""


class BatchSet(Protocol):
    """A dataset that makes whole batches, vectorised where it can."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """The batch of these samples in this epoch, a pure function of the key and the set's seed.

        Arrays come out as NumPy arrays with the batch axis first; the loader turns them into tensors.
        """
        ...


class Order(Sampler[BatchKey]):
    """Which samples come in which batch: a pure function of (seed, epoch), whatever happened before.

    Training batches are cut from one permutation of all samples: batch s of W processes takes samples
    s*B*W … (s+1)*B*W of it, every W-th to each process. Each sample comes exactly once per epoch; what is left at the
    end and too small to give every process two samples joins the batch before. Evaluation takes every W-th sample
    in order, without padding, so that a metric over N processes equals the metric over one.

    Args:
        count: Number of samples.
        batch_size: Samples per batch and process.
        shuffle: Whether this is training.
        seed: Of the run.
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
        if not self.shuffle:
            return np.arange(0, len(range(rank, self.count, world)), self.batch_size)
        step = self.batch_size * world
        starts = np.arange(0, self.count, step)
        if len(starts) > 1 and self.count - starts[-1] < 2 * world:
            starts = starts[:-1]
        return starts

    def __iter__(self) -> Iterator[BatchKey]:
        rank, world = self._world()
        starts = self._starts()
        if not self.shuffle:
            mine = np.arange(rank, self.count, world)
            for start in starts:
                yield self.epoch, mine[start : start + self.batch_size]
            return
        order = chance.generator(self.seed, "order", self.epoch).permutation(self.count)
        skip, self.skip = self.skip, 0
        for start, end in list(zip(starts, [*starts[1:], self.count], strict=True))[skip:]:
            yield self.epoch, order[start:end][rank::world]


def loader(
    dataset: BatchSet, batch_size: int, *, shuffle: bool, seed: int = 0, workers: int = 0
) -> DataLoader[dict[str, Any]]:
    """A loader whose order, and with it every batch, depends on (seed, epoch) alone.

    Args:
        dataset: Makes whole batches from (epoch, indices).
        batch_size: Samples per batch and process.
        shuffle: True to train, False to evaluate.
        seed: Of the run.
        workers: Loader processes; the batches are the same for any number.
    """
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=None,
        sampler=Order(len(dataset), batch_size, shuffle=shuffle, seed=seed),
        num_workers=workers,
        persistent_workers=workers > 0 and shuffle,
        timeout=120 if workers else 0,
        pin_memory=torch.cuda.is_available(),
    )
