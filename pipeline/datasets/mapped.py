"""Archives unpacked once into memory-mapped arrays, so that training never parses them again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline import store
from pipeline.datasets.photos import read_bytes

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
    known = store.Wanted(stem, key)
    if entry := shop.find(known):
        return entry
    shop.root.mkdir(parents=True, exist_ok=True)
    with shop.lock(f"{known.name}-reading"):  # the other processes of a run wait for one to read
        if entry := shop.find(known):
            return entry
        arrays, facts = unpack()
        shapes = {name: (array.shape, array.dtype.str) for name, array in arrays.items()}
        return shop.fetch(store.Wanted(stem, key, shapes, facts), lambda shards: arrays)


Item = TypeVar("Item")


def progress(items: Collection[Item], what: str) -> Iterator[Item]:
    """The items one by one, with a bar on a terminal while they are worked on.

    Args:
        items: What is read.
        what: Of which file they are.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    bar = Console(stderr=True)
    yield from track(items, f"reading {what} once", console=bar, transient=True)


def pieces(array: NDArray, lengths: Sequence[int]) -> list[NDArray]:
    """Views of consecutive pieces of an array along its first axis."""
    ends = np.cumsum(lengths)
    return [array[end - length : end] for end, length in zip(ends, lengths, strict=True)]
