"""Damaged files from a seed, and checks that a reader raises one line for each."""

from __future__ import annotations

import copy
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError

WRONG = [
    None,
    True,
    "seven",
    -1,
    1e308,
    10**400,
    [],
    {},
    [[1]],
    float("nan"),
    float("inf"),
    "\u0000",
]


def check_json_reader(
    document: Any,
    path: Path,
    read: Callable[[Path], object],
    *,
    count: int,
    seed: int = 0,
    named: str = "",
    least: float = 0.6,
) -> None:
    """Read `count` damaged versions of a document: each raises one line or is read."""
    rng = np.random.default_rng(seed)
    lines = []
    for text in _versions(document, rng, count):
        path.write_bytes(text)
        lines.append(error_line(lambda: read(path)))
    check_lines(lines, named or path.name, least)


def error_line(read: Callable[[], object]) -> str | None:
    """The error line of a reader for a bad file, None if it reads it; other exceptions pass.

    No file may make a reader take more than 1 GiB.
    """
    before, line = _peak_memory(), None
    try:
        read()
    except DataError as error:
        line = str(error)
    assert _peak_memory() - before < 2**30
    return line


def check_lines(lines: list[str | None], name: str, least: float) -> None:
    """At least a share of damaged files raise an error, each one line that names the file."""
    errors = [line for line in lines if line is not None]
    assert len(errors) >= least * len(lines)
    assert all(name in line and "\n" not in line for line in errors)


def _peak_memory() -> int:
    """Largest memory of this process so far, bytes (Linux counts KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _versions(document: Any, rng: np.random.Generator, count: int) -> Iterator[bytes]:
    whole = json.dumps(document).encode()
    yield b""
    yield b"[" * 100_000
    yield b'{"a": ' * 100_000
    yield b'{"images": 1, "images": 2}'
    yield '{"images": ["é"]}'.encode("latin-1")
    for index in range(count - 5):
        if index % 5 == 0:
            yield whole[: rng.integers(1, len(whole))]
            continue
        changed = copy.deepcopy(document)
        _change(changed, rng, remove=index % 5 == 1)
        yield json.dumps(changed).encode()


def _change(document: Any, rng: np.random.Generator, *, remove: bool) -> None:
    """Replace or remove one value at any depth."""
    at = document
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = keys[rng.integers(len(keys))]
        inner = at[key]
        if isinstance(inner, (dict, list)) and inner and rng.uniform() < 0.8:
            at = inner
            continue
        if remove:
            del at[key]
        else:
            at[key] = WRONG[rng.integers(len(WRONG))]
        return


def damaged(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Cut and bit-flipped versions of a file."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        if index % 2:
            yield data[: rng.integers(0, len(data))]
            continue
        changed = bytearray(data)
        for place in rng.integers(0, len(data), 8):
            changed[place] ^= 1 << int(rng.integers(8))
        yield bytes(changed)


def changed_objects(value: Any, count: int, seed: int = 0) -> Iterator[Any]:
    """Nested dicts and lists of arrays with one fault at any depth."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        changed = copy.deepcopy(value)
        at = changed
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = keys[rng.integers(len(keys))]
            if isinstance(at[key], (dict, list)) and at[key] and (index % 3 or rng.uniform() < 0.7):
                at = at[key]
                continue
            if index % 4 == 0:
                del at[key]
            elif isinstance(at[key], np.ndarray):
                at[key] = _wrong_array(at[key], rng)
            else:
                at[key] = [None, "seven", -1, [], {}, np.zeros(3), {"a": 1}][rng.integers(7)]
            break
        yield changed


def _wrong_array(array: np.ndarray, rng: np.random.Generator) -> Any:
    if array.ndim == 0:
        return [np.array("x"), np.array(np.nan), np.zeros(3), None][rng.integers(4)]
    if array.dtype.kind not in "biuf":
        return [array[:-1], np.arange(3), None][rng.integers(3)]
    broken = array.astype(np.float64)
    broken.flat[rng.integers(broken.size)] = (np.nan, np.inf, 1e300)[rng.integers(3)]
    wrong = [array[..., :1], array[:0], array[None], array.astype(str), broken, None, "text", 7]
    return wrong[rng.integers(len(wrong))]
