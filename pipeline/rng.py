"""Keyed randomness: numbers as a pure function of (seed, epoch, index, …), in any order."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Key = int | str | NDArray[np.integer]
"""A part of a key: a number, a name (which stream), or an array with one number per sample."""


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014): every input bit reaches every output bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _word(part: Key) -> NDArray[np.uint64]:
    if isinstance(part, str):
        part = int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "little")
    if isinstance(part, int):
        return np.asarray([part & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    return np.asarray(part).astype(np.int64).astype(np.uint64)


def bits(*key: Key, lanes: int) -> NDArray[np.uint64]:
    """Random 64-bit words for a key.

    Args:
        key: Numbers, names and arrays of numbers; arrays broadcast against each other.
        lanes: Independent words per sample.

    Returns:
        Words, (..., lanes), where ... is the broadcast shape of the arrays in `key` (nothing if
        there are none).
    """
    with np.errstate(over="ignore"):
        state = np.zeros(1, np.uint64)
        for part in key:
            state = _mix((state + np.uint64(0x9E3779B97F4A7C15)) ^ _mix(_word(part)))
        steps = np.arange(1, lanes + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        words = _mix(state[..., None] + steps)
    return words if any(isinstance(part, np.ndarray) for part in key) else words[0]


def uniform(*key: Key, lanes: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
    """Uniform numbers in [low, high) for a key, (..., lanes); see `bits`.

    >>> whole = uniform(7, "flip", np.arange(3), lanes=2)
    >>> bool((whole[1] == uniform(7, "flip", np.array([1]), lanes=5)[0, :2]).all())
    True
    """
    unit = (bits(*key, lanes=lanes) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return low + (high - low) * unit


def normal(*key: Key, lanes: int) -> NDArray[np.float64]:
    """Standard normal numbers for a key, (..., lanes), by Box and Muller's transform."""
    unit = uniform(*key, lanes=2 * lanes)
    radius = np.sqrt(-2.0 * np.log1p(-unit[..., :lanes]))
    return radius * np.cos(2.0 * np.pi * unit[..., lanes:])


def generator(*key: int | str) -> np.random.Generator:
    """NumPy generator for a key; too slow to make one per sample (use `uniform`)."""
    return np.random.Generator(np.random.Philox(key=bits(*key, lanes=2)))


def derive_seed(*key: int | str) -> int:
    """Non-negative 63-bit seed for a key, as `torch.manual_seed` takes it."""
    return int(bits(*key, lanes=1)[0] >> np.uint64(1))
