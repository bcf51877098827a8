"""Random numbers as a pure function of a key (seed, epoch, index, …), in any order."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

Key = int | str | NDArray[np.integer]
"""Part of a key: a number, the name of a stream, or an array with one number per sample."""


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014): every input bit reaches every output bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _word(part: Key) -> NDArray[np.uint64]:
    """Part of a key as 64-bit words; names are hashed."""
    if isinstance(part, str):
        part = int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "little")
    if isinstance(part, int):
        return np.asarray([part & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    return np.asarray(part).astype(np.int64).astype(np.uint64)


def random_bits(*key: Key, lanes: int) -> NDArray[np.uint64]:
    """Draw random 64-bit words for a key.

    Every distribution has its own stream of words, so that numbers of different distributions are
    independent even where their keys are the same.

    Args:
        key: Numbers, names and arrays of numbers; arrays broadcast against each other.
        lanes: Number of independent words per sample.

    Returns:
        Words, (..., lanes); ... is the broadcast shape of the arrays in `key`, nothing if there are
        none.
    """
    return _random_words("bits", *key, lanes=lanes)


_STREAMS = {"uniform": 0, "generator": 0, "normal": 1, "bits": 2, "seed": 3}
"""Distribution -> start of its stream of words.

The words of "generator" are the key of a Philox generator, whose numbers do not depend on them.
"""


def _random_words(distribution: str, *key: Key, lanes: int) -> NDArray[np.uint64]:
    """Words for a key, as from `random_bits`, from the stream of a distribution."""
    # The parts before the first array are the same in all batches of an epoch.
    first: tuple[Any, ...] = tuple(takewhile(lambda part: not isinstance(part, np.ndarray), key))
    rest = key[len(first) :]
    state = _add_parts(_state_of(distribution, *first), rest)
    with np.errstate(over="ignore"):
        steps = np.arange(1, lanes + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        words = _mix(state[..., None] + steps)
    return words if rest else words[0]


@functools.lru_cache(maxsize=64)
def _state_of(distribution: str, *parts: Key) -> NDArray[np.uint64]:
    """State after the parts of a key that are numbers and names, (1,); nobody writes into it."""
    return _add_parts(np.full(1, _STREAMS[distribution], np.uint64), parts)


def _add_parts(state: NDArray[np.uint64], parts: Iterable[Key]) -> NDArray[np.uint64]:
    """State after more parts of a key."""
    with np.errstate(over="ignore"):
        for part in parts:
            state = _mix((state + np.uint64(0x9E3779B97F4A7C15)) ^ _mix(_word(part)))
    return state


def uniform(*key: Key, lanes: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
    """Draw uniform numbers in [low, high) for a key, (..., lanes); see `random_bits`.

    >>> whole = uniform(7, "flip", np.arange(3), lanes=2)
    >>> bool((whole[1] == uniform(7, "flip", np.array([1]), lanes=5)[0, :2]).all())
    True
    """
    return low + (high - low) * _unit(_random_words("uniform", *key, lanes=lanes))


def normal(*key: Key, lanes: int) -> NDArray[np.float64]:
    """Draw standard normal numbers for a key, (..., lanes), by the Box-Muller transform."""
    unit = _unit(_random_words("normal", *key, lanes=2 * lanes))
    radius = np.sqrt(-2.0 * np.log1p(-unit[..., :lanes]))
    return radius * np.cos(2.0 * np.pi * unit[..., lanes:])


def make_generator(*key: int | str) -> np.random.Generator:
    """NumPy generator for a key; slow to make, so use `uniform` for numbers per sample."""
    return np.random.Generator(np.random.Philox(key=_random_words("generator", *key, lanes=2)))


def derive_seed(*key: int | str) -> int:
    """Non-negative 63-bit seed for a key, for `torch.manual_seed`."""
    return int(_random_words("seed", *key, lanes=1)[0] >> np.uint64(1))


def _unit(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Words as numbers in [0, 1), from their upper 53 bits."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
