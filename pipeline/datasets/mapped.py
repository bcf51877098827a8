"""Archives unpacked once into memory-mapped arrays, so that training never parses them again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import store
from pipeline.datasets.photos import read_bytes

_log = logging.getLogger(__name__)

Unpack = Callable[[], tuple[dict[str, NDArray], dict[str, Any]]]
"""Reads the archives: arrays to keep, and plain facts about them (names, lengths)."""


def mapped(stem: str, files: Sequence[Path], layout: str, unpack: Unpack) -> store.Entry:
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
    shop = store.place()
    for file in files:
        if not file.is_file():
            read_bytes(file)  # says what is wrong with it
    key = {"archives": [shop.digest(file) for file in files], "layout": layout}
    path = shop.root / store.Wanted(stem, key, {}, {}).name
    if not store.damage(path):
        return store.read(path)
    _log.info("reading %s once", ", ".join(map(str, files)))
    arrays, facts = unpack()
    shapes = {name: (array.shape, array.dtype.str) for name, array in arrays.items()}
    return shop.fetch(store.Wanted(stem, key, shapes, facts), lambda shards: arrays)


def pieces(array: NDArray, lengths: Sequence[int]) -> list[NDArray]:
    """Views of consecutive pieces of an array along its first axis."""
    ends = np.cumsum(lengths)
    return [array[end - length : end] for end, length in zip(ends, lengths, strict=True)]
