"""P-MPJPE against a batched NumPy decomposition, and MPJVE against NumPy's differences.

Run as `python benchmarks/metrics.py [frames] [rounds]`. One thread; both
alternate, so that other load on the machine slows both; medians of CPU time.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import rng
from pipeline.metrics.functional import mpjve, p_mpjpe

CHUNK = 1024


def p_mpjpe_by_svd(predicted: NDArray[np.floating], target: NDArray[np.floating]) -> float:
    """Umeyama's fit with NumPy's batched decomposition, 1,024 frames at a time, mm."""
    total = 0.0
    for start in range(0, len(target), CHUNK):
        a, b = predicted[start : start + CHUNK], target[start : start + CHUNK]
        middle = b.mean(axis=1, keepdims=True)
        a, b = a - a.mean(axis=1, keepdims=True), b - middle
        left, values, right = np.linalg.svd(b.transpose(0, 2, 1) @ a)
        sign = np.sign(np.linalg.det(left @ right))
        left[:, :, -1] *= sign[:, None]
        values[:, -1] *= sign
        scale = values.sum(axis=1) / (a * a).sum(axis=(1, 2))
        fitted = scale[:, None, None] * (a @ (left @ right).transpose(0, 2, 1))
        total += float(np.linalg.norm(fitted - b, axis=-1).mean(axis=1, dtype=np.float64).sum())
    return 1000 * total / len(target)


def mpjve_by_differences(predicted: NDArray[np.floating], target: NDArray[np.floating]) -> float:
    """Norm of the difference of NumPy's differences over the whole video, mm per frame."""
    change = np.diff(predicted, axis=0) - np.diff(target, axis=0)
    return 1000 * float(np.mean(np.linalg.norm(change, axis=-1), dtype=np.float64))


def main() -> None:
    """Print one line per metric."""
    frames = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    torch.set_num_threads(1)
    random = rng.make_generator(0, "metrics benchmark")
    target = random.normal(0, 0.3, (frames, 17, 3)).astype(np.float32)
    predicted = target + random.normal(0, 0.05, target.shape).astype(np.float32)
    for name, ours, theirs in (
        ("P-MPJPE", p_mpjpe, p_mpjpe_by_svd),
        ("MPJVE", mpjve, mpjve_by_differences),
    ):
        seconds: dict[Callable[..., float], list[float]] = {ours: [], theirs: []}
        values = {}
        for _ in range(rounds):
            for function in seconds:
                start = time.process_time()
                values[function] = function(predicted, target)
                seconds[function].append(time.process_time() - start)
        fast, slow = (statistics.median(seconds[function]) for function in (ours, theirs))
        print(
            f"{name}: {frames:,} frames, ours {fast:.3f} s, NumPy {slow:.3f} s, "
            f"ratio {slow / fast:.2f}; difference {abs(values[ours] - values[theirs]):.2e} mm"
        )


if __name__ == "__main__":
    main()
