"""Archives unpacked once into memory-mapped arrays of the content store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.files import entries, store
from pipeline.files.reading import read_bytes

Unpack = Callable[[], tuple[dict[str, NDArray], dict[str, Any]]]
"""Reads the archives: arrays to keep, and plain facts about them (names, lengths)."""


def unpack_once(stem: str, files: Sequence[Path], layout: str, unpack: Unpack) -> entries.Entry:
    """The arrays of some archives, memory-mapped from the cache; unpacked on the first call.

    Args:
        stem: Beginning of the entry's name in the cache.
        files: The archives; the entry is keyed by their content.
        layout: How they are read, with a version: another text is another entry.
        unpack: Called when the entry is not there yet.

    Raises:
        DataError: If a file is missing or not what `unpack` needs.
        StorageError: If the cache cannot be written.
    """
    shop = store.default_store()
    for file in files:
        if not file.is_file():
            read_bytes(file)  # says what is wrong with it
    key = {"archives": [shop.digest(file) for file in files], "layout": layout}
    known = entries.CacheSpecification(stem, key)
    if entry := shop.find(known):
        return entry
    shop.root.mkdir(parents=True, exist_ok=True)
    with shop.lock(f"{known.name}-reading"):  # the other processes of a run wait for one to read
        if entry := shop.find(known):
            return entry
        arrays, facts = unpack()
        shapes = {name: (array.shape, array.dtype.str) for name, array in arrays.items()}
        return shop.fetch(
            entries.CacheSpecification(stem, key, shapes, facts), lambda shards: arrays
        )


def split_rows(array: NDArray, lengths: Sequence[int]) -> list[NDArray]:
    """Views of consecutive pieces of an array along its first axis."""
    ends = np.cumsum(lengths)
    return [array[end - length : end] for end, length in zip(ends, lengths, strict=True)]
