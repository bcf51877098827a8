"""Archives unpacked once into memory-mapped arrays of the content store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files import entries, store
from pipeline.files.reading import read_bytes

Unpack = Callable[[], tuple[dict[str, NDArray], dict[str, Any]]]
"""Function that reads archives: arrays to keep, and plain facts about them (names, lengths)."""


def unpack_once(stem: str, files: Sequence[Path], layout: str, unpack: Unpack) -> entries.Entry:
    """The arrays of some archives, memory-mapped from the cache; unpacked on the first call.

    Args:
        stem: Beginning of the entry's name in the cache.
        files: Archives; the entry is keyed by their content.
        layout: Name and version of the way the archives are read; part of the entry's key.
        unpack: Function that reads the archives, called when the entry is missing.

    Raises:
        DataError: If a file is missing, not what `unpack` needs, or changes while it is read.
        StorageError: If the cache cannot be written.
    """
    cache = store.default_store()
    for file in files:
        if not file.is_file():
            read_bytes(file)  # raises with the reason
    key = {"archives": [cache.digest(file) for file in files], "layout": layout}
    specification = entries.CacheSpecification(stem, key)
    if entry := cache.find(specification):
        return entry
    cache.root.mkdir(parents=True, exist_ok=True)
    # one process of a run reads the archives, the others wait
    with cache.lock(f"{specification.name}-reading"):
        if entry := cache.find(specification):
            return entry
        arrays, facts = unpack()
        for file, digest in zip(files, key["archives"], strict=True):
            if cache.digest(file) != digest:
                raise DataError(f"{file}: changed while it was read; run the same command again")
        shapes = {name: (array.shape, array.dtype.str) for name, array in arrays.items()}
        return cache.fetch(
            entries.CacheSpecification(stem, key, shapes, facts), lambda shards: arrays
        )


def split_rows(array: NDArray, lengths: Sequence[int]) -> list[NDArray]:
    """Views of consecutive pieces of an array along its first axis."""
    ends = np.cumsum(lengths)
    return [array[end - length : end] for end, length in zip(ends, lengths, strict=True)]
